"""Two runs side by side: case by case, and figure by figure with the noise told from the difference.

Cases are paired by name and by the hash of their question, so that a changed suite is never mistaken for a changed
model. Primary metrics are tested together (Holm's correction), the others told with their own p. Invariant: `worse` and
`better` are said only of differences that noise does not explain, and `material` only of those whose interval lies
beyond the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from lathe.engine.errors import UsageError
from lathe.engine.evals import statistics as stats
from lathe.engine.evals.metrics.metric import Metric
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.results import (
    TOLERANCE,
    CaseChange,
    Comparison,
    EvalRun,
    Finding,
    Kind,
    MetricComparison,
    Record,
)
from lathe.engine.evals.summary import interval, statistics_by_case
from lathe.engine.evals.values import Task

_MOVED = 0.02
"""Relative move of a single case's figure that is worth showing."""


def compare(
    base: EvalRun, before: Sequence[Record], other: EvalRun, after: Sequence[Record], tolerance: float = TOLERANCE
) -> Comparison:
    """Compare a run with its baseline.

    Raises:
        UsageError: they share no question.
    """
    earlier = {record.key: record for record in before}
    pairs = [
        (earlier[record.key], record)
        for record in after
        if record.key in earlier and earlier[record.key].item_sha256 == record.item_sha256
    ]
    if not pairs:
        raise UsageError(
            f"{base.id} ({base.suite}) and {other.id} ({other.suite}) share no question",
            hint="compare runs of the same suite with the same variables, seed and limit",
        )
    unpaired = len(before) + len(after) - 2 * len(pairs)
    tasks = {task.id: task for task in other.tasks}
    changes = [_change(tasks[pair[1].task], *pair) for pair in pairs]
    counts = {kind: sum(change.kind == kind for change in changes) for kind in ("fixed", "broken", "changed", "same")}
    metrics = _metrics(other, pairs, tolerance)
    order = {"broken": 0, "fixed": 1, "changed": 2}
    told = sorted((change for change in changes if change.kind != "same"), key=lambda change: order[change.kind])
    return Comparison(
        base=base, other=other, metrics=metrics, changes=tuple(told), counts=counts | {"unpaired": unpaired},
        tags=tuple(sorted({tag for _, record in pairs for tag in record.tags})), tolerance=tolerance,
        warnings=tuple(_warnings(base, other, metrics, unpaired, before, after)),
    )  # fmt: skip


def _metrics(
    run: EvalRun, pairs: Sequence[tuple[Record, Record]], tolerance: float
) -> tuple[MetricComparison, ...]:  # fmt: skip
    found: list[MetricComparison] = []
    for task in run.tasks:
        metrics = metrics_of(task)
        primary = next((metric.name for metric in metrics if metric.name == task.primary), metrics[0].name)
        mine = [pair for pair in pairs if pair[1].task == task.id]
        compared = (_metric(task, metric, metric.name == primary, mine) for metric in metrics)
        found += [one for one in compared if one is not None]
    main = stats.holm([one.difference.p for one in found if one.primary])
    every = stats.holm([one.difference.p for one in found])
    together = iter(main)
    return tuple(
        _judged(one, next(together) if one.primary else adjusted, tolerance)
        for one, adjusted in zip(found, every, strict=True)
    )


def _metric(
    task: Task, metric: Metric, primary: bool, pairs: Sequence[tuple[Record, Record]]
) -> MetricComparison | None:  # fmt: skip
    """A figure over the cases that both runs answered."""
    answered = [pair for pair in pairs if pair[0].failure is None and pair[1].failure is None]
    first, second = [pair[0] for pair in answered], [pair[1] for pair in answered]
    before, after = statistics_by_case(metric.name, first), statistics_by_case(metric.name, second)
    cases = [case for case in before if case in after]
    if not cases:
        return None
    rows = np.stack([before[case] for case in cases]), np.stack([after[case] for case in cases])
    once = metric.share and all(bool((part[:, 1] == 1).all()) for part in rows)
    difference = (
        stats.compare_shares(rows[0][:, 0], rows[1][:, 0])
        if once
        else stats.compare_figures(rows[0], rows[1], metric.combine)
    )
    earlier, later = interval(metric, first), interval(metric, second)
    if earlier is None or later is None or not math.isfinite(difference.low + difference.high):
        return None
    return MetricComparison(
        task=task.id, metric=metric.name, primary=primary, better=metric.better, before=earlier, after=later,
        difference=difference, p_adjusted=1.0, finding="noise",
    )  # fmt: skip


def _judged(metric: MetricComparison, p_adjusted: float, tolerance: float) -> MetricComparison:
    difference = metric.difference
    finding: Finding = "noise"
    if difference.value == 0 and difference.low == difference.high == 0:
        finding = "same"
    elif p_adjusted < stats.ALPHA:
        finding = "better" if (difference.value > 0) is (metric.better == "higher") else "worse"
    bound = tolerance * abs(metric.before.value)
    material = finding in ("better", "worse") and min(abs(difference.low), abs(difference.high)) > bound
    material = material and difference.low * difference.high > 0
    return msgspec.structs.replace(metric, p_adjusted=p_adjusted, finding=finding, material=material)


def _change(task: Task, before: Record, after: Record) -> CaseChange:
    metric = next((metric for metric in metrics_of(task) if metric.name == task.primary), metrics_of(task)[0])
    first, second = before.values.get(metric.name), after.values.get(metric.name)
    return CaseChange(
        label=after.label, task=after.task, case=after.case, kind=_kind(metric, before, after), tags=after.tags,
        prompt=after.prompt, targets=after.targets, before=before.answer(), after=after.answer(), before_value=first,
        after_value=second,
    )  # fmt: skip


def _kind(metric: Metric, before: Record, after: Record) -> Kind:
    if before.failure is not None or after.failure is not None:
        if before.failure is not None and after.failure is not None:
            return "same"
        return "broken" if after.failure is not None else "fixed"
    first, second = before.values.get(metric.name), after.values.get(metric.name)
    if metric.share and first is not None and second is not None and (first > 0.5) != (second > 0.5):
        return "fixed" if second > 0.5 else "broken"
    if before.kind == "perplexity" and first and second:
        return "changed" if abs(second / first - 1) > _MOVED else "same"
    if before.choice is not None or before.kind == "similarity":
        return "changed" if before.choice != after.choice else "same"
    return "changed" if before.response.text != after.response.text else "same"


def _warnings(
    base: EvalRun, other: EvalRun, metrics: Sequence[MetricComparison], unpaired: int, before: Sequence[Record],
    after: Sequence[Record],
) -> list[str]:  # fmt: skip
    told = []
    if base.suite_sha256 != other.suite_sha256:
        told.append(f"the suite changed between {base.id} and {other.id}; only equal questions are compared")
    if unpaired:
        told.append(f"{unpaired} answers have no counterpart")
    if base.release != other.release:
        told.append(f"measured by other releases of Lathe: {base.release} and {other.release}")
    failed = sum(record.failure is not None for record in (*before, *after))
    if failed:
        told.append(f"{failed} answers failed and stand in no figure")
    primaries = sum(metric.primary for metric in metrics)
    if len(metrics) > 1:
        chance = 1 - (1 - stats.ALPHA) ** len(metrics)
        told.append(
            f"{len(metrics)} figures are compared: by chance alone one of them would look different with a probability "
            f"of up to {chance:.0%}; findings are corrected for it (Holm, {primaries} primary)"
        )
    return told
