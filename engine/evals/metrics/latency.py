"""Time as a metric: to the first token, to the last, tokens per second.

Invariant: tasks with such a metric are never answered from the cache, for a cached time is another day's.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, Statistics
from lathe.engine.evals.values import Item, Response, Task


class BoundOptions(msgspec.Struct, frozen=True):
    maximum: float | None = None
    """Given: the share of cases within the bound, instead of the mean."""
    minimum: float | None = None


def ttft(name: str, task: Task, options: Options) -> Metric:
    """Seconds to the first token."""
    return _metric(name, options, lambda response: response.ttft_s, "lower")


def total(name: str, task: Task, options: Options) -> Metric:
    """Seconds to the last token."""
    return _metric(name, options, lambda response: response.total_s, "lower")


def decode_speed(name: str, task: Task, options: Options) -> Metric:
    """Tokens per second after the first."""
    return _metric(name, options, lambda response: response.tokens_per_s, "higher")


def _metric(name: str, options: Options, read: Callable[[Response], float | None], better: str) -> Metric:
    bounds = given.read(BoundOptions, name, options)
    bounded = bounds.minimum is not None or bounds.maximum is not None

    def judge(_: Item, response: Response) -> Statistics | None:
        value = read(response)
        if value is None:
            return (0.0, 1.0) if bounded else None
        if not bounded:
            return value, 1.0
        low = bounds.minimum is None or value >= bounds.minimum
        return float(low and (bounds.maximum is None or value <= bounds.maximum)), 1.0

    direction = "higher" if bounded else better
    return Metric(name=name, judge=judge, better=direction, share=bounded, timed=True)  # type: ignore[arg-type]
