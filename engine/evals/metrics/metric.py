"""What a metric is.

Each case yields a short vector of numbers; a figure is a function of the vectors' sum. A mean is (value, 1), perplexity
(log-probability, tokens), corpus BLEU its n-gram counts. Invariant: so every figure can be computed over any resampling
of cases, and intervals mean the same thing for all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.evals.values import Fields, Item, Response, Task

if TYPE_CHECKING:
    from lathe.engine.workbench import Workbench

Sums = npt.NDArray[np.float64]
Statistics = tuple[float, ...]


class Finding(msgspec.Struct, frozen=True):
    """Statistics of a case, and why."""

    statistics: Statistics | None
    """None: the metric does not apply to it."""
    note: str


class Consultation:
    """What a metric may use that asks a model, too: the judge of a suite, an embedder."""

    def __init__(self, workbench: Workbench, variables: Fields) -> None:
        self.workbench = workbench
        self.variables = variables


Found = Statistics | Finding | None
Judge = Callable[[Item, Response], Found]
Consult = Callable[[Consultation, Item, Response], Awaitable[Found]]
Combine = Callable[[Sums], Sums]
"""Sums of shape (..., k) to figures of shape (...)."""


def mean(sums: Sums) -> Sums:
    """Of statistics (value, weight)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Sums = sums[..., 0] / sums[..., 1]
    return result


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A named judgement of one task's cases."""

    name: str
    judge: Judge | None = None
    """Its answer None: the metric does not apply to the case."""
    consult: Consult | None = None
    """In place of `judge`, where another model has to be asked."""
    asks: str | None = None
    """The model that `consult` asks; `${NAME}` stands for a variable of the suite."""
    combine: Combine = mean
    better: Literal["higher", "lower"] = "higher"
    share: bool = False
    """Each case is right or wrong: statistics are (0 or 1, 1), and a Wilson interval applies."""
    needs_target: bool = False
    timed: bool = False
    """Looks at time, so that answers from the cache will not do."""

    def of(self, statistics: Statistics) -> float:
        """The figure of a single case."""
        return float(self.combine(np.asarray([statistics], dtype=np.float64))[0])


Options = dict[str, Any]
Factory = Callable[[str, Task, Options], Metric]


def verdict(name: str, judge: Callable[[Item, Response], bool], *, needs_target: bool = True) -> Metric:
    """A metric of right or wrong."""

    def statistics(item: Item, response: Response) -> Statistics:
        return float(judge(item, response)), 1.0

    return Metric(name=name, judge=statistics, share=True, needs_target=needs_target)
