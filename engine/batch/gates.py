"""Gates over figures: `perplexity <= 12`, `accuracy lower bound > 0.6`, `no case tagged critical may break`.

    FIGURE OP NUMBER                      acc_norm >= 0.6
    WORDS lower|upper bound OP NUMBER     mean KLD upper bound < 0.01     figures `.low`/`.high`, or `_error` times 1.96
    pNN FIGURE OP NUMBER                  p95 TTFT < 0.5                  figure `ttft_s.p95`
    no case [tagged TAG] may break        figures `broken`, `broken.TAG`, counted against a baseline
    no metric may get worse               figure `worse`

Invariant: a figure that is missing or not a number fails the gate; nothing passes because nothing was measured.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

import msgspec
from lathe.engine.errors import ConfigError
from lathe.engine.jobs.values import Figure

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)"
_OPERATOR = r"\s*(<=|>=|==|!=|<|>)\s*"
_PLAIN = re.compile(rf"\s*([A-Za-z_][\w@./~-]*){_OPERATOR}{_NUMBER}\s*")
_BOUND = re.compile(rf"\s*([A-Za-z_][\w@./~ -]*?)\s+(lower|upper)\s+bound{_OPERATOR}{_NUMBER}\s*", re.IGNORECASE)
_PERCENTILE = re.compile(rf"\s*p(\d{{1,2}})\s+([A-Za-z_][\w@./~ -]*?){_OPERATOR}{_NUMBER}\s*", re.IGNORECASE)
_NO_CASE = re.compile(r"\s*no case(?:s)?(?: tagged ([\w.-]+))? may break\s*", re.IGNORECASE)
_NO_METRIC = re.compile(r"\s*no (?:metric|figure) may get worse\s*", re.IGNORECASE)
_COMPARE = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne
}  # fmt: skip
_SPOKEN = {"accuracy": "acc", "ttft": "ttft_s", "latency": "total_s", "kld": "mean_kld", "ppl": "perplexity"}
_Z = 1.959964
"""Standard errors on either side of a 95 % interval."""


class Gate(msgspec.Struct, frozen=True):
    """One comparison of a figure with a bound."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.bound:g}"

    def value(self, figures: Mapping[str, Figure]) -> float | None:
        """The number that is compared; None where it was not measured."""
        value = figures.get(self.figure)
        if value is None:
            value = _from_error(self.figure, figures)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return None
        return float(value)

    def passes(self, figures: Mapping[str, Figure]) -> bool:
        """Whether the figure is there, is a number and satisfies the bound."""
        value = self.value(figures)
        return value is not None and bool(_COMPARE[self.comparison](value, self.bound))


def parse_gate(text: str) -> Gate:
    """Read a gate; raises ConfigError."""
    if match := _NO_CASE.fullmatch(text):
        return Gate(f"broken.{match.group(1)}" if match.group(1) else "broken", "==", 0)
    if _NO_METRIC.fullmatch(text):
        return Gate("worse", "==", 0)
    if match := _BOUND.fullmatch(text):
        name, side, comparison, number, percent = match.groups()
        return Gate(
            f"{_figure(name)}.{'low' if side.lower() == 'lower' else 'high'}", comparison, _number(number, percent)
        )
    if match := _PERCENTILE.fullmatch(text):
        share, name, comparison, number, percent = match.groups()
        return Gate(f"{_figure(name)}.p{share}", comparison, _number(number, percent))
    if match := _PLAIN.fullmatch(text):
        name, comparison, number, percent = match.groups()
        return Gate(name, comparison, _number(number, percent))
    raise ConfigError(f"{text!r} is not a gate; write `figure <= number`", hint="or `figure lower bound > number`")


def _figure(words: str) -> str:
    """A figure's name as it is spoken: `mean KLD` is `mean_kld`."""
    if " " not in words.strip():
        return _SPOKEN.get(words.lower(), words)
    return "_".join(words.lower().split())


def _number(text: str, percent: str) -> float:
    return float(text) / 100 if percent else float(text)


def _from_error(figure: str, figures: Mapping[str, Figure]) -> float | None:
    """A bound of a figure that comes with its standard error."""
    name, _, side = figure.rpartition(".")
    value, error = figures.get(name), figures.get(f"{name}_error")
    if side not in ("low", "high") or not isinstance(value, int | float) or not isinstance(error, int | float):
        return None
    return value + (_Z if side == "high" else -_Z) * error
