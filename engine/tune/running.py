"""How the points of a search run here: ways compared by successive halving, speed and memory of every point.

Each trial is a process of its own. Invariant: what there was no time to try is named on the clock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from lathe.engine.tune.clock import Clock
from lathe.engine.tune.frontier import Point
from lathe.engine.tune.halving import SHORTEST, Run, halve
from lathe.engine.tune.settings import Report
from lathe.engine.tune.trial import Timing, Trial, Way, run
from lathe.engine.tune.yardstick import Yardstick
from msgspec.structs import asdict, replace

_READ_TOKENS = 2048
"""Of the texts that an embedder reads in a trial, at least."""
_TIMED = (128, 32)
"""Prompt and generated tokens of a point's trial."""


class Running:
    """Trials of one model's points."""

    def __init__(
        self, files: Callable[[Point], list[Path]], yardstick: Yardstick, text_tokens: int, clock: Clock, report: Report
    ) -> None:
        """Prepare.

        Args:
            files: makes a point's files where they are not there.
            text_tokens: of each text that an embedder reads; 0 for a model that generates.
        """
        self._files = files
        self._yardstick = yardstick
        self._text_tokens = text_tokens
        self._clock = clock
        self._report = report
        self._timed = 0

    def ways(self, point: Point, candidates: Sequence[Way]) -> list[Run]:
        """Compare ways to run a point, the best first; the divergence with each KV cache is measured."""
        clock, files, done = self._clock, self._files(point), 0

        def attempt(way: Way, prompt: int, generate: int) -> Timing:
            nonlocal done
            done += 1
            self._report(f"ways to run {point.label}", done, None, "trial")
            with clock.cost("trial"):
                return self._trial(files, way, (prompt, generate))

        with clock.part("ways"):
            shortest = (_READ_TOKENS, 0) if self._text_tokens else SHORTEST
            fits = functools.partial(clock.fits, "trial")
            runs = halve(point.label, candidates, attempt, shortest=shortest, in_time=fits)
            if len(runs) < len(candidates):
                clock.leave_out(f"{len(candidates) - len(runs)} of {len(candidates)} ways to run")
            # Points are measured with an F16 cache, or with none.
            readings = dict.fromkeys(("f16", ""), (point.divergence, point.divergence_99_9))
            for kv_type in dict.fromkeys(one.kv_type for one in runs if not one.problem):
                if kv_type not in readings and not clock.fits("mix"):
                    clock.leave_out(f"divergence with a KV cache of {kv_type}")
                elif kv_type not in readings:
                    reading = self._yardstick.read(files, kv_type=kv_type)
                    readings[kv_type] = (reading.divergence, reading.divergence_99_9)
        return [
            replace(one, divergence=readings[one.kv_type][0], divergence_99_9=readings[one.kv_type][1])
            if one.kv_type in readings
            else one
            for one in runs
        ]

    def timed(self, point: Point, way: Way) -> Point:
        """The point with its speed and memory when run that way; as it is where there is no time."""
        if self._timed and not self._clock.fits("timing"):
            self._clock.leave_out(f"the speed of {point.label}")
            return point
        self._timed += 1
        self._report("speed of every point", self._timed, None, "point")
        size = (_READ_TOKENS, 0) if self._text_tokens else _TIMED
        with self._clock.cost("timing"):
            return replace(point, **asdict(self._trial(self._files(point), way, size)))

    def _trial(self, files: Sequence[Path], way: Way, size: tuple[int, int]) -> Timing:
        names, (prompt, generate) = tuple(str(path) for path in files), size
        return run(
            Trial(files=names, way=way, prompt_tokens=prompt, generate_tokens=generate, text_tokens=self._text_tokens)
        )
