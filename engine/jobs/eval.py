"""Run a suite on a model: a service, for all native work happens in model workers.

Invariant: an interrupted job goes on where it stopped, whoever starts it again, for the run is found by its content.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from lathe.engine.errors import ExitCode
from lathe.engine.evals.results import EvalRun, RunSettings
from lathe.engine.jobs.services import EngineWorkbench, ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.steps import EvalStep


async def run(step: EvalStep, context: ServiceContext) -> Outcome:
    """Ask every case of the suite."""
    from lathe.engine.evals import shipped, suite
    from lathe.engine.evals.runner import Order, run_suite

    workbench: EngineWorkbench = context.workbench
    path = shipped.find(step.suite, workbench.evals.suites_folder)
    loaded = await asyncio.to_thread(
        suite.load, path, variables=dict(step.variables), limit=step.limit, seed=step.seed, tags=step.tags,
        skip_bad=step.skip_bad,
    )  # fmt: skip
    for bad in loaded.bad:
        context.log(f"left out: {bad}", "warn")
    settings = RunSettings(
        variables=step.variables, limit=step.limit, seed=step.seed, tags=step.tags, skip_bad=step.skip_bad
    )
    order = Order(
        suite=loaded, model=step.model, settings=settings, options=step.options, concurrency=step.concurrency,
        cache=step.cache, fresh=step.fresh,
    )  # fmt: skip

    async def report(label: str, done: float, total: float | None, unit: str) -> None:
        await context.progress(label, done, total, unit)

    finished = await run_suite(order, workbench, workbench.evals.book, report, context.log)
    context.log(f"{finished.id}: {finished.done} answers, {finished.failed} failed, {finished.cached} from the cache")
    if step.baseline_name:
        await workbench.evals.book.set_baseline(step.baseline_name, finished.id)
    for output in step.reports:
        await write_report(workbench, finished.id, None, Path(output))
    failed = bool(finished.failed)
    return Outcome(
        figures=finished.figures(), rows=rows_of(finished), exit=int(ExitCode.NEGATIVE if failed else ExitCode.OK),
        summary=summary_of(finished),
    )  # fmt: skip


def summary_of(run: EvalRun) -> str:
    """The primary figure of every task, in one line."""
    head = f"{run.id}: {run.done} answers" + (f", {run.failed} failed" if run.failed else "")
    measured = ((one, one.metrics[one.primary]) for one in run.summaries if one.primary in one.metrics)
    figures = (f"{one.task} {one.primary} {of.value:.4g} [{of.low:.4g}, {of.high:.4g}]" for one, of in measured)
    return ", ".join((head, *figures))


def rows_of(run: EvalRun) -> tuple[dict[str, Figure], ...]:
    """The run's figures as a table."""
    return tuple(
        {"task": summary.task, "metric": name, "value": one.value, "low": one.low, "high": one.high, "cases": one.n,
         "interval": one.method, "primary": name == summary.primary}
        for summary in run.summaries
        for name, one in summary.metrics.items()
    )  # fmt: skip


async def write_report(workbench: EngineWorkbench, run: str, baseline: str | None, path: Path) -> None:
    """Write a run's report in the format of the file's suffix."""
    from lathe.engine.evals.reports.files import style_of, write

    text = await workbench.evals.report(run, style_of(path), baseline)
    await asyncio.to_thread(write, path, text)
