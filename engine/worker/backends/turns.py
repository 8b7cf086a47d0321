"""Turns a `Plain` model into a `Backend`: requests take turns, token by token.

For backends without batching of their own: each step resumes every generation that is due once. Invariant: at most
`slots` generations have begun and not ended, the others wait in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from lathe.engine.errors import Cancelled, InternalError, describe
from lathe.engine.generation import Delta, FinishReason, Timing, check
from lathe.engine.worker.backends.protocol import Ask, Emit, Lookup, Pause, Plain, Progress
from lathe.engine.worker.messages import (
    Detokenize,
    Done,
    Embed,
    Failed,
    Generate,
    LoadOptions,
    Piece,
    Prompt,
    Render,
    RequestState,
    Scores,
    ScoreTexts,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    WorkerInfo,
    WorkerStats,
)

MAX_ROWS = 256
"""Requests listed in the statistics; panels show no more."""


class _Turn:
    """One request and its clock; the `Ticket` of its generation."""

    def __init__(self, ask: Ask, now: float) -> None:
        self.ask = ask
        self.id = ask.id
        self.queued_at = now
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.due = 0.0
        self.deltas: Iterator[tuple[Delta, ...] | Pause] | None = None
        self.prompt_tokens = 0
        self.generated = 0
        self.stop: FinishReason | None = None
        self.deadline: float | None = None
        if isinstance(ask, Generate) and ask.request.deadline_s is not None:
            self.deadline = now + ask.request.deadline_s

    def timing(self, seed: int = 0) -> Timing:
        now = time.monotonic()
        started = self.started_at or now
        first = self.first_token_at
        return Timing(
            scheduled_s=started - self.queued_at,
            first_token_s=None if first is None else first - self.queued_at,
            finished_s=now - self.queued_at,
            prefill_s=(first or now) - started,
            decode_s=0.0 if first is None else now - first,
            seed=seed,
        )

    def state(self, now: float) -> RequestState:
        stage = "waiting" if self.started_at is None else "prefill" if self.first_token_at is None else "decode"
        return RequestState(
            id=self.id,
            stage=stage,  # type: ignore[arg-type]  # one of the three literals
            client=self.ask.request.client,
            principal=self.ask.request.principal,
            prompt_tokens=self.prompt_tokens,
            prefilled=self.prompt_tokens if self.first_token_at else 0,
            generated=self.generated,
            age_s=now - self.queued_at,
            first_token_s=None if self.first_token_at is None else self.first_token_at - self.queued_at,
        )


class Turns:
    """A `Backend` over a `Plain` model."""

    def __init__(self, model: Plain, emit: Emit) -> None:
        self._model = model
        self._emit = emit
        self._waiting: deque[_Turn] = deque()
        self._running: list[_Turn] = []
        self._slots = 1
        self._busy_since = 0.0
        self._iterations = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generated_tokens = 0

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        info = self._model.load(path, name, options, progress)
        self._slots = info.slots
        return info

    def answer(self, lookup: Lookup) -> Tokens | Text | Prompt:
        match lookup:
            case Tokenize(id, text, special, bos):
                return Tokens(id, self._model.tokenize(text, special, bos))
            case Detokenize(id, tokens):
                return Text(id, self._model.detokenize(tokens))
            case Render(id, messages, tools, template_args, add_generation_prompt):
                return Prompt(id, self._model.render(messages, tools, template_args, add_generation_prompt))

    def admit(self, ask: Ask) -> object:
        if isinstance(ask, Generate):
            check(ask.request)
        return _Turn(ask, time.monotonic())

    def begin(self, work: object) -> None:
        assert isinstance(work, _Turn)
        self._waiting.append(work)

    def cancel(self, request: int) -> None:
        for turn in (*self._waiting, *self._running):
            if turn.id == request:
                turn.stop, turn.due = "cancelled", 0.0

    def interrupt(self, request: int) -> None:
        """Nothing to interrupt: one turn is one token."""

    def step(self) -> float | None:
        now = time.monotonic()
        for turn in (*self._waiting, *self._running):
            if turn.deadline is not None and now >= turn.deadline and turn.stop is None:
                turn.stop, turn.due = "deadline", 0.0
        self._start(now)
        for turn in [turn for turn in self._running if turn.due <= now]:
            self._busy_since = time.monotonic()
            try:
                over = self._take(turn)
            except Exception as error:  # noqa: BLE001 - one request fails, the others go on
                self._emit((Failed(turn.id, describe(error)),))
                over = True
            finally:
                self._busy_since = 0.0
            if over:
                self._running.remove(turn)
        self._iterations += 1
        return self._next_due()

    def stats(self) -> WorkerStats:
        now = time.monotonic()
        running, waiting, since = self._running.copy(), list(self._waiting), self._busy_since
        return WorkerStats(
            iterations=self._iterations,
            busy_s=now - since if since else 0.0,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            running=len(running),
            waiting=len(waiting),
            requests=tuple(turn.state(now) for turn in (*running, *waiting)[:MAX_ROWS]),
        )

    def close(self) -> None:
        self._model.close()

    def _start(self, now: float) -> None:
        # A request that is to end does not wait for a slot.
        ending = [turn for turn in self._waiting if turn.stop is not None]
        for turn in ending:
            self._waiting.remove(turn)
        while self._waiting and len(self._running) + len(ending) < self._slots:
            ending.append(self._waiting.popleft())
        for turn in ending:
            turn.started_at = now
            if isinstance(turn.ask, Generate):
                turn.deltas = self._model.generate(turn.ask.request, turn)
            self._running.append(turn)

    def _take(self, turn: _Turn) -> bool:
        """Resume a request; True once it is over."""
        if turn.deltas is None:
            return self._answer_whole(turn)
        try:
            produced = next(turn.deltas)
        except StopIteration as stop:
            raise InternalError(f"the generation of request {turn.id} ended without a finish reason") from stop
        if isinstance(produced, Pause):
            turn.due = time.monotonic() + produced.seconds
            return False
        tokens = sum(len(delta.tokens) for delta in produced)
        if tokens and turn.first_token_at is None:
            turn.first_token_at = time.monotonic()
        turn.generated += tokens
        self._generated_tokens += tokens
        usage = next((delta.usage for delta in produced if delta.usage), None)
        if usage is None:
            self._emit((Piece(turn.id, produced, time.monotonic()),))
            return False
        self._prompt_tokens += usage.prompt_tokens - usage.cached_tokens
        self._cached_tokens += usage.cached_tokens
        self._emit((Piece(turn.id, produced, time.monotonic()), Done(turn.id)))
        return True

    def _answer_whole(self, turn: _Turn) -> bool:
        if turn.stop is not None:
            raise Cancelled("the request was cancelled before it ran")
        match turn.ask:
            case ScoreTexts(id, request):
                self._emit((Scores(id, self._model.score(request)), Done(id)))
            case Embed(id, embedding):
                self._emit((Vectors(id, self._model.embed(embedding)), Done(id)))
        return True

    def _next_due(self) -> float | None:
        if not self._running:
            return 0.0 if self._waiting else None
        now = time.monotonic()
        wake = min(turn.due for turn in self._running)
        for turn in (*self._waiting, *self._running):
            if turn.deadline is not None:
                wake = min(wake, turn.deadline)
        return max(0.0, wake - now)
