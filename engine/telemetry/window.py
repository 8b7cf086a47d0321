"""Two small memories of the recent past: values with their weights, and sums per second.

Invariant: both are bounded whatever arrives; quantiles are those of every value still in the window.
"""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW_MAX = 65_536
"""Most values kept; a busy engine reaches it after about a minute of inter-token times."""


class Window:
    """Weighted values of the last `span_s` seconds in a ring of arrays."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._times = np.empty(256)
        self._values = np.empty(256)
        self._weights = np.empty(256, np.int64)
        self._start = self._count = 0

    def add(self, now: float, value: float, weight: int = 1) -> None:
        """Keep a value; `weight` copies of it."""
        if self._count == len(self._times):
            if self._count < WINDOW_MAX:
                self._grow()
            else:
                self._start, self._count = (self._start + 1) % WINDOW_MAX, self._count - 1
        place = (self._start + self._count) % len(self._times)
        self._times[place], self._values[place], self._weights[place] = now, value, weight
        self._count += 1

    def quantiles(self, now: float, shares: tuple[float, ...]) -> tuple[int, list[float | None]]:
        """How many values (with their weights) there are, and the nearest-rank quantiles of them."""
        places = (self._start + np.arange(self._count)) % len(self._times)
        keep = int(np.searchsorted(self._times[places], now - self._span_s))
        self._start, self._count = (self._start + keep) % len(self._times), self._count - keep
        places = places[keep:]
        if not len(places):
            return 0, [None] * len(shares)
        values, weights = self._values[places], self._weights[places]
        order = np.argsort(values)
        ranks = np.cumsum(weights[order])
        total = int(ranks[-1])
        wanted = np.searchsorted(ranks, [np.ceil(share * total) for share in shares])
        return total, [float(value) for value in values[order][wanted]]

    def _grow(self) -> None:
        places = (self._start + np.arange(self._count)) % len(self._times)
        spare = np.zeros(len(self._times))
        self._times = np.concatenate([self._times[places], spare])
        self._values = np.concatenate([self._values[places], spare])
        self._weights = np.concatenate([self._weights[places], spare.astype(np.int64)])
        self._start = 0


class Seconds:
    """A number per whole second: a sum of what was added, or a level that stays until it changes."""

    def __init__(self, length: int, now: float) -> None:
        self._past: deque[float] = deque(maxlen=length)
        self._second = int(now)
        self._current = 0.0
        self._held = 0.0

    def add(self, now: float, amount: float) -> None:
        """Add to the current second."""
        self._roll(now)
        self._current += amount

    def level(self, now: float, value: float) -> None:
        """Set a level; a second shows the highest it saw."""
        self._roll(now)
        self._held = value
        self._current = max(self._current, value)

    def values(self, now: float) -> tuple[float, ...]:
        """The whole seconds that have passed, oldest first."""
        self._roll(now)
        return tuple(self._past)

    def _roll(self, now: float) -> None:
        passed = int(now) - self._second
        if passed <= 0:
            return
        self._past.append(self._current)
        self._past.extend([self._held] * min(passed - 1, self._past.maxlen or 0))
        self._second += passed
        self._current = self._held
