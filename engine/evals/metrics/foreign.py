"""A figure that another program judged: case by case its number, and here only the mean.

Invariant: it judges nothing itself, so a suite cannot use it; runs of the harness have it.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options
from lathe.engine.evals.values import Task


class MeanOptions(msgspec.Struct, frozen=True):
    better: Literal["higher", "lower"] = "higher"
    share: bool = False
    """Every case is 0 or 1."""


def mean(name: str, task: Task, options: Options) -> Metric:
    """The mean of what was recorded."""
    chosen = given.read(MeanOptions, name, options)
    return Metric(name=name, better=chosen.better, share=chosen.share)
