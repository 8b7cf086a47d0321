"""The llama.cpp backend: carries out the scheduler's plans on one model and one context.

    admit (any thread)   render, tokenise, check, build samplers
    begin                sequences into the scheduler
    step                 plan -> effects on the cache -> one decode -> sample -> deltas
                         and, between two decodes, one batch of embeddings where some wait

Invariants: only the engine thread touches a context; what a step produces is sent together at its end.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Hashable

from lathe.engine.errors import Cancelled, InternalError, LatheError, UsageError, describe
from lathe.engine.generation import FinishReason, GenerationRequest, check
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import bindings, complaint
from lathe.engine.scheduler.ledger import Drop, Effect, Ledger, Share
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.scheduler.sequence import Chunk, Plan, Sequence
from lathe.engine.worker.backends.llama.abort import AbortFlag
from lathe.engine.worker.backends.llama.adapters import Adapters, Lane
from lathe.engine.worker.backends.llama.embedding import Embedder, Embedding
from lathe.engine.worker.backends.llama.generation import Choice, Generation
from lathe.engine.worker.backends.llama.lexicon import Lexicon
from lathe.engine.worker.backends.llama.loading import load
from lathe.engine.worker.backends.llama.meter import Meter
from lathe.engine.worker.backends.llama.probabilities import Rows
from lathe.engine.worker.backends.llama.scoring import Branch, Scoring
from lathe.engine.worker.backends.protocol import Ask, Emit, Lookup, Progress
from lathe.engine.worker.fitting import fit
from lathe.engine.worker.grammar import checked_grammar
from lathe.engine.worker.messages import (
    Detokenize,
    Done,
    Embed,
    Failed,
    FromWorker,
    Generate,
    LoadOptions,
    Piece,
    Prompt,
    Render,
    Scores,
    ScoreTexts,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    WorkerInfo,
    WorkerStats,
)
from lathe.engine.worker.renderer import Renderer
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.schema import schema_to_grammar
from lathe.engine.worker.templates import ChatTemplate

MAX_WAITING = 4096
_ABORTED = 2
"""llama_decode's status."""
_WORTH_ABORTING = 32
"""Prompt tokens in a batch from which on it is aborted for a cancelled request; less is done soon."""
_MOST_ECHOED = 500_000
"""Alternatives of prompt tokens that one answer may carry; it is one frame."""

Work = Generation | Scoring | Embedding


class LlamaBackend:
    """A `Backend` over llama.cpp."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._out: list[FromWorker] = []
        self._work: dict[int, Work] = {}
        self._owners: dict[Sequence, Choice | Branch] = {}
        self._touched: dict[int, Generation] = {}
        """Generations with deltas to send."""
        self._renderer = Renderer()
        self._meter = Meter()
        self._flight: dict[int, int] | None = None
        """Prompt tokens per request in the batch that is being decoded."""

    # -- Backend -------------------------------------------------------------------------------------------------
    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        loaded = load(path, options, progress)
        self._context = context = loaded.context
        self.info = info = loaded.info
        self._lexicon = Lexicon(loaded.model, info.context)
        self._template = ChatTemplate(loaded.model.chat_template, self._lexicon, info.context, self._renderer)
        if loaded.model.chat_template:
            self._renderer.warm_up()
        self._keeps = options.prefix_cache
        self._ledger = Ledger(info.kv_tokens, loaded.sequences, share=not loaded.recurrent)
        self._scheduler = Scheduler(
            slots=options.slots, batch_tokens=context.n_batch, max_outputs=loaded.max_outputs, max_waiting=MAX_WAITING,
            ledger=self._ledger, share=not loaded.recurrent,
        )  # fmt: skip
        self._lib = bindings()
        self._max_outputs = loaded.max_outputs
        self._batch = Batch(context.n_batch)
        self._rows_at: tuple[int, Rows] | None = None
        self._abort = AbortFlag(context)
        self._adapters = Adapters(loaded.model, options.adapters)
        self._embedder = Embedder(loaded.model, options)
        return info

    def answer(self, lookup: Lookup) -> Tokens | Text | Prompt:
        match lookup:
            case Tokenize(request, text, special, bos):
                return Tokens(request, tuple(self._lexicon.encode(text, special=special, ends=bos)))
            case Detokenize(request, tokens):
                return Text(request, self._lexicon.decode(tokens))
            case Render(request, messages, tools, template_args, generation_prompt):
                rendered = self._template.render(
                    messages, tools, template_args, add_generation_prompt=generation_prompt
                )
                return Prompt(request, rendered)

    def admit(self, ask: Ask) -> object:
        now = time.monotonic()
        match ask:
            case Generate(request, generation):
                self._require("generate")
                return self._generation(request, generation, now)
            case ScoreTexts(request, scoring):
                self._require("score")
                return Scoring(request, scoring, self._lexicon, self.info.context, now)
            case Embed(request, embedding):
                self._require("embed")
                return Embedding(request, embedding, self._lexicon, self._embedder.longest, now)

    def begin(self, work: object) -> None:
        assert isinstance(work, Work)
        try:
            match work:
                case Generation():
                    self._owners.update((choice.sequence, choice) for choice in work.choices)
                    self._scheduler.add([choice.sequence for choice in work.choices])
                case Scoring():
                    self._begin_scoring(work)
                case Embedding():
                    self._embedder.waiting.append(work)
        except LatheError as error:
            for choice in work.choices if isinstance(work, Generation) else ():
                del self._owners[choice.sequence]
            self._emit((Failed(work.id, describe(error)),))
            return
        self._work[work.id] = work

    def cancel(self, request: int) -> None:
        work = self._work.get(request)
        match work:
            case Generation():
                self._end(work, "cancelled")
            case Scoring() | Embedding():
                self._fail(work, Cancelled("the request was cancelled"))
        self._flush()

    def interrupt(self, request: int) -> None:
        flight = self._flight
        if flight is not None and 2 * flight.get(request, 0) > sum(flight.values()):
            self._abort.set()

    def step(self) -> float | None:
        if not self._scheduler.idle:
            self._iterate()
        if self._embedder.waiting:
            self._embed()
        self._flush()
        idle = self._scheduler.idle and not self._embedder.waiting
        self._meter.look(self._scheduler, self._embedder, at_once=idle)
        return None if idle else 0

    def stats(self) -> WorkerStats:
        now = time.monotonic()
        return self._meter.stats(now, [work.state(now) for work in list(self._work.values())])

    def close(self) -> None:
        self._renderer.close()

    # -- admission, any thread -----------------------------------------------------------------------------------
    def _require(self, capability: str) -> None:
        if capability not in self.info.capabilities:
            able = ", ".join(self.info.capabilities)
            raise UsageError(f"this model cannot {capability}", hint=f"it can: {able}", code="E_CAPABILITY")

    def _generation(self, request_id: int, request: GenerationRequest, now: float) -> Generation:
        check(request)
        lane = self._adapters.lane(request.adapters)
        sampling = request.sampling
        grammar = None
        if sampling.json_schema is not None:
            grammar = checked_grammar(schema_to_grammar(sampling.json_schema))
        elif sampling.grammar is not None:
            grammar = checked_grammar(sampling.grammar)
        tokens = self._prompt(request)
        keep = 1 if tokens[:1] == [self._lexicon.model.bos] else 0
        fitted = fit(tokens, request.max_tokens, self.info.context, request.overflow, keep_first=keep)
        scored = request.echo and request.logprobs is not None
        if scored and len(fitted.tokens) * (1 + (request.logprobs or 0)) > _MOST_ECHOED:
            raise UsageError(f"logprobs of {len(fitted.tokens)} prompt tokens are too many for one answer")
        seed = int.from_bytes(os.urandom(4)) if sampling.seed is None else sampling.seed
        generation = Generation(
            request_id, request, self._lexicon, truncated=fitted.truncated, seed=seed, queued_at=now
        )
        realm = self._realm(request_id, request.principal, lane, request.cache_prompt)
        for index in range(request.n):
            sampler = Sampler(
                sampling, vocab=self._lexicon.model.vocab, n_vocab=self._lexicon.size, context=self.info.context,
                seed=(seed + index) % 2**32, end_tokens=sorted(self._lexicon.ends), grammar=grammar,
            )  # fmt: skip
            sampler.remember(fitted.tokens)
            generation.add(
                Sequence(
                    request_id, list(fitted.tokens), fitted.max_tokens, queued_at=now, realm=realm, lane=lane,
                    principal=request.principal, priority=request.priority,
                    deadline=None if request.deadline_s is None else now + request.deadline_s,
                    outputs_from=0 if scored and index == 0 else None,
                ),
                sampler,
            )  # fmt: skip
        return generation

    def _prompt(self, request: GenerationRequest) -> list[int]:
        if request.messages:
            rendered = self._template.render(request.messages, request.tools, request.template_args)
            return list(rendered.tokens)
        if request.tokens is not None:
            return self._lexicon.checked(request.tokens)
        return self._lexicon.encode(request.prompt or "", special=request.special, ends=True)

    def _realm(self, request: int, principal: str, lane: Lane, cache: bool) -> Hashable:
        """Who shares prefixes: requests of one principal; where caching is not wanted, choices of one request."""
        return principal, lane, None if cache and self._keeps else request

    # -- one iteration -------------------------------------------------------------------------------------------
    def _iterate(self) -> None:
        plan = self._scheduler.plan(time.monotonic())
        self._apply(plan.effects)
        for sequence in plan.expired:
            self._expire(sequence)
        if not plan.chunks:
            return
        self._adapters.activate(self._context, plan.lane)  # type: ignore[arg-type]  # lanes are ours
        indices = self._fill(plan)
        seconds = self._decode(plan)
        if seconds is None:
            self._scheduler.undo(plan)
            return
        self._scheduler.complete(plan, seconds)
        self._meter.count(plan, seconds)
        self._read(plan, indices, time.monotonic())

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Share(source, target, start, end):
                    self._context.copy(source, target, start, end)
                case Drop(sequence, start, end):
                    if not self._context.remove(sequence, start, -1 if end is None else end):
                        raise InternalError(f"llama.cpp cannot cut sequence {sequence} at {start}")

    def _fill(self, plan: Plan) -> list[int]:
        """Write the plan's tokens into the batch; returns where each chunk ends in it."""
        batch = self._batch
        batch.clear()
        streams = plan.chunks[: plan.streams]
        count = len(streams)
        if count:
            where = slice(count)
            batch.token[where] = [chunk.sequence.tokens[chunk.start] for chunk in streams]
            batch.position[where] = [chunk.start for chunk in streams]
            batch.sequence[where] = [_native(chunk) for chunk in streams]
            batch.output[where] = 1
            batch.n_tokens = batch.native.n_tokens = count
        ends = list(range(1, count + 1))
        for chunk in plan.chunks[count:]:
            tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
            end = batch.extend(tokens, chunk.start, _native(chunk)).stop
            batch.output[end - chunk.outputs : end] = 1
            ends.append(end)
        return ends

    def _decode(self, plan: Plan) -> float | None:
        """Compute the batch; returns the seconds it took, None when it was aborted."""
        if plan.rows - plan.streams > _WORTH_ABORTING:
            flight: dict[int, int] = {}
            for chunk in plan.chunks:
                flight[chunk.sequence.request] = flight.get(chunk.sequence.request, 0) + chunk.count
            self._abort.clear()
            self._flight = flight
        begun = self._meter.busy_since = time.monotonic()
        try:
            status = self._context.try_decode(self._batch)
            self._context.synchronize()
        finally:
            self._meter.busy_since = 0.0
            self._flight = None
        if status == _ABORTED:
            self._abort.clear()
            return None
        if status:
            raise InternalError(f"llama.cpp could not decode a batch (status {status}): {complaint()}")
        return time.monotonic() - begun

    def _read(self, plan: Plan, ends: list[int], now: float) -> None:
        """Hand the logits of the batch to the choices and branches that wait for them."""
        rows = self._rows()
        row = 0
        for chunk, end in zip(plan.chunks, ends, strict=True):
            if not chunk.outputs:
                continue
            mine = rows[row : row + chunk.outputs]
            row += chunk.outputs
            owner = self._owners.get(chunk.sequence)
            if isinstance(owner, Choice):
                self._advance(owner, chunk, mine, end - 1, now)
            elif owner is not None:
                self._judge(owner, chunk, mine)

    def _rows(self) -> Rows:
        """All rows of logits of the last batch: a view of llama.cpp's buffer, which has room for the most at once."""
        address = ctypes.addressof(self._lib.llama_get_logits(self._context.handle).contents)
        if self._rows_at is None or self._rows_at[0] != address:
            self._rows_at = address, self._context.logits(self._max_outputs)
        return self._rows_at[1]

    # -- generations ---------------------------------------------------------------------------------------------
    def _advance(self, choice: Choice, chunk: Chunk, rows: Rows, index: int, now: float) -> None:
        generation, sequence = choice.generation, choice.sequence
        self._touched[generation.id] = generation
        if chunk.start < sequence.prompt_tokens and generation.request.echo:
            if generation.request.logprobs is not None:
                generation.scored(choice, chunk.start + chunk.count - len(rows), rows)
            if chunk.start + chunk.count == sequence.prompt_tokens:
                generation.prompted(choice)
        if chunk.start + chunk.count < len(sequence.tokens):
            return
        reason: FinishReason | None = "length"
        if sequence.answer_tokens:
            try:
                token = choice.sampler.sample(self._context.handle, index, rows[-1])
            except UsageError as error:
                self._fail(generation, error)
                return
            if not generation.ends_with(token):
                self._scheduler.append(sequence, token)
                self._meter.generated_tokens += 1
            reason = generation.token(choice, token, rows[-1], now)
        if reason is not None:
            self._finish(choice, reason, now)

    def _finish(self, choice: Choice, reason: FinishReason, now: float) -> None:
        generation = choice.generation
        self._scheduler.end(choice.sequence)
        self._owners.pop(choice.sequence, None)
        generation.finish(choice, reason, now)
        self._touched[generation.id] = generation
        if generation.over:
            self._forget(choice.sequence)
            del self._work[generation.id]

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        """Finish what is still open of a request."""
        now = time.monotonic()
        for choice in generation.unfinished():
            self._finish(choice, reason, now)

    def _expire(self, sequence: Sequence) -> None:
        owner = self._owners.get(sequence)
        if isinstance(owner, Choice):
            self._end(owner.generation, "deadline")

    def _forget(self, sequence: Sequence) -> None:
        """Let go of a realm that was this request's alone."""
        if sequence.realm[2] is not None:  # type: ignore[index]  # realms are made by `_realm`
            self._ledger.forget(sequence.realm)

    # -- scores and vectors --------------------------------------------------------------------------------------
    def _begin_scoring(self, work: Scoring) -> None:
        request = work.request
        realm = self._realm(work.id, request.principal, (), True)
        sequences = []
        for branch in work.branches:
            branch.sequence = Sequence(
                work.id, branch.tokens, 0, queued_at=work.queued_at, realm=realm, lane=(), principal=request.principal,
                outputs_from=branch.outputs_from,
            )  # fmt: skip
            sequences.append(branch.sequence)
        self._scheduler.add(sequences)
        self._owners.update(zip(sequences, work.branches, strict=True))

    def _judge(self, branch: Branch, chunk: Chunk, rows: Rows) -> None:
        branch.take(chunk.start + chunk.count - len(rows), rows)
        if chunk.start + chunk.count < len(branch.tokens):
            return
        scoring = branch.scoring
        self._scheduler.end(chunk.sequence)
        del self._owners[chunk.sequence]
        scoring.open -= 1
        if not scoring.open:
            self._forget(chunk.sequence)
            del self._work[scoring.id]
            self._out += (Scores(scoring.id, scoring.scores()), Done(scoring.id))

    def _embed(self) -> None:
        self._meter.busy_since = time.monotonic()
        try:
            done = self._embedder.step()
        except LatheError as error:
            self._fail(self._embedder.waiting[0], error)
            return
        finally:
            self._meter.busy_since = 0.0
        if done is not None:
            del self._work[done.id]
            self._meter.prompt_tokens += sum(map(len, done.texts))
            self._out += (Vectors(done.id, done.result()), Done(done.id))

    def _fail(self, work: Work, error: LatheError) -> None:
        """End one request with an error; the others go on."""
        del self._work[work.id]
        match work:
            case Embedding():
                self._embedder.waiting.remove(work)
            case Generation():
                sequences = [choice.sequence for choice in work.unfinished()]
                self._touched.pop(work.id, None)
                for choice in work.unfinished():
                    choice.sampler.close()
                self._drop(sequences)
            case Scoring():
                self._drop([branch.sequence for branch in work.branches if branch.sequence is not None])
        self._out.append(Failed(work.id, describe(error)))

    def _drop(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._scheduler.end(sequence)
            self._owners.pop(sequence, None)
        if sequences:
            self._forget(sequences[0])

    def _flush(self) -> None:
        """Send what this step produced."""
        now = time.monotonic()
        for generation in self._touched.values():
            if generation.deltas:
                self._out.append(Piece(generation.id, tuple(generation.deltas), now))
                generation.deltas = []
            if generation.over:
                self._out.append(Done(generation.id))
        self._touched.clear()
        if self._out:
            self._emit(self._out)
            self._out = []


def _native(chunk: Chunk) -> int:
    hold = chunk.sequence.hold
    assert hold is not None
    return hold.sequence
