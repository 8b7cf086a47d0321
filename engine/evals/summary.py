"""From records to figures with intervals.

Invariant: only originals count towards a task's metrics; variants of a transform count towards its invariance; repeats
of a case are one draw. What failed is counted, and no figure hides it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from lathe.engine.evals import statistics as stats
from lathe.engine.evals.metrics.metric import Metric, mean
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.results import Interval, Record, TaskSummary
from lathe.engine.evals.statistics import Floats
from lathe.engine.evals.values import Task

_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def summarize(tasks: Iterable[Task], records: Sequence[Record]) -> tuple[TaskSummary, ...]:
    """The figures of every task."""
    return tuple(_summary(task, [record for record in records if record.task == task.id]) for task in tasks)


def statistics_by_case(metric: str, records: Iterable[Record]) -> dict[str, np.ndarray]:
    """Case -> its statistics, repeats added up; failed cases and those where the metric does not apply are absent."""
    sums: dict[str, np.ndarray] = {}
    for record in records:
        if record.failure is None and not record.variant and metric in record.statistics:
            row = np.asarray(record.statistics[metric], dtype=np.float64)
            sums[record.case] = sums[record.case] + row if record.case in sums else row
    return sums


def interval(metric: Metric, records: Sequence[Record]) -> Interval | None:
    """A metric over cases: Wilson's interval where each case is one right or wrong, else the bootstrap's.

    None where nothing was measured, or what was measured is not finite: unknown is not a number.
    """
    sums = statistics_by_case(metric.name, records)
    if not sums:
        return None
    rows: Floats = np.stack(list(sums.values()))
    if metric.share and bool((rows[:, 1] == 1).all()):
        return stats.wilson(float(rows[:, 0].sum()), len(rows))
    found = stats.bootstrap(rows, metric.combine)
    if found.low == found.high and metric.combine is mean and 0 <= found.value <= 1:
        # Cases that are all alike leave the bootstrap nothing to draw; of what lies in [0, 1], a share spreads most.
        return stats.wilson(found.value * len(rows), len(rows))
    return found if math.isfinite(found.value + found.low + found.high) else None


def _summary(task: Task, records: list[Record]) -> TaskSummary:
    metrics = metrics_of(task)
    originals = [record for record in records if not record.variant]
    primary = next((metric for metric in metrics if metric.name == task.primary), metrics[0])
    return TaskSummary(
        task=task.id, kind=task.kind, primary=primary.name,
        metrics=_known({metric.name: interval(metric, originals) for metric in metrics}),
        better={metric.name: metric.better for metric in metrics},
        cases=len({record.case for record in originals}),
        failed=sum(record.failure is not None for record in records),
        tags=_known({tag: interval(primary, tagged) for tag, tagged in _by_tag(originals).items()}),
        invariance=_known({name: _invariance(name, primary, records) for name in task.transforms}),
        percentiles=_percentiles(originals) if task.kind in ("generate", "rag", "retrieval") else {},
    )  # fmt: skip


def _by_tag(records: list[Record]) -> dict[str, list[Record]]:
    tags = sorted({tag for record in records for tag in record.tags})
    found = {tag: [record for record in records if tag in record.tags] for tag in tags}
    return {tag: tagged for tag, tagged in found.items() if len(tagged) < len(records)}


def _known(intervals: dict[str, Interval | None]) -> dict[str, Interval]:
    return {name: one for name, one in intervals.items() if one is not None}


def _invariance(transform: str, primary: Metric, records: list[Record]) -> Interval | None:
    """Share of cases whose variant is answered like the original: the same choice, or the same verdict."""
    originals = {(record.case, record.repeat): record for record in records if not record.variant}
    alike = []
    for record in records:
        original = originals.get((record.case, record.repeat))
        if record.variant != transform or original is None or record.failure or original.failure:
            continue
        alike.append(_same(primary, original, record))
    return stats.wilson(sum(alike), len(alike)) if alike else None


def _same(primary: Metric, original: Record, variant: Record) -> bool:
    if original.choice is not None and variant.choice is not None:
        return original.continuations[original.choice] == variant.continuations[variant.choice]
    if primary.share:
        return original.values.get(primary.name) == variant.values.get(primary.name)
    return original.response.text.strip() == variant.response.text.strip()


def _percentiles(records: list[Record]) -> dict[str, dict[str, float]]:
    """Of times as they were measured, now or when the answer was first given."""
    found: dict[str, dict[str, float]] = {}
    for name in ("ttft_s", "total_s", "tokens_per_s"):
        values = [value for record in records if (value := getattr(record.response, name)) is not None]
        shares = {share: stats.percentile(values, at) for share, at in _SHARES.items()}
        known = {share: value for share, value in shares.items() if value is not None}
        if known:
            found[name] = known
    return found
