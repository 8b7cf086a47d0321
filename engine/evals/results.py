"""The values of finished work: records of cases, figures with intervals, runs. They travel to fronts and stores.

Pure. Invariant: a record keeps everything that its judgement rests on (prompt, answer, log-probabilities, hashes), so a
figure can be audited and computed again without the model.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.evals.values import Item, Response, Task
from lathe.engine.jobs.values import Figure

Statistics = tuple[float, ...]
ReportStyle = Literal["markdown", "html", "json", "junit", "jsonl"]
CONFIDENCE = 0.95
TOLERANCE = 0.01
"""Share of the baseline's figure that a difference must surely exceed to be material."""


class Interval(msgspec.Struct, frozen=True):
    """A figure with the bounds it lies between at `CONFIDENCE`."""

    value: float
    low: float
    high: float
    n: int
    """Cases behind it."""
    method: str = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of one run minus that of another over the same cases."""

    value: float
    low: float
    high: float
    p: float
    """Probability of a difference at least this large, if there were none."""
    n: int
    """Cases that both runs have."""
    detectable: float | None
    """Smallest true difference that so many cases find with a power of 0.8; None: cannot be told."""
    test: str
    """`McNemar` or `paired bootstrap`."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One case as it was asked, answered and judged."""

    task: str
    case: str
    variant: str = ""
    repeat: int = 0
    kind: str
    item_sha256: str
    """Equal in two runs: the same question."""
    tags: tuple[str, ...] = ()
    prompt: str = ""
    continuations: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    response: Response = Response()
    statistics: dict[str, Statistics] = {}
    """Metric -> additive statistics; a metric that does not apply is absent."""
    values: dict[str, float] = {}
    """Metric -> the case's own figure."""
    notes: dict[str, str] = {}
    """Metric -> why, where it says so: how a program failed, what the judge's odds were."""
    choice: int | None = None
    """Of kind choice: what the model finds most likely."""
    failure: Failure | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names it within its run."""
        return self.task, self.case, self.variant, self.repeat

    @property
    def label(self) -> str:
        """The key for people."""
        variant = f"~{self.variant}" if self.variant else ""
        return f"{self.task}/{self.case}{variant}" + (f"#{self.repeat}" if self.repeat else "")

    def answer(self) -> str:
        """What the model said, for people."""
        if self.failure is not None:
            return f"failed: {self.failure.message}"
        if self.choice is not None:
            return self.continuations[self.choice].strip()
        if self.kind == "perplexity":
            tokens = sum(score.tokens for score in self.response.scores)
            return f"{sum(score.logprob for score in self.response.scores):.3f} over {tokens} tokens"
        return self.response.text


def asked(item: Item) -> dict[str, Any]:
    """A record's fields that come from the question."""
    return {
        "task": item.task, "case": item.case, "variant": item.variant, "repeat": item.repeat, "kind": item.kind,
        "item_sha256": item.sha256(), "tags": item.tags, "prompt": item.prompt_text(),
        "continuations": item.continuations, "gold": item.gold, "targets": item.targets,
    }  # fmt: skip


class TaskSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The figures of one task."""

    task: str
    kind: str
    primary: str
    metrics: dict[str, Interval] = {}
    better: dict[str, Literal["higher", "lower"]] = {}
    cases: int = 0
    """Cases asked, variants and repeats not counted."""
    failed: int = 0
    """Answers that did not come."""
    tags: dict[str, Interval] = {}
    """Tag -> the primary metric over its cases."""
    invariance: dict[str, Interval] = {}
    """Transform -> share of cases answered like the original."""
    percentiles: dict[str, dict[str, float]] = {}
    """`ttft_s`, `total_s`, ... -> p50, p95, p99."""


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was chosen for a run besides suite and model."""

    variables: dict[str, str | int | float | bool] = {}
    limit: int | None = None
    seed: int | None = None
    tags: tuple[str, ...] = ()
    skip_bad: bool = False


class EvalRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a suite on a model."""

    id: str
    """`e-12`."""
    suite: str
    suite_version: str = "1"
    suite_sha256: str = ""
    path: str = ""
    """The suite's file."""
    model: str
    model_key: str = ""
    """The model's sha256, or its identity while it is not hashed."""
    settings: RunSettings = RunSettings()
    state: str = "running"
    created_at: float = 0.0
    finished_at: float | None = None
    seconds: float = 0.0
    """Time spent asking, over all attempts, by the monotonic clock."""
    total: int = 0
    """Answers wanted."""
    done: int = 0
    failed: int = 0
    cached: int = 0
    skipped: tuple[str, ...] = ()
    """Bad cases that were left out."""
    summaries: tuple[TaskSummary, ...] = ()
    tasks: tuple[Task, ...] = ()
    """Declarations without cases, to compute figures again."""
    gates: tuple[str, ...] = ()
    release: str = ""
    aliases: tuple[str, ...] = ()

    def figures(self) -> dict[str, Figure]:
        """Headline numbers as a job reports them: `task.metric`, and bare `metric` where one task alone has it."""
        figures: dict[str, Figure] = {
            "run": self.id, "cases": self.total, "failed": self.failed, "cached": self.cached, "seconds": self.seconds,
        }  # fmt: skip
        measured: dict[str, int] = {}
        for summary in self.summaries:
            for name in (*summary.metrics, *summary.percentiles):
                measured[name] = measured.get(name, 0) + 1
        for summary in self.summaries:
            for name, interval in summary.metrics.items():
                for prefix in (f"{summary.task}.", "") if measured[name] == 1 else (f"{summary.task}.",):
                    figures |= {
                        f"{prefix}{name}": interval.value, f"{prefix}{name}.low": interval.low,
                        f"{prefix}{name}.high": interval.high, f"{prefix}{name}.n": interval.n,
                    }  # fmt: skip
            for name, shares in summary.percentiles.items():
                for share, value in shares.items():
                    figures[f"{summary.task}.{name}.{share}"] = value
                    if measured[name] == 1 or len(self.summaries) == 1:
                        figures[f"{name}.{share}"] = value
            for transform, interval in summary.invariance.items():
                figures[f"{summary.task}.invariance.{transform}"] = interval.value
                figures[f"{summary.task}.invariance.{transform}.low"] = interval.low
        return figures


Kind = Literal["fixed", "broken", "changed", "same"]
Finding = Literal["better", "worse", "noise", "same"]


class CaseChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One case in both runs."""

    label: str
    task: str
    case: str
    kind: Kind
    tags: tuple[str, ...] = ()
    prompt: str = ""
    targets: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    before_value: float | None = None
    after_value: float | None = None


class MetricComparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure in both runs, over the cases that both have."""

    task: str
    metric: str
    primary: bool
    better: Literal["higher", "lower"]
    before: Interval
    after: Interval
    difference: Difference
    p_adjusted: float
    """For all primary metrics together; of the others, for all metrics together."""
    finding: Finding
    material: bool = False
    """The whole interval of the difference lies beyond the tolerance."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run against its baseline."""

    base: EvalRun
    other: EvalRun
    metrics: tuple[MetricComparison, ...]
    changes: tuple[CaseChange, ...]
    """Broken first, then fixed, then changed; cases that are the same are only counted."""
    counts: dict[str, int]
    """fixed, broken, changed, same, unpaired."""
    tags: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    warnings: tuple[str, ...] = ()

    def figures(self, waived: frozenset[str] = frozenset()) -> dict[str, Figure]:
        """What gates can ask about; cases in `waived` (`task/case`) do not count as broken."""
        broken = [
            change for change in self.changes
            if change.kind == "broken" and f"{change.task}/{change.case}" not in waived
        ]  # fmt: skip
        primary = [metric for metric in self.metrics if metric.primary and metric.material]
        figures: dict[str, Figure] = {
            "baseline": self.base.id, "broken": len(broken), "fixed": self.counts["fixed"],
            "changed": self.counts["changed"], "unpaired": self.counts["unpaired"],
            "worse": sum(metric.finding == "worse" for metric in primary),
            "better": sum(metric.finding == "better" for metric in primary),
        }  # fmt: skip
        for tag in self.tags:
            figures[f"broken.{tag}"] = sum(tag in change.tags for change in broken)
        for metric in self.metrics:
            name = f"delta.{metric.task}.{metric.metric}"
            figures |= {
                name: metric.difference.value, f"{name}.low": metric.difference.low,
                f"{name}.high": metric.difference.high, f"{name}.p": metric.difference.p,
            }  # fmt: skip
        return figures


class GateResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One gate and what became of it."""

    gate: str
    """As it was written."""
    figure: str
    value: float | None
    passed: bool
    waived: str | None = None
    """The reason that excuses a failure."""

    @property
    def ok(self) -> bool:
        """Passed, or excused."""
        return self.passed or self.waived is not None

    def __str__(self) -> str:
        shown = "not measured" if self.value is None else f"{self.value:.6g}"
        word = "passed" if self.passed else f"waived ({self.waived})" if self.waived else "MISSED"
        return f"{self.gate}: {word}, {self.figure} is {shown}"


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All gates together."""

    passed: bool
    gates: tuple[GateResult, ...]
    waivers: tuple[str, ...] = ()
    """Those that hold today."""
    expired: tuple[str, ...] = ()


class SuiteInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A suite as lists show it."""

    name: str
    version: str = ""
    description: str = ""
    path: str = ""
    origin: Literal["shipped", "workspace", "file"] = "file"
    tasks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Variables that a run must give, for the suite has no value for them."""
    problem: str | None = None
    """Why it cannot be read."""
