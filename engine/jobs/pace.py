"""How fast a job goes and when it will be done: pure arithmetic over progress reports.

Invariant: within a stage `done` never goes back, and an ETA appears only in the last stage and after 5 % or 20 s;
before that it would be a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from lathe.engine.jobs.values import Progress

_SMOOTHING_S = 10.0
"""Time constant of the rate's exponential average."""


@dataclass
class Pace:
    """Smooths one job's rate; fed with every report, on the monotonic clock."""

    started: float
    _stage: int = 0
    _stage_started: float = 0.0
    _last: float = 0.0
    _done: float = 0.0
    _rate: float | None = field(default=None)

    def update(self, report: Progress, now: float) -> Progress:
        """The report with rate and ETA filled in and `done` kept from going back."""
        if report.stage != self._stage:
            self._stage, self._stage_started, self._last, self._done, self._rate = report.stage, now, now, 0.0, None
        done = max(report.done, self._done)
        elapsed = now - self._last
        if elapsed > 0 and done > self._done:
            current = (done - self._done) / elapsed
            weight = min(1.0, elapsed / _SMOOTHING_S)
            self._rate = current if self._rate is None else self._rate + weight * (current - self._rate)
            self._last, self._done = now, done
        self._done = max(self._done, done)
        return msgspec.structs.replace(report, done=done, rate=self._rate, eta_s=self._eta(report, done, now))

    def _eta(self, report: Progress, done: float, now: float) -> float | None:
        # Of the stages to come nothing is known: only the last one's end is the job's.
        if report.stage < report.stages or not report.total or not self._rate or done >= report.total:
            return None
        if done / report.total < 0.05 and now - self._stage_started < 20:
            return None
        return (report.total - done) / self._rate
