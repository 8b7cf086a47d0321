"""The serving loop: requests into the scheduler, its plans to the ring, logits to those who wait for them.

What is llama.cpp's or ONNX Runtime's own comes as `Parts`; a loop does not know which it drives.

    admit (any thread)   `Admission`: render, tokenise, check, build samplers
    begin                sequences into the scheduler
    step                 plan -> `Ring`: cache effects and one decode -> sample -> deltas
                         and, between two decodes, one batch of embeddings where some wait

Invariants: only the engine thread touches a model; what a step produces is sent together at its end.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

import msgspec
from lathe.engine.errors import Cancelled, LatheError, UsageError, describe
from lathe.engine.generation import FinishReason
from lathe.engine.scheduler.ledger import Effect, Ledger
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.scheduler.sequence import Chunk, Plan, Sequence
from lathe.engine.worker.backends.llama.admission import Admission, Lane, Work
from lathe.engine.worker.backends.llama.embedding import Embedding
from lathe.engine.worker.backends.llama.generation import Choice, Generation
from lathe.engine.worker.backends.llama.meter import Meter
from lathe.engine.worker.backends.llama.packing import Packer
from lathe.engine.worker.backends.llama.probabilities import Rows
from lathe.engine.worker.backends.llama.scoring import Branch, Scoring
from lathe.engine.worker.backends.llama.speculation import Speculator
from lathe.engine.worker.backends.protocol import Ask, Emit, Lookup, Progress
from lathe.engine.worker.messages import (
    Detokenize,
    Done,
    Failed,
    FromWorker,
    LoadOptions,
    Piece,
    Prompt,
    Render,
    Scores,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    WorkerInfo,
    WorkerStats,
)
from lathe.engine.worker.renderer import Renderer
from lathe.engine.worker.templates import ChatTemplate
from lathe.engine.worker.vocabulary import Vocabulary

MAX_WAITING = 4096
COMPANY_S = 0.008
"""Tokens that are made within so short a time are sent together: each message wakes two processes, which on a machine
with few cores takes them from the threads that compute."""


class Ring(Protocol):
    """Carries plans out on the model."""

    busy_since: float
    """When the running native call began; 0 when none runs."""

    @property
    def handle(self) -> int | None:
        """llama.cpp's context, for samplers that read logits from it; None: they are given the row."""

    def apply(self, effects: list[Effect]) -> None:
        """Carry out what the ledger wrote down."""

    def compute(self, plan: Plan) -> float | None:
        """Compute a plan's tokens; returns the seconds it took, None when it was aborted."""

    def rows(self) -> Rows:
        """The logits of the last plan, a row per output in its order; rows beyond the last output mean nothing."""

    def interrupt(self, request: int) -> None:
        """Abort the running computation if most of it is this request's prompt. Any thread."""


class Adapting(Protocol):
    """Adapters of a model."""

    def activate(self, lane: Lane) -> None:
        """Make the next batches those of a lane."""


class TextEmbedder(Protocol):
    """Computes vectors."""

    waiting: deque[Embedding]
    busy_since: float

    def step(self) -> Embedding | None:
        """Compute one batch of the first waiting request; return the request if that completed it."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model, as the loop needs it."""

    info: WorkerInfo
    vocabulary: Vocabulary
    template: ChatTemplate
    ledger: Ledger
    scheduler: Scheduler
    ring: Ring
    adapters: Adapting
    embedder: TextEmbedder
    admission: Admission
    speculator: Speculator | None = None
    """Guesses ahead; None where nobody asked for it."""
    packer: Packer | None = None
    """Scores whole texts in batches of their own; None where the scheduler alone computes."""


class Assemble(Protocol):
    """Loads a model of one kind."""

    def __call__(self, path: str, options: LoadOptions, progress: Progress, renderer: Renderer) -> Parts:
        """Bring the model into memory; the renderer is the loop's own."""


class Batched:
    """A `Backend` that computes many requests in each batch."""

    def __init__(self, emit: Emit, assemble: Assemble) -> None:
        self._emit = emit
        self._assemble = assemble
        self._out: list[FromWorker] = []
        self._work: dict[int, Work] = {}
        self._owners: dict[Sequence, Choice | Branch] = {}
        self._touched: dict[int, Generation] = {}
        """Generations with deltas to send."""
        self._flush_at = 0.0
        self._renderer = Renderer()
        self._meter = Meter()

    # -- Backend -------------------------------------------------------------------------------------------------
    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        parts = self._assemble(path, options, progress, self._renderer)
        self._vocabulary, self._template = parts.vocabulary, parts.template
        self._ledger, self._scheduler, self._ring = parts.ledger, parts.scheduler, parts.ring
        self._adapters, self._embedder, self._admission = parts.adapters, parts.embedder, parts.admission
        self._speculator, self._packer = parts.speculator, parts.packer
        if parts.info.chat_template:
            self._renderer.warm_up()
        return parts.info

    def answer(self, lookup: Lookup) -> Tokens | Text | Prompt:
        match lookup:
            case Tokenize(request, text, special, bos):
                return Tokens(request, tuple(self._vocabulary.encode(text, special=special, ends=bos)))
            case Detokenize(request, tokens):
                return Text(request, self._vocabulary.decode(tokens))
            case Render(request, messages, tools, template_args, generation_prompt):
                rendered = self._template.render(
                    messages, tools, template_args, add_generation_prompt=generation_prompt
                )
                return Prompt(request, rendered)

    def admit(self, ask: Ask) -> object:
        return self._admission.admit(ask)

    def begin(self, work: object) -> None:
        assert isinstance(work, Work)
        if isinstance(work, Embedding):
            self._embedder.waiting.append(work)
        elif not self._packed(work):
            owners: list[Choice] | list[Branch] = work.choices if isinstance(work, Generation) else work.branches
            try:
                self._scheduler.add([owner.sequence for owner in owners])
            except LatheError as error:
                self._emit((Failed(work.id, describe(error)),))
                return
            self._owners.update((owner.sequence, owner) for owner in owners)
        self._work[work.id] = work

    def cancel(self, request: int) -> None:
        match self._work.get(request):
            case Generation() as generation:
                self._end(generation, "cancelled")
            case Scoring() | Embedding() as work:
                self._fail(work, Cancelled("the request was cancelled"))
        self._flush()

    def interrupt(self, request: int) -> None:
        self._ring.interrupt(request)

    def step(self) -> float | None:
        if not self._scheduler.idle:
            self._iterate()
        if self._packer:
            self._pack(self._packer)
        if self._embedder.waiting:
            self._embed()
        self._flush()
        aside = len(self._embedder.waiting) + len(self._packer or ())
        idle = self._scheduler.idle and not aside
        self._meter.look(self._scheduler, aside, at_once=idle)
        return None if idle else 0

    def stats(self) -> WorkerStats:
        now = time.monotonic()
        since = self._ring.busy_since or self._embedder.busy_since
        return self._meter.stats(now - since if since else 0.0, [work.state(now) for work in list(self._work.values())])

    def close(self) -> None:
        self._renderer.close()

    # -- one iteration -------------------------------------------------------------------------------------------
    def _iterate(self) -> None:
        plan = self._scheduler.plan(time.monotonic())
        self._ring.apply(plan.effects)
        for sequence in plan.expired:
            owner = self._owners.get(sequence)
            if isinstance(owner, Choice):
                self._end(owner.generation, "deadline")
        if not plan.chunks:
            return
        if self._speculator is not None:
            plan = self._speculator.extended(plan)
        self._adapters.activate(plan.lane)  # type: ignore[arg-type]  # lanes are ours
        seconds = self._ring.compute(plan)
        if seconds is None:
            self._scheduler.undo(plan)
            return
        self._scheduler.complete(plan, seconds)
        self._meter.count(plan, seconds)
        self._read(plan)

    def _read(self, plan: Plan) -> None:
        """Hand the logits of the batch to the choices and branches that wait for them."""
        now = time.monotonic()
        rows = self._ring.rows()
        row = end = 0
        for chunk in plan.chunks:
            end += chunk.count
            if not chunk.outputs:
                continue
            mine = rows[row : row + chunk.outputs]
            row += chunk.outputs
            owner = self._owners.get(chunk.sequence)
            if isinstance(owner, Choice):
                if chunk.sequence.draft:
                    self._confirm(owner, chunk, mine, end - chunk.count, now)
                else:
                    self._advance(owner, chunk, mine, end - 1, now)
            elif owner is not None:
                self._judge(owner, chunk, mine)

    # -- generations ---------------------------------------------------------------------------------------------
    def _advance(self, choice: Choice, chunk: Chunk, rows: Rows, index: int, now: float) -> None:
        """Take the logits of a choice; the last row, at `index` of the batch, gives its next token."""
        generation, sequence = choice.generation, choice.sequence
        self._touched[generation.id] = generation
        end = chunk.start + chunk.count
        if chunk.start < sequence.prompt_tokens and generation.request.echo:
            if generation.request.logprobs is not None:
                generation.scored(choice, end - len(rows), rows)
            if end == sequence.prompt_tokens:
                generation.prompted(choice)
        if end < len(sequence.tokens):
            return
        reason: FinishReason | None = "length"
        if sequence.answer_tokens:
            try:
                token = choice.sampler.sample(self._ring.handle, index, rows[-1])
            except UsageError as error:
                self._fail(generation, error)
                return
            if not generation.ends_with(token):
                self._scheduler.append(sequence, token)
                self._meter.generated_tokens += 1
            reason = generation.token(choice, token, rows[-1], now)
        if reason is not None:
            self._finish(choice, reason, now)

    def _confirm(self, choice: Choice, chunk: Chunk, rows: Rows, index: int, now: float) -> None:
        """Draw tokens as long as they are those that were guessed, and one more; `index` is the batch's first row."""
        generation, sequence = choice.generation, choice.sequence
        self._touched[generation.id] = generation
        draft = sequence.draft
        reason: FinishReason | None = None
        right = 0
        for place, row in enumerate(rows):
            try:
                token = choice.sampler.sample(self._ring.handle, index + place, row)
            except UsageError as error:
                self._scheduler.settle(sequence)
                self._fail(generation, error)
                return
            if not generation.ends_with(token):
                self._scheduler.append(sequence, token)
                self._meter.generated_tokens += 1
            reason = generation.token(choice, token, row, now)
            if place == len(draft) or token != draft[place]:
                break
            right += 1
            if reason is not None:
                break
        self._scheduler.settle(sequence)
        choice.drafted += len(draft)
        choice.accepted += right
        self._meter.draft_tokens += len(draft)
        self._meter.accepted_tokens += right
        assert self._speculator is not None
        self._speculator.note(sequence, len(draft), right)
        if reason is not None:
            self._finish(choice, reason, now)

    def _finish(self, choice: Choice, reason: FinishReason, now: float) -> None:
        generation = choice.generation
        self._drop([choice.sequence])
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

    # -- scores and vectors --------------------------------------------------------------------------------------
    def _packed(self, work: Work) -> bool:
        """Whether a text to score went to the packer."""
        if self._packer is None or not isinstance(work, Scoring):
            return False
        if len(self._packer) >= MAX_WAITING or not self._packer.takes(work, alone=self._scheduler.idle):
            return False
        self._packer.add(work)
        return True

    def _pack(self, packer: Packer) -> None:
        self._adapters.activate(())
        packed = packer.step()
        if packed is None:
            return  # running requests need the room; they will have ended some time
        self._meter.packed(packed.tokens, packed.seconds)
        for scoring in packed.done:
            del self._work[scoring.id]
            self._forget(scoring.branches[0].sequence)
            self._out += (Scores(scoring.id, scoring.scores()), Done(scoring.id))

    def _judge(self, branch: Branch, chunk: Chunk, rows: Rows) -> None:
        end = chunk.start + chunk.count
        branch.take(end - len(rows), rows)
        if end < len(branch.sequence.tokens):
            return
        scoring = branch.scoring
        self._drop([branch.sequence])
        scoring.open -= 1
        if not scoring.open:
            self._forget(branch.sequence)
            del self._work[scoring.id]
            self._out += (Scores(scoring.id, scoring.scores()), Done(scoring.id))

    def _embed(self) -> None:
        work = self._embedder.waiting[0]
        try:
            done = self._embedder.step()
        except LatheError as error:
            self._fail(work, error)
            return
        if done is not None:
            del self._work[done.id]
            self._meter.prompt_tokens += sum(map(len, done.texts))
            self._out += (Vectors(done.id, done.result()), Done(done.id))

    # -- ends ----------------------------------------------------------------------------------------------------
    def _fail(self, work: Work, error: LatheError) -> None:
        """End one request with an error; the others go on."""
        del self._work[work.id]
        match work:
            case Embedding():
                self._embedder.waiting.remove(work)
            case Generation():
                self._touched.pop(work.id, None)
                self._drop([choice.sequence for choice in work.choices])
                work.close()
                self._forget(work.choices[0].sequence)
            case Scoring():
                if self._packer is not None:
                    self._packer.remove(work)
                self._drop([branch.sequence for branch in work.branches])
                self._forget(work.branches[0].sequence)
        self._out.append(Failed(work.id, describe(error)))

    def _drop(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._scheduler.end(sequence)
            self._owners.pop(sequence, None)
            if self._speculator is not None:
                self._speculator.forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """Let go of a realm that was one request's alone."""
        if sequence.realm[2] is not None:  # type: ignore[index]  # realms are made by `Admission`
            self._ledger.forget(sequence.realm)

    def _flush(self) -> None:
        """Send what the last steps produced; tokens that come fast wait a moment and travel together."""
        now = time.monotonic()
        if not self._out and now < self._flush_at and not any(one.urgent for one in self._touched.values()):
            return
        self._flush_at = now + COMPANY_S
        for generation in self._touched.values():
            if deltas := generation.take():
                self._out.append(Piece(generation.id, deltas))
            if generation.over:
                self._out.append(Done(generation.id))
        self._touched.clear()
        if self._out:
            self._emit(self._out)
            self._out = []
