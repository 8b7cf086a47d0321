"""Eval runs as rows: runs, figures with intervals, cases with what became of them, gates. Pure.

Signs that carry the meaning without colour: `v` worse, `^` better, `=` the same, `?` within the noise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from lathe.engine.evals.results import CaseChange, Comparison, EvalRun, Interval, MetricComparison, Record, Verdict
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.steps import EvalStep
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.views.rows import eta_of, rate_of, state_of
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, bar

RUNS = (
    Column("id", least=4, most=7, sort="number"),
    Column("baseline", rank=1, most=12),
    Column("suite", least=6, most=16, sort="suite"),
    Column("model", least=12, most=40, flex=True, sort="model"),
    Column("when", rank=4, least=12, sort="created"),
    Column("score", ">", least=6, sort="score"),
    Column("95 %", rank=5, least=11, most=13),
    Column("cases", ">", rank=3, least=5, most=9),
    Column("state", least=7, most=15, sort="state"),
)
FIGURES = (
    Column("figure", least=14, most=32, flex=True),
    Column("value", ">", least=6, most=9),
    Column("95 %", least=15, most=20),
    Column("n", ">", rank=1, least=3, most=7),
)
DIFFERENCES = (
    Column("figure", least=14, most=32, flex=True),
    Column("base", ">", rank=2, least=6, most=9),
    Column("value", ">", least=6, most=9),
    Column("change", ">", rank=1, least=7, most=9),
    Column("95 %", least=15, most=20),
    Column("n", ">", rank=3, least=3, most=7),
    Column("verdict", least=7, most=13),
)
CASES = (
    Column("case", least=24, most=44, flex=True, sort="case"),
    Column("what", rank=4, least=6, most=9, sort="kind"),
    Column("tags", rank=6, most=14),
    Column("value", ">", least=5, most=7, sort="after"),
    Column("expected", rank=5, least=8, most=26, flex=True),
    Column("answer", rank=2, least=8, most=44, flex=True),
)
CHANGES = (
    *CASES[:1],
    Column("what", least=8, most=9, sort="kind"),
    CASES[2],
    Column("base", ">", rank=1, least=5, most=7, sort="before"),
    *CASES[3:],
)
_KINDS = {"broken": ("v broken", "bad"), "fixed": ("^ fixed", "good"), "changed": ("~ changed", "warn")}


# -- runs ------------------------------------------------------------------------------------------------------------
def open_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Eval jobs that wait or run, newest first."""
    return [job for job in jobs if isinstance(job.step, EvalStep) and job.state not in FINAL]


def runless(jobs: Sequence[Job], newest: float) -> list[Job]:
    """Jobs that may stand for themselves: open ones, and those that failed since the newest run began."""
    failed = [
        job for job in jobs if isinstance(job.step, EvalStep) and job.state == "failed" and job.created_at > newest
    ]
    return [*failed, *open_jobs(jobs)]


def job_of(run: EvalRun, jobs: Sequence[Job], names: dict[str, str]) -> Job | None:
    """The job that works at a run; `names` maps references to models' names."""
    if run.state == "done":
        return None
    for job in jobs:
        step = job.step
        if not isinstance(step, EvalStep) or names.get(step.model, step.model) != run.model:
            continue
        same = (step.limit, step.seed) == (run.settings.limit, run.settings.seed)
        if same and step.suite in (run.suite, run.path):
            return job
    return None


def run_rows(
    runs: Sequence[EvalRun], jobs: Sequence[Job], names: dict[str, str], signs: dict[str, str], now: float,
    glyphs: Glyphs,
) -> list[Row]:  # fmt: skip
    """Runs, newest first; above them the jobs that have no run yet."""
    working = {run.id: job for run in runs if (job := job_of(run, open_jobs(jobs), names)) is not None}
    taken = {job.id for job in working.values()}
    newest = max((run.created_at for run in runs), default=0.0)
    rows = [_job_row(job, names, now, glyphs) for job in runless(jobs, newest) if job.id not in taken]
    return rows + [_run_row(run, working.get(run.id), signs.get(run.id, ""), now, glyphs) for run in runs]


def _job_row(job: Job, names: dict[str, str], now: float, glyphs: Glyphs) -> Row:
    assert isinstance(job.step, EvalStep)
    model, suite = names.get(job.step.model, job.step.model), job.step.suite.rpartition("/")[2]
    cells: tuple[Cell, ...] = (job.id, "", suite, model, _when(job.created_at), formats.NONE, formats.NONE,
                               formats.NONE, state_of(job, now, glyphs))  # fmt: skip
    return Row(job.id, cells, {"suite": suite, "model": model, "state": job.state, "created": job.created_at})


def _run_row(run: EvalRun, job: Job | None, sign: str, now: float, glyphs: Glyphs) -> Row:
    score = headline(run)
    cells: tuple[Cell, ...] = (
        run.id,
        (" ".join(run.aliases), "accent"),
        run.suite,
        run.model,
        (_when(run.created_at), "dim"),
        (number(score.value) if score else formats.NONE, "value"),
        (f"{number(score.low)} .. {number(score.high)}" if score else formats.NONE, "dim"),
        (f"{run.done}/{run.total}" if run.done != run.total else str(run.total), "dim"),
        _run_state(run, job, sign, now, glyphs),
    )
    fields: dict[str, str | float | None] = {
        "id": run.id, "number": float(run.id.removeprefix("e-")), "suite": run.suite, "model": run.model,
        "created": run.created_at, "score": score.value if score else None, "state": run.state,
        "baseline": " ".join(run.aliases),
    }  # fmt: skip
    return Row(run.id, cells, fields)


def _run_state(run: EvalRun, job: Job | None, sign: str, now: float, glyphs: Glyphs) -> tuple[str, str]:
    if job is not None and job.state == "running":
        share = run.done / run.total if run.total else None
        eta = eta_of(job, now)
        return f"{glyphs.busy} {formats.percent(share)}{f' {eta}' if eta != formats.NONE else ''}", "accent"
    if job is not None:
        return state_of(job, now, glyphs)
    if run.state == "done":
        ink = {"v": "bad", "^": "good"}.get(sign[:1], "good")
        return f"{glyphs.bad if run.failed else glyphs.good} done {sign}".rstrip(), "warn" if run.failed else ink
    if run.state == "running":
        return f"{glyphs.warn} stopped", "warn"
    return f"{glyphs.warn} {run.state}"[:15], "warn"


def headline(run: EvalRun) -> Interval | None:
    """The primary figure of the first task."""
    for summary in run.summaries:
        if summary.primary in summary.metrics:
            return summary.metrics[summary.primary]
    return None


def baseline_for(run: EvalRun, runs: Sequence[EvalRun]) -> EvalRun | None:
    """The newest named run of the same suite, unless the run is one itself."""
    if run.aliases:
        return None
    return next((other for other in runs if other.aliases and other.suite == run.suite and other.state == "done"), None)


def progress_lines(run: EvalRun, job: Job | None, now: float, width: int, glyphs: Glyphs) -> list[Line]:
    """How far a run is: a bar, the pace, what went wrong so far."""
    share = run.done / run.total if run.total else 0.0
    counts = f" {run.done} of {run.total} answers  "
    lines: list[Line] = [[(counts, "text"), *bar(share, max(8, width - len(counts) - 7), glyphs),
                          (f" {formats.percent(share)} ", "value")]]  # fmt: skip
    pace: Line = [(" elapsed ", "dim"), (formats.duration(run.seconds), "text")]
    if job is not None:
        pace += [("   ETA ", "dim"), (eta_of(job, now), "value"), ("   ", "text"), (rate_of(job), "text")]
    pace += [("   failed ", "dim"), (str(run.failed), "bad" if run.failed else "text")]
    pace += [("   known already ", "dim"), (str(run.cached), "text")]
    lines.append(pace)
    return (
        lines if job is not None else [*lines, [(" It was stopped: R goes on with it, nothing is asked twice", "warn")]]
    )


# -- figures ---------------------------------------------------------------------------------------------------------
def figure_rows(run: EvalRun, comparison: Comparison | None) -> list[Row]:
    """Every figure of a run, task by task: `FIGURES`, or against a baseline `DIFFERENCES`."""
    compared = {(one.task, one.metric): one for one in comparison.metrics} if comparison else {}
    width = len(DIFFERENCES if comparison else FIGURES)
    rows: list[Row] = []
    for summary in run.summaries:
        if len(run.summaries) > 1:
            facts = f"{summary.task}  {summary.kind}, {formats.many(summary.cases, 'case')}"
            rows.append(Row(f"task {summary.task}", ((facts, "title"), *("",) * (width - 1)), heading=True))
        for name, interval in summary.metrics.items():
            key, primary = f"{summary.task}.{name}", name == summary.primary
            found = compared.get((summary.task, name))
            shown = f"{name}{' *' if primary else ''}"
            rows.append(
                _figure_row(key, shown, interval, "text" if primary else "dim", width)
                if found is None
                else _difference_row(key, shown, found, "text" if primary else "dim")
            )
            if primary and len(summary.tags) > 1:
                rows += [
                    _figure_row(f"{key}.{tag}", f"  - {tag}", one, "dim", width) for tag, one in summary.tags.items()
                ]
        for name, interval in summary.invariance.items():
            rows.append(_figure_row(f"{summary.task}.same.{name}", f"same in {name}", interval, "dim", width))
        rows += [
            _time_row(f"{summary.task}.{name}", name, shares, width) for name, shares in summary.percentiles.items()
        ]
    return rows


def _figure_row(key: str, name: str, one: Interval, ink: str, width: int) -> Row:
    value, bounds = number(one.value), f"[{number(one.low)}, {number(one.high)}]"
    return _spread(key, name, "", value, "", bounds, formats.count(one.n), ("", "dim"), ink, width)


def _difference_row(key: str, name: str, found: MetricComparison, ink: str) -> Row:
    one = found.difference
    bounds = f"[{signed(one.low)}, {signed(one.high)}]"
    values = number(found.before.value), number(found.after.value), signed(one.value)
    return _spread(key, name, *values, bounds, formats.count(one.n), verdict_of(found), ink, len(DIFFERENCES))


def _time_row(key: str, name: str, shares: dict[str, float], width: int) -> Row:
    said = "  ".join(f"{share} {number(value)}" for share, value in shares.items() if share != "p50")
    return _spread(key, f"{name} p50", "", number(shares.get("p50")), "", said, "", ("", "dim"), "dim", width)


def _spread(
    key: str, name: str, base: str, value: str, change: str, bounds: str, n: str, verdict: tuple[str, str], ink: str,
    width: int,
) -> Row:  # fmt: skip
    """The cells of a row of either table."""
    strong = "value" if ink == "text" else ink
    whole: tuple[Cell, ...] = (
        (name, ink), (base, ink), (value, strong), (change, ink), (bounds, ink), (n, "dim"), verdict
    )  # fmt: skip
    cells = whole if width == len(DIFFERENCES) else (whole[0], whole[2], whole[4], whole[5])
    return Row(key, cells, {"figure": name.strip(), "verdict": verdict[0]})


def verdict_of(found: MetricComparison) -> tuple[str, str]:
    """What a difference means: only what noise does not explain is called worse or better."""
    if found.finding == "worse":
        return ("v REGRESSED", "bad") if found.material else ("v small", "warn")
    if found.finding == "better":
        return ("^ improved", "good") if found.material else ("^ small", "good")
    if found.finding == "same" or found.difference.value == 0:
        return "= same", "dim"
    worse = (found.difference.value > 0) is (found.better == "lower")
    return ("v? noise", "dim") if worse else ("^? noise", "dim")


def sign_of(comparison: Comparison) -> str:
    """One sign for a run against its baseline: what its primary figures say."""
    findings = {one.finding for one in comparison.metrics if one.primary and one.material}
    return "v" if "worse" in findings else "^" if "better" in findings else "="


def gate_lines(verdict: Verdict) -> list[Line]:
    """One line per gate: missed ones first."""
    lines: list[Line] = []
    for result in sorted(verdict.gates, key=lambda one: one.passed):
        word, ink = ("ok", "good") if result.passed else ("waived", "warn") if result.waived else ("MISSED", "bad")
        value = formats.figure(result.value) if result.value is not None else "not measured"
        lines.append([(f" {word:<7}", ink), (result.gate, "text"), (f"   {result.figure} is {value}", "dim")])
    return lines


# -- cases -----------------------------------------------------------------------------------------------------------
def change_rows(comparison: Comparison) -> list[Row]:
    """Cases that are no longer what they were, broken ones first."""
    alone = len(comparison.other.summaries) == 1
    return [_change_row(change, alone) for change in comparison.changes]


def _change_row(change: CaseChange, alone: bool) -> Row:
    word, ink = _KINDS[change.kind]
    before, after = result(change.before_value), result(change.after_value)
    cells: tuple[Cell, ...] = (
        _name(change.label, alone), (word, ink), (" ".join(change.tags), "dim"), before, after,
        (_targets(change.targets), "dim"), _start(change.after),
    )  # fmt: skip
    fields: dict[str, str | float | None] = {
        "case": change.label, "kind": change.kind, "tag": " ".join(change.tags), "before": change.before_value,
        "after": change.after_value, "answer": change.after,
    }  # fmt: skip
    return Row(change.label, cells, fields)


def record_rows(records: Sequence[Record], run: EvalRun, comparison: Comparison | None) -> list[Row]:
    """Every case of a run as it was answered."""
    primary = {summary.task: summary.primary for summary in run.summaries}
    changes = {change.label: change for change in comparison.changes} if comparison else {}
    return [
        _record_row(record, primary.get(record.task, ""), changes.get(record.label), len(primary) == 1)
        for record in records
    ]


def _record_row(record: Record, primary: str, change: CaseChange | None, alone: bool) -> Row:
    value = record.values.get(primary, next(iter(record.values.values()), None))
    word, ink = _KINDS[change.kind] if change else ("failed", "bad") if record.failure else ("", "dim")
    cells: tuple[Cell, ...] = (
        _name(record.label, alone), (word, ink), (" ".join(record.tags), "dim"), result(value),
        (_targets(record.targets or tuple(record.continuations[index] for index in record.gold)), "dim"),
        _start(record.answer()),
    )  # fmt: skip
    fields: dict[str, str | float | None] = {
        "case": record.label, "kind": word[2:] or word, "tag": " ".join(record.tags), "after": value,
        "answer": record.answer(),
    }  # fmt: skip
    return Row(record.label, cells, fields)


def result(value: float | None) -> tuple[str, str]:
    """A case's own figure: pass or FAIL where it is a yes or a no."""
    if value is None:
        return "none", "bad"
    if value in (0.0, 1.0):
        return ("pass", "good") if value else ("FAIL", "bad")
    return number(value), "text"


def _name(label: str, alone: bool) -> str:
    """A case's label; where the run has one task, without its name."""
    return label.partition("/")[2] if alone else label


def _targets(targets: Sequence[str]) -> str:
    return _start(" | ".join(targets[:3]))


def _start(text: str) -> str:
    """The beginning of an answer: a row shows no more, and filters look no further."""
    return text.strip()[:400]


def _when(unix: float) -> str:
    return time.strftime("%b %d %H:%M", time.localtime(unix))


def number(value: float | None) -> str:
    """A figure with four digits that matter, at most 8 characters."""
    if value is None or value != value:
        return formats.NONE
    if value == 0:
        return "0"
    if abs(value) < 0.0005:
        return f"{value:.1g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{number(abs(value))}"
