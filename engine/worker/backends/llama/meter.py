"""What the worker tells about itself: counters since it started, gauges of this moment.

The engine thread counts and looks; the beat thread reads what was seen last. Invariant: trees and queues are walked by
the engine thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.scheduler.sequence import Plan
from lathe.engine.worker.messages import RequestState, WorkerStats

_LOOK_S = 0.2
_MAX_ROWS = 256
"""Requests listed; panels show no more."""


class Meter:
    """Counters of one backend."""

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self._iterations = 0
        self._prefill_s = 0.0
        self._decode_s = 0.0
        self._gauges = WorkerStats()
        self._looked_at = 0.0

    def count(self, plan: Plan, seconds: float) -> None:
        """Note a computed plan; the time of a mixed batch is divided by its tokens."""
        prompt = plan.short + plan.long
        self._iterations += 1
        self.prompt_tokens += prompt
        self._prefill_s += seconds * prompt / plan.rows
        self._decode_s += seconds * (plan.streams + plan.drafted) / plan.rows
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.borrowed and sequence.generated == 0 and chunk.start == sequence.borrowed:
                self.cached_tokens += sequence.borrowed

    def packed(self, tokens: int, seconds: float) -> None:
        """Note a batch of texts that were scored beside the scheduler."""
        self._iterations += 1
        self.prompt_tokens += tokens
        self._prefill_s += seconds

    def look(self, scheduler: Scheduler, waiting: int, *, at_once: bool) -> None:
        """Read the gauges, a few times a second; engine thread only."""
        now = time.monotonic()
        if not at_once and now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        ledger = scheduler.ledger
        self._gauges = WorkerStats(
            iterations=self._iterations,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + waiting,
            kv_used=ledger.used,
            kv_tokens=ledger.capacity,
            cache_nodes=ledger.nodes,
            cache_tokens=ledger.cached,
            preemptions=scheduler.preemptions,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
        )

    def stats(self, busy_s: float, requests: Sequence[RequestState]) -> WorkerStats:
        """The gauges as of the last look, with the age of the running native call. Any thread."""
        return msgspec.structs.replace(self._gauges, busy_s=busy_s, requests=tuple(requests[:_MAX_ROWS]))
