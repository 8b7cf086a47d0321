"""How many threads compute: as many as have a processor to themselves.

llama.cpp's threads meet hundreds of times per token, and at each meeting all wait for the last. Where every thread has
a processor of its own they should spin there; where one shares its processor with another process, the others wait for
it, and one thread alone is faster than two that meet. So a worker's threads spin for long, and are taken away while
the kernel says that they wait for processors.

    threads waited for processors --> one fewer, on trial --> keep what is faster
    quiet for a while             --> one more, on trial  --> keep what is faster, else wait twice as long

Pure but for `waited_s`. Invariants: never more threads than asked for, never fewer than one; only batches of the same
shape are compared.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.1
"""Seconds between two looks at the kernel's accounts."""
CONTENDED = 0.2
"""Part of the time that a thread waits for a processor, from which on fewer threads are tried."""
BETTER = 0.97
"""A trial must take at most this part of the time."""
SAMPLES = 8
"""Batches that are compared, by their mean: a thread that lost its processor for a time slice is what counts here."""
_HOPELESS, _ENOUGH = 1.25, 3
"""A trial that takes this much longer after so many batches is over."""
_FIRST_S, _LONGEST_S = 1.0, 30.0
"""How long to wait before more threads are tried, at first and after many failures."""
_RARE = 10
"""A trial that failed is not repeated before this many times its length."""

_TASKS = Path("/proc/self/task")
_Shape = tuple[int, int]


def waited_s() -> float | None:
    """Seconds that this process's threads have stood ready without a processor; None where the kernel does not tell."""
    total = 0
    try:
        for task in _TASKS.iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[1])
            except FileNotFoundError:
                continue  # the thread has just ended
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9


class Threads:
    """Decides the number of threads from batch to batch."""

    def __init__(
        self,
        most: int,
        *,
        waited: Callable[[], float | None] = waited_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with all threads.

        Args:
            most: threads asked for.
            waited: what `waited_s` says.
        """
        self.count = most
        self._most = most
        self._waited = waited
        self._clock = clock
        self._looked_at = clock()
        self._waited_then = waited() if most > 1 else None
        self._recent: dict[_Shape, deque[float]] = {}
        """Seconds per token of the latest batches with `count` threads, by shape."""
        self._before: int | None = None
        """The number of threads before the trial that is under way."""
        self._shape: _Shape = (0, 0)
        self._trial: list[float] = []
        self._patience_s = {-1: _FIRST_S, 1: _FIRST_S}
        self._again_at = {-1: 0.0, 1: 0.0}
        """When fewer and when more threads may be tried next."""

    def note(self, streams: int, prompt_tokens: int, outputs: int, seconds: float) -> int:
        """Take the time of a batch; return the threads of the next one.

        Args:
            streams: sequences that decoded one token each.
            prompt_tokens: the batch's other tokens.
            outputs: tokens of either whose logits were computed.
        """
        if self._waited_then is None:
            return self.count
        shape = (-prompt_tokens.bit_length(), outputs.bit_length()) if prompt_tokens > streams else (streams, 0)
        cost = seconds / (streams + prompt_tokens)
        if self._before is not None:
            self._judge(shape, cost)
        else:
            recent = self._recent.setdefault(shape, deque(maxlen=SAMPLES))
            recent.append(cost)
            if len(recent) == SAMPLES:
                self._look(shape)
        return self.count

    def _look(self, shape: _Shape) -> None:
        """Begin a trial where the kernel's accounts call for one."""
        now = self._clock()
        elapsed = now - self._looked_at
        if elapsed < LOOK_S:
            return
        before, waited = self._waited_then, self._waited()
        self._looked_at, self._waited_then = now, waited
        if waited is None or before is None:
            return
        contended = waited - before > CONTENDED * elapsed * self.count
        step = -1 if contended else 1
        if 1 <= self.count + step <= self._most and now >= self._again_at[step]:
            self._before, self._shape, self._trial = self.count, shape, []
            self.count += step

    def _judge(self, shape: _Shape, cost: float) -> None:
        """Compare the trial with what was before; the first batch is left out, for threads were started or ended."""
        assert self._before is not None
        step = self.count - self._before
        if shape == self._shape:
            self._trial.append(cost)
            samples, known = self._trial[1:], statistics.fmean(self._recent[shape])
            hopeless = len(samples) >= _ENOUGH and statistics.fmean(samples) > _HOPELESS * known
            if len(samples) < SAMPLES and not hopeless:
                return
            better = statistics.fmean(samples) <= BETTER * known
        else:
            better = False
        now = self._clock()
        if better:
            self._patience_s[step] = _FIRST_S
            self._again_at[-step] = now + self._patience_s[-step]  # not back at once
            self._recent = {shape: deque(samples, maxlen=SAMPLES)}
        else:
            self.count = self._before
            self._again_at[step] = now + max(self._patience_s[step], _RARE * (now - self._looked_at))
            self._patience_s[step] = min(_LONGEST_S, 2 * self._patience_s[step])
        self._before = None
        self._looked_at, self._waited_then = now, self._waited()
