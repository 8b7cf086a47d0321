"""Models from before GGUF, through ctransformers: one context, one sequence, requests take turns.

ctransformers is loaded for its native library alone: loops, sampling, stop strings and limits are ours, so a request is
answered as by any other backend. Its library picks a build for this processor and takes the architecture by name, which
the file's layout tells. Invariant: the native state is that of `_computed`, tokens in order; what a request shares with
the one before is not computed again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lathe.engine.errors import DataError, UsageError
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    FinishReason,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Sampling,
    Score,
    ScoreRequest,
    TokenLogprob,
    Usage,
)
from lathe.engine.native.llama import physical_cores
from lathe.engine.scheduler.radix import common_prefix
from lathe.engine.worker.backends.legacy_native import CHUNK, CONVERT, LegacyVocabulary, open_model
from lathe.engine.worker.backends.llama.probabilities import described, token_logprobs
from lathe.engine.worker.backends.llama.scoring import beginning
from lathe.engine.worker.backends.protocol import Emit, Pause, Progress, Ticket
from lathe.engine.worker.backends.turns import Turns
from lathe.engine.worker.fitting import fit
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.engine.worker.renderer import Renderer
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.stops import TextStream
from lathe.engine.worker.templates import ChatTemplate
from lathe.quantize.legacy_ggml import LegacyGgml, read_legacy

_KINDS = {"llama": "llama", "gpt2": "gpt2", "gptj": "gptj", "gptneox": "gpt_neox", "mpt": "mpt"}
"""The layouts that we recognise -> ctransformers' names of architectures."""
_DEFAULT_CONTEXT = 2048


def make(emit: Emit) -> Turns:
    """Build the backend."""
    return Turns(Legacy(), emit)


class Legacy:
    """A `Plain` model."""

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        begun = time.monotonic()
        facts = read_legacy(Path(path))
        kind = _KINDS.get(facts.architecture or "")
        if kind is None:
            what = facts.architecture or f"an unknown layout ({facts.container})"
            known = ", ".join(_KINDS)
            raise DataError(f"{Path(path).name}: {what} cannot be run; known: {known}", code="E_LEGACY")
        if options.adapters or options.draft:
            raise UsageError("adapters and draft models belong to GGUF models", code="E_CAPABILITY")
        context = options.context or facts.context or _DEFAULT_CONTEXT
        self._model = model = open_model(path, kind, context, options.threads or physical_cores())
        self._context = min(context, model.context_length)
        self._computed: list[int] = []
        self._vocabulary = vocabulary = LegacyVocabulary(model, adds_bos=kind == "llama")
        self._renderer = Renderer()
        self._template = ChatTemplate(None, vocabulary, self._context, self._renderer)
        progress(1.0)
        return WorkerInfo(
            backend="ctransformers",
            pid=os.getpid(),
            context=self._context,
            kv_tokens=self._context,
            slots=1,
            vocabulary=vocabulary.size,
            layers=facts.layers,
            threads=options.threads or physical_cores(),
            load_s=time.monotonic() - begun,
            weights_bytes=facts.file_bytes,
            device_bytes={"cpu": facts.file_bytes},
            bos_token=vocabulary.bos_name or None,
            eos_token=vocabulary.eos_name or None,
            bos_token_id=vocabulary.bos if vocabulary.bos >= 0 else None,
            eos_token_id=vocabulary.eos if vocabulary.eos >= 0 else None,
            capabilities=("generate", "score"),
            system=_description(facts, kind),
        )

    def generate(self, request: GenerationRequest, ticket: Ticket) -> Iterator[tuple[Delta, ...] | Pause]:
        if any(request.adapters.values()):
            raise UsageError("no adapter is loaded with this model", hint="adapters belong to GGUF models")
        if request.echo and request.logprobs is not None:
            raise UsageError("prompts of this model are not scored", hint=CONVERT, code="E_CAPABILITY")
        keep = 1 if self._vocabulary.adds_bos else 0
        fitted = fit(self._prompt(request), request.max_tokens, self._context, request.overflow, keep_first=keep)
        ticket.prompt_tokens = len(fitted.tokens)
        seed = int.from_bytes(os.urandom(4)) if request.sampling.seed is None else request.sampling.seed
        generated = cached = 0
        if request.echo:
            yield (Delta(text=self._vocabulary.decode(fitted.tokens)),)
        for index in range(request.n):
            sampler = self._sampler(request.sampling, (seed + index) % 2**32)
            sampler.remember(fitted.tokens)
            stream, tokens = TextStream(request.stop), list(fitted.tokens)
            finish: FinishReason | None = None
            cached = self._shared(tokens) if index == 0 else cached
            yield from self._compute(tokens, ticket)
            while finish is None:
                finish = ticket.stop or ("length" if len(tokens) - len(fitted.tokens) >= fitted.max_tokens else None)
                if finish is not None:
                    break
                row = self._model.logits()
                token = sampler.sample(None, 0, row)
                if token in self._vocabulary.ends:
                    finish = "stop"
                    break
                tokens.append(token)
                generated += 1
                shown = stream.feed(self._vocabulary.piece(token))
                logprobs: tuple[TokenLogprob, ...] = ()
                if request.logprobs is not None:
                    logprobs = (described(self._vocabulary, row, token, request.logprobs),)
                yield (Delta(index=index, text=shown, tokens=(token,), logprobs=logprobs),)
                if stream.stopped_by is not None:
                    finish = "stop"
                elif len(tokens) - len(fitted.tokens) < fitted.max_tokens:
                    yield from self._compute(tokens)
            sampler.close()
            last = index == request.n - 1
            usage = Usage(len(fitted.tokens), generated, cached, fitted.truncated) if last else None
            yield (
                Delta(
                    index=index, text=stream.finish(), finish=finish, stop_text=stream.stopped_by, usage=usage,
                    timing=ticket.timing(seed) if last else None,
                ),
            )  # fmt: skip

    def score(self, request: ScoreRequest) -> tuple[Score, ...]:
        return tuple(self._score(request.context, one) for one in request.continuations)

    def embed(self, request: EmbedRequest) -> Embeddings:
        raise UsageError("this model cannot embed", hint="it can: generate, score", code="E_CAPABILITY")

    def tokenize(self, text: str, special: bool, bos: bool) -> tuple[int, ...]:
        return tuple(self._vocabulary.encode(text, special=special, ends=bos))

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        return self._vocabulary.decode(tokens)

    def render(
        self,
        messages: tuple[Message, ...],
        tools: str | None,
        template_args: dict[str, str | bool | int | float],
        add_generation_prompt: bool,
    ) -> RenderedPrompt:
        return self._template.render(messages, tools, template_args, add_generation_prompt=add_generation_prompt)

    def close(self) -> None:
        self._renderer.close()

    # -- inside --------------------------------------------------------------------------------------------------
    def _prompt(self, request: GenerationRequest) -> list[int]:
        if request.messages:
            return list(self._template.render(request.messages, request.tools, request.template_args).tokens)
        if request.tokens is not None:
            return self._vocabulary.checked(request.tokens)
        return self._vocabulary.encode(request.prompt or "", special=request.special, ends=True)

    def _sampler(self, sampling: Sampling, seed: int) -> Sampler:
        wanted = sampling.grammar is not None or sampling.json_schema is not None
        for refused, what in ((wanted, "a grammar or JSON schema"), (sampling.dry_multiplier != 0, "DRY")):
            if refused:
                raise UsageError(f"{what} needs a GGUF model", hint=CONVERT, code="E_CAPABILITY")
        return Sampler(
            sampling, vocab=None, n_vocab=self._vocabulary.size, context=self._context, seed=seed,
            end_tokens=sorted(self._vocabulary.ends),
        )  # fmt: skip

    def _shared(self, tokens: list[int]) -> int:
        """How much of `tokens` is computed already; the last one's logits never are."""
        return min(common_prefix(self._computed, tokens), len(tokens) - 1)

    def _compute(self, tokens: list[int], ticket: Ticket | None = None) -> Iterator[Pause]:
        """Bring the native state to `tokens`, a chunk at a time, with a pause between two in which it may end.

        A request that is to end computes nothing: it may have had no turn, and the state is another one's.
        """
        known = self._shared(tokens)
        while ticket is None or ticket.stop is None:
            part = tokens[known : known + CHUNK]
            self._model.compute(part, known)
            known += len(part)
            self._computed = tokens[:known]
            if known == len(tokens):
                return
            yield Pause(0)

    def _score(self, context: str | tuple[int, ...], continuation: str | tuple[int, ...]) -> Score:
        if isinstance(context, str) and isinstance(continuation, str):
            before = self._vocabulary.encode(context.rstrip(), ends=True)
            tokens = self._vocabulary.encode(context + continuation, ends=True)
        else:
            before, after = (
                self._vocabulary.encode(one, ends=one is context) if isinstance(one, str)
                else self._vocabulary.checked(one)
                for one in (context, continuation)
            )  # fmt: skip
            tokens = before + after
        if not before:
            before = [beginning(self._vocabulary)]
            tokens = before + tokens
        start = len(before)
        if not 0 < start < len(tokens):
            raise UsageError("score: something must stand before a continuation, and it needs tokens of its own")
        fit(tokens, 0, self._context, "refuse")
        numbers, greedy = [], True
        for place in range(start, len(tokens)):
            for _ in self._compute(tokens[:place]):
                pass
            row = self._model.logits()
            numbers.append(float(token_logprobs(row[None], tokens[place : place + 1])[0]))
            greedy = greedy and int(row.argmax()) == tokens[place]
        return Score(math.fsum(numbers), len(numbers), greedy, tuple(numbers))


def _description(facts: LegacyGgml, kind: str) -> str:
    from importlib.metadata import version

    return f"ctransformers {version('ctransformers')}, {kind} {facts.file_type or ''} in {facts.container}".rstrip()
