"""Gates over a step's figures: `perplexity <= 12`, `tokens_per_s >= 100`.

Invariant: a figure that is missing or not a number fails the gate; nothing passes because nothing was measured.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

import msgspec
from lathe.engine.errors import ConfigError
from lathe.engine.jobs.values import Figure

_GATE = re.compile(r"\s*([A-Za-z_][\w@.-]*)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_COMPARE = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne
}  # fmt: skip


class Gate(msgspec.Struct, frozen=True):
    """One comparison of a figure with a bound."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.bound:g}"

    def passes(self, figures: Mapping[str, Figure]) -> bool:
        """Whether the figure is there, is a number and satisfies the bound."""
        value = figures.get(self.figure)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return False
        return bool(_COMPARE[self.comparison](value, self.bound))


def parse_gate(text: str) -> Gate:
    """Read `figure comparison number`."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a gate; write `figure <= number`")
    return Gate(match.group(1), match.group(2), float(match.group(3)))
