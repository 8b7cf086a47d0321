"""From a request to work: checked, rendered, tokenised, fitted, with its samplers built. Usable from any thread.

Everything that a request can be refused for is found here, before it waits for the model. Invariant: touches the
vocabulary and the helper process, never a context.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from lathe.engine.errors import UsageError
from lathe.engine.generation import GenerationRequest, Sampling, check
from lathe.engine.scheduler.sequence import Sequence
from lathe.engine.worker.backends.llama.embedding import Embedding
from lathe.engine.worker.backends.llama.generation import Generation
from lathe.engine.worker.backends.llama.scoring import Scoring
from lathe.engine.worker.backends.protocol import Ask
from lathe.engine.worker.fitting import fit
from lathe.engine.worker.grammar import checked_grammar
from lathe.engine.worker.messages import Embed, Generate, ScoreTexts, WorkerInfo
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.schema import schema_to_grammar
from lathe.engine.worker.templates import ChatTemplate
from lathe.engine.worker.vocabulary import Vocabulary

_MOST_ECHOED = 500_000
"""Alternatives of prompt tokens that one answer may carry; it is one frame."""

Work = Generation | Scoring | Embedding
Lane = tuple[tuple[str, float], ...]
"""(adapter, scale), sorted; empty: the model as it is."""
Samplers = Callable[[Sampling, int, str | None], Sampler]
"""(sampling, seed, checked grammar) -> the sampler of one choice."""
Realm = tuple[str, Lane, int | None]
"""Who shares prefixes: a principal's requests with the same adapters; with an id, the choices of one request alone."""


class Lanes(Protocol):
    """Adapters, as far as admission asks about them."""

    def lane(self, wanted: Mapping[str, float]) -> Lane:
        """Check a request's adapters. Any thread."""


class Admission:
    """The door of one model."""

    def __init__(
        self,
        info: WorkerInfo,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        adapters: Lanes,
        *,
        keeps_prefixes: bool,
        longest_text: int,
        samplers: Samplers,
    ) -> None:
        self._info = info
        self._vocabulary = vocabulary
        self._template = template
        self._adapters = adapters
        self._keeps_prefixes = keeps_prefixes
        self._longest_text = longest_text
        self._samplers = samplers

    def admit(self, ask: Ask) -> Work:
        """Turn a request into work.

        Raises:
            LatheError: it is refused, with the reason.
        """
        now = time.monotonic()
        match ask:
            case Generate(request, generation):
                self._require("generate")
                return self._generation(request, generation, now)
            case ScoreTexts(request, scoring):
                self._require("score")
                realm = self._realm(request, scoring.principal, (), cache=True)
                return Scoring(request, scoring, self._vocabulary, self._info.context, realm, now)
            case Embed(request, embedding):
                self._require("embed")
                return Embedding(request, embedding, self._vocabulary, self._longest_text, now)

    def _require(self, capability: str) -> None:
        if capability not in self._info.capabilities:
            able = ", ".join(self._info.capabilities)
            raise UsageError(f"this model cannot {capability}", hint=f"it can: {able}", code="E_CAPABILITY")

    def _generation(self, request_id: int, request: GenerationRequest, now: float) -> Generation:
        check(request)
        lane = self._adapters.lane(request.adapters)
        grammar = _grammar(request.sampling)
        tokens = self._prompt(request)
        keep = 1 if tokens[:1] == [self._vocabulary.bos] else 0
        fitted = fit(tokens, request.max_tokens, self._info.context, request.overflow, keep_first=keep)
        scored = request.echo and request.logprobs is not None
        if scored and len(fitted.tokens) * (1 + (request.logprobs or 0)) > _MOST_ECHOED:
            raise UsageError(f"logprobs of {len(fitted.tokens)} prompt tokens are too many for one answer")
        seed = int.from_bytes(os.urandom(4)) if request.sampling.seed is None else request.sampling.seed
        generation = Generation(
            request_id, request, self._vocabulary, truncated=fitted.truncated, seed=seed, queued_at=now
        )
        realm = self._realm(request_id, request.principal, lane, cache=request.cache_prompt)
        deadline = None if request.deadline_s is None else now + request.deadline_s
        for index in range(request.n):
            sampler = self._samplers(request.sampling, (seed + index) % 2**32, grammar)
            sampler.remember(fitted.tokens)
            sequence = Sequence(
                request_id, list(fitted.tokens), fitted.max_tokens, queued_at=now, realm=realm, lane=lane,
                principal=request.principal, priority=request.priority, deadline=deadline,
                outputs_from=0 if scored and index == 0 else None,
            )  # fmt: skip
            generation.add(sequence, sampler)
        return generation

    def _prompt(self, request: GenerationRequest) -> list[int]:
        if request.messages:
            return list(self._template.render(request.messages, request.tools, request.template_args).tokens)
        if request.tokens is not None:
            return self._vocabulary.checked(request.tokens)
        return self._vocabulary.encode(request.prompt or "", special=request.special, ends=True)

    def _realm(self, request: int, principal: str, lane: Lane, *, cache: bool) -> Realm:
        return principal, lane, None if cache and self._keeps_prefixes else request


def _grammar(sampling: Sampling) -> str | None:
    if sampling.json_schema is not None:
        return checked_grammar(schema_to_grammar(sampling.json_schema))
    return None if sampling.grammar is None else checked_grammar(sampling.grammar)
