"""Traffic: what all generation together does, from streams as they pass and from the workers' own counters.

Each request is observed at the engine, where its deltas arrive, so a slow reader at the far end does not look like a
slow model. Times are of one monotonic clock. Invariants: no prompt or answer text is ever kept; percentiles are exact
over the window (or its last `WINDOW_MAX` values); every observed request ends in the finished rows, whatever ended it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from lathe.engine.errors import BusyError, Cancelled
from lathe.engine.generation import Delta
from lathe.engine.states import Percentiles, RequestRow, Traffic, WorkerState
from lathe.engine.telemetry.window import Seconds, Window
from lathe.engine.worker.messages import RequestState

WINDOW_S = 300.0
HISTORY_S = 300
FINISHED_ROWS = 50


class Observation:
    """One request on its way; made by `TrafficMeter.observe`. Ends with exactly one of `finish` and `fail`."""

    def __init__(self, meter: TrafficMeter, request_id: str, model: str, client: str) -> None:
        self.id = request_id
        self.model = model
        self.client = client
        self.remote = False
        """Answered by another server, which names no token ids."""
        self.number: int | None = None
        """The request's id inside its worker; the worker's statistics know it by that."""
        self.started = meter.now()
        self.prompt_tokens = 0
        self.generated = 0
        self.finish_reason = ""
        self.first: float | None = None
        self.last: float | None = None
        self.ended: float | None = None
        self.decode_tps: float | None = None
        self._meter = meter

    def placed(self, number: int) -> None:
        """The request was handed to its worker under this number; again after a crash."""
        self.number = number

    def on_delta(self, delta: Delta, at: float | None = None) -> None:
        """Count a delta at the moment it was made; None: as it arrives."""
        now = self._meter.now() if at is None else at
        # Of a remote server each piece of text counts as one token, which it nearly always is.
        tokens = len(delta.tokens) or int(bool(delta.text) and self.remote and not delta.finish)
        if tokens:
            self._count(tokens, now)
        if delta.finish:
            self.finish_reason = delta.finish
        if delta.usage is not None:
            self.prompt_tokens = delta.usage.prompt_tokens
            self._meter.used(delta.usage.prompt_tokens, delta.usage.cached_tokens)
            if delta.timing is not None:
                self._meter.queue.add(now, delta.timing.queue_s)
                self.decode_tps = delta.timing.decode_tokens_per_s(delta.usage.completion_tokens)

    def finish(self) -> None:
        """The stream ended by itself."""
        if self.ended is None:
            self._meter.ended(self, self.finish_reason or "stop")

    def fail(self, error: BaseException) -> None:
        """The stream was left, refused or broken."""
        if self.ended is not None:
            return
        if isinstance(error, BusyError):
            self._meter.rejected += 1
            self._meter.ended(self, "rejected")
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | Cancelled):
            self._meter.ended(self, "cancelled")
        else:
            self._meter.errors += 1
            self._meter.ended(self, "error")

    def _count(self, tokens: int, now: float) -> None:
        if self.first is None:
            self.first = now
            self._meter.ttft.add(now, now - self.started)
        elif self.last is not None and now > self.last:  # of the same moment: another choice of the same request
            # k tokens in one delta are k intervals of equal length: that is when they were made.
            self._meter.itl.add(now, (now - self.last) / tokens, tokens)
        self.last = now
        self.generated += tokens
        self._meter.generated(tokens)

    def row(self, now: float, live: RequestState | None = None) -> RequestRow:
        """Show it; `live` is what its worker says of it."""
        stage = self.finish_reason if self.ended is not None else "decode" if self.first is not None else "waiting"
        prompt = self.prompt_tokens
        if live is not None and self.ended is None:
            stage, prompt = live.stage, live.prompt_tokens
        speed = self.decode_tps
        if speed is None and self.first is not None and self.last is not None and self.last > self.first:
            speed = (self.generated - 1) / (self.last - self.first)
        return RequestRow(
            id=self.id,
            model=self.model,
            stage=stage,
            client=self.client,
            prompt_tokens=prompt,
            generated=self.generated,
            ttft_s=None if self.first is None else self.first - self.started,
            tokens_per_s=speed,
            age_s=(self.ended or now) - self.started,
            finished=self.ended is not None,
        )


class TrafficMeter:
    """Fed by every stream of the engine (`observe`) and every worker's state (`on_worker`). One event loop's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self.ttft, self.itl, self.e2e, self.queue = (Window(WINDOW_S) for _ in range(4))
        self.rejected = 0
        self.errors = 0
        self._live: dict[str, Observation] = {}
        self._finished: deque[Observation] = deque(maxlen=FINISHED_ROWS)
        self._workers: dict[str, WorkerState] = {}
        self._requests = self._prompt = self._generated = self._cached = 0
        self._decode, self._prefill = Seconds(HISTORY_S, clock()), Seconds(HISTORY_S, clock())
        self._waiting = Seconds(HISTORY_S, clock())

    def observe(self, request_id: str, model: str, client: str) -> Observation:
        """Begin to watch a request; `model` is the registered name."""
        observation = self._live[request_id] = Observation(self, request_id, model, client)
        self._requests += 1
        return observation

    def on_worker(self, state: WorkerState) -> None:
        """Learn what a worker says of itself: call it for every `WorkerChanged`."""
        now = self.now()
        last = self._workers.get(state.name)
        if state.phase not in ("ready", "draining"):
            self._workers.pop(state.name, None)
        else:
            self._workers[state.name] = state
            before = last.stats.prompt_tokens if last is not None and last.pid == state.pid else 0
            self._prefill.add(now, max(0, state.stats.prompt_tokens - before))
        self._waiting.level(now, sum(worker.stats.waiting for worker in self._workers.values()))

    def generated(self, tokens: int) -> None:
        """Count generated tokens."""
        self._generated += tokens
        self._decode.add(self.now(), tokens)

    def used(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a prompt."""
        self._prompt += prompt_tokens
        self._cached += cached_tokens

    def ended(self, observation: Observation, reason: str) -> None:
        """Move a request to the finished ones."""
        now = self.now()
        observation.ended, observation.finish_reason = now, reason
        if self._live.get(observation.id) is observation:
            del self._live[observation.id]
        self._finished.appendleft(observation)
        if reason not in ("rejected", "error", "cancelled"):
            self.e2e.add(now, now - observation.started)

    def snapshot(self) -> Traffic:
        """Sum up this moment. A few milliseconds under heavy load: call it about once a second."""
        now = self.now()
        stats = [worker.stats for worker in self._workers.values()]
        states = {(name, live.id): live for name, worker in self._workers.items() for live in worker.stats.requests}
        live = [one.row(now, states.get((one.model, one.number or 0))) for one in self._live.values()]
        waiting = sum(row.stage == "waiting" for row in live)
        decode, prefill = self._decode.values(now), self._prefill.values(now)
        return Traffic(
            window_s=WINDOW_S,
            ttft=self._quantiles(self.ttft),
            itl=self._quantiles(self.itl),
            e2e=self._quantiles(self.e2e),
            queue=self._quantiles(self.queue),
            decode_tps=decode[-1] if decode else 0.0,
            prefill_tps=prefill[-1] if prefill else 0.0,
            running=len(live) - waiting,
            waiting=waiting,
            rejected=self.rejected,
            errors=self.errors,
            requests_total=self._requests,
            prompt_tokens_total=self._prompt,
            generated_tokens_total=self._generated,
            cached_tokens_total=self._cached,
            kv_used=sum(one.kv_used for one in stats),
            kv_tokens=sum(one.kv_tokens for one in stats),
            decode_history=decode,
            prefill_history=prefill,
            queue_history=self._waiting.values(now),
            requests=(*live, *(one.row(now) for one in self._finished)),
        )

    def _quantiles(self, window: Window) -> Percentiles:
        count, values = window.quantiles(self.now(), (0.5, 0.95, 0.99))
        return Percentiles(count, *values)
