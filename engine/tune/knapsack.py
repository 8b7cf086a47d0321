"""Which type for which tensor, for any number of bytes: the lower convex hull of every tensor, merged.

Costs add up (the divergence of a mix is the sum over its tensors, as long as it is small), so the best mixes of all
sizes form one path: from all smallest, always the step that saves the most divergence per byte. Pure. Invariant: every
mix on the path is optimal for its size, up to the one tensor that a step in between would split.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec
from lathe.engine.errors import DataError


class Option(msgspec.Struct, frozen=True):
    """One type for one tensor."""

    kind: str
    bytes: int
    cost: float
    """Divergence it adds, in nats."""


class Step(msgspec.Struct, frozen=True):
    """One tensor from one type to a larger one."""

    name: str
    option: Option
    bytes: int
    """More than before."""
    saved: float
    """Divergence less than before."""

    @property
    def worth(self) -> float:
        """Divergence saved per byte."""
        return self.saved / self.bytes


Choices = Mapping[str, Sequence[Option]]
Mix = dict[str, Option]


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, smallest first: no mixture of two others is smaller and better."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.bytes, one.cost)):
        if kept and option.cost >= kept[-1].cost:
            continue
        while len(kept) > 1 and _worth(kept[-2], kept[-1]) <= _worth(kept[-1], option):
            kept.pop()
        if len(kept) == 1 and kept[0].bytes == option.bytes:
            kept.pop()
        kept.append(option)
    return kept


def _worth(one: Option, other: Option) -> float:
    return (one.cost - other.cost) / max(1, other.bytes - one.bytes)


def path(choices: Choices) -> tuple[Mix, list[Step]]:
    """Start and steps of the path of best mixes, from the smallest to the best."""
    start: Mix = {}
    steps: list[Step] = []
    for name, options in choices.items():
        corners = hull(options)
        start[name] = corners[0]
        steps += [
            Step(name, after, after.bytes - before.bytes, before.cost - after.cost)
            for before, after in itertools.pairwise(corners)
        ]
    # Within a tensor worth falls along its hull, so the sorted steps of each tensor stay in order.
    return start, sorted(steps, key=lambda step: -step.worth)


def size_of(mix: Mix) -> int:
    """Bytes of all tensors."""
    return sum(option.bytes for option in mix.values())


def cost_of(mix: Mix) -> float:
    """Predicted divergence."""
    return sum(option.cost for option in mix.values())


def choose(choices: Choices, budget: int) -> Mix:
    """The best mix of at most `budget` bytes: along the path, then whatever still fits.

    Raises:
        DataError: even the smallest types take more.
    """
    mix, steps = path(choices)
    room = budget - size_of(mix)
    if room < 0:
        raise DataError(
            f"the smallest types take {size_of(mix):,} bytes, {-room:,} more than there are",
            hint="allow smaller types, or more bytes",
        )
    blocked: set[str] = set()
    for step in steps:
        if step.bytes <= room and step.name not in blocked:
            mix[step.name] = step.option
            room -= step.bytes
        else:
            blocked.add(step.name)
    return _filled(mix, choices, room)


def _filled(mix: Mix, choices: Choices, room: int) -> Mix:
    """Spend what is left on single changes, the most useful first; options off the hull count now."""
    while True:
        better = [
            (mix[name].cost - option.cost, name, option)
            for name, options in choices.items()
            for option in options
            if option.bytes - mix[name].bytes <= room and option.cost < mix[name].cost
        ]
        if not better:
            return mix
        _, name, option = max(better, key=lambda one: one[0])
        room -= option.bytes - mix[name].bytes
        mix = mix | {name: option}
