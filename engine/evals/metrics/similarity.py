"""Embeddings: how close the model puts a text to its target.

Invariant: the vectors are of unit length, so the cosine is their product.
"""

from __future__ import annotations

import msgspec
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, Statistics
from lathe.engine.evals.values import Item, Response, Task


class CosineOptions(msgspec.Struct, frozen=True):
    minimum: float | None = None
    """Given: the share of pairs at least that close, instead of the mean."""


def cosine(name: str, task: Task, options: Options) -> Metric:
    """Cosine of text and target; of several targets the closest."""
    minimum = given.read(CosineOptions, name, options).minimum

    def judge(_: Item, response: Response) -> Statistics:
        closest = max(response.vector)
        return (closest if minimum is None else float(closest >= minimum)), 1.0

    return Metric(name=name, judge=judge, share=minimum is not None, needs_target=True)
