"""The search for mixes: sensitivities once, then the best mix for each size, measured, corrected and measured again.

    original + text -> yardstick -> anchors and errors -> costs -> knapsack per size -> reading
                                                             ^-------- second pass: the chosen types themselves --'

The second pass measures, tensor by tensor, the types that the first one chose and their neighbours, and chooses again;
the better of the two readings stands. Invariant: the time asked for bounds what is begun, and everything measured is
saved as it comes, so that a stopped search goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.knapsack import Mix, Option, choose, cost_of, path, size_of
from lathe.engine.tune.sensitivity import (
    KINDS,
    Anchor,
    Measurements,
    costs,
    measure,
    options,
    tensors_of,
)
from lathe.engine.tune.yardstick import Reading, Yardstick
from lathe.quantize.variants import Variants

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)."""
_NEIGHBOURS = 1
"""Types above and below the chosen one that the second pass measures."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The best mix for a size."""

    budget: int
    mix: dict[str, str]
    bytes: int
    """Of the tensors that were chosen for."""
    predicted: float
    reading: Reading
    passes: int


def read_measurements(path: Path) -> Measurements:
    """What was measured before; nothing where there is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measurements)
    except (OSError, msgspec.MsgspecError):
        return Measurements()


class Search:
    """One model, one text, any number of sizes."""

    def __init__(
        self,
        variants: Variants,
        yardstick: Yardstick,
        state: Path,
        *,
        kinds: Sequence[str] = KINDS,
        clock: Clock,
        progress: Progress,
    ) -> None:
        """Prepare.

        Args:
            state: file that keeps what was measured.
            clock: bounds what is begun.
        """
        self._variants = variants
        self._yardstick = yardstick
        self._state = state
        self._kinds = kinds
        self._clock = clock
        self._progress = progress
        self.names = tensors_of(variants)
        self._making_s = self._reading_s = 0.0
        """Of the last one: per weight that was quantized, and of a reading."""
        self.readings = 0
        self.measured = read_measurements(state)

    def sensitivities(self) -> None:
        """Measure the anchors and compute the errors."""
        measure(
            self._yardstick,
            self._variants,
            self.names,
            self._kinds,
            self.measured,
            self._clock,
            save=self._save,
            progress=lambda done, total: self._progress("sensitivity of each tensor", done, total),
        )
        self.readings = len(self.measured.anchors)

    def choices(self) -> dict[str, list[Option]]:
        """What each tensor costs in each type, as far as is known."""
        return options(self._variants, costs(self.measured, self._kinds), self._kinds)

    def find(self, budget: int) -> Found:
        """The best mix whose chosen tensors take at most `budget` bytes."""
        first = self._found(budget, choose(self.choices(), budget), 1)
        if not self._refine(first):
            return first
        second = self._found(budget, choose(self.choices(), budget), 2)
        return min(first, second, key=lambda found: found.reading.divergence)

    def closest(self, divergence: float) -> Mix:
        """The smallest mix that is predicted to diverge by at most so much; the closest of all where none is."""
        mix, steps = path(self.choices())
        for step in steps:
            if cost_of(mix) <= divergence:
                break
            mix[step.name] = step.option
        return mix

    def affords(self, chosen: Mix, *, urgent: bool) -> bool:
        """Whether there is time to make and measure a mix, as it went before: most of its tensors may be there."""
        missing = self._variants.missing(_kinds(chosen))
        return self._clock.has(missing * self._making_s + self._reading_s, whole=urgent)

    def measured_as(self, chosen: Mix) -> Found:
        """Make and measure a mix."""
        return self._found(size_of(chosen), chosen, 1)

    def read(self, mix: dict[str, str]) -> Reading:
        """Measure a mix."""
        self.readings += 1
        with self._clock.cost("anchor" if len(mix) == 1 else "mix"):
            missing, began = self._variants.missing(mix), time.monotonic()
            paths = self._variants.paths(mix)
            if missing:
                self._making_s = (time.monotonic() - began) / missing
            reading = self._yardstick.read(paths)
            self._reading_s = reading.seconds
            return reading

    def _found(self, budget: int, chosen: Mix, passes: int) -> Found:
        mix = _kinds(chosen)
        return Found(
            budget=budget,
            mix=mix,
            bytes=size_of(chosen),
            predicted=cost_of(chosen),
            reading=self.read(mix),
            passes=passes,
        )

    def _refine(self, found: Found) -> bool:
        """Measure the chosen types and their neighbours themselves; False where there is no time or nothing new."""
        if any(len(group) > 1 for group in self.measured.groups):
            return False
        known = {(anchor.names, anchor.kind) for anchor in self.measured.anchors}
        todo: list[tuple[str, str]] = []
        for name, listed in self.choices().items():
            by_size = [option.kind for option in sorted(listed, key=lambda option: option.bytes)]
            at = by_size.index(found.mix[name])
            near = by_size[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1]
            todo += [(name, kind) for kind in near if ((name,), kind) not in known]
        if not todo:
            return False
        if not self._clock.fits("anchor", len(todo)):
            self._clock.leave_out("a second pass over the chosen types")
            return False
        for number, (name, kind) in enumerate(todo):
            self._progress("second pass", number, len(todo))
            reading = self.read({name: kind})
            self.measured.anchors.append(Anchor((name,), kind, max(0.0, reading.divergence)))
            self._save(self.measured)
        self._progress("second pass", len(todo), len(todo))
        return True

    def _save(self, measured: Measurements) -> None:
        fresh = self._state.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(measured))
        fresh.replace(self._state)


def _kinds(chosen: Mix) -> dict[str, str]:
    return {name: option.kind for name, option in chosen.items()}
