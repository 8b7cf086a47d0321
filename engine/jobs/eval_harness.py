"""Run lm-evaluation-harness in a process of its own and keep its results as a run of ours.

Invariant: a run is entered only when the harness has ended, so that a half one never looks whole.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import AsyncIterator

import msgspec
from lathe.engine.errors import CrashedError, UnavailableError, UsageError, revive
from lathe.engine.jobs.eval import rows_of, summary_of
from lathe.engine.jobs.services import EngineWorkbench, ServiceContext
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import HarnessStep


async def run(step: HarnessStep, context: ServiceContext) -> Outcome:
    """Start the harness, take what it measured, sum up."""
    from lathe.engine.evals import harness_child as harness
    from lathe.engine.evals.book import Answer
    from lathe.engine.evals.results import EvalRun, Record, RunSettings
    from lathe.engine.evals.summary import summarize
    from lathe.engine.evals.values import sha256_of
    from lathe.engine.process import spawn
    from lathe.engine.release import RELEASE

    if not step.tasks:
        raise UsageError("name at least one task of the harness")
    if importlib.util.find_spec("lm_eval") is None:
        raise UnavailableError("lm_eval is not installed", hint="install `lathe-llm[harness]`")
    workbench: EngineWorkbench = context.workbench
    await context.progress("loading", 0)
    await workbench.load(step.model, step.options)
    entry = (await workbench.model(step.model)).entry
    records: list[Record] = []
    ended: harness.Ended | None = None
    began, created = time.monotonic(), time.time()
    home = workbench.evals.home
    child = await spawn("lathe.engine.evals.harness_child", role="lm_eval", log_path=home.logs / "lm_eval.log")
    try:
        await child.send(harness.Ask(step, str(home.root)))
        messages: AsyncIterator[harness.FromHarness] = child.messages(harness.FromHarness)
        async for message in messages:
            match message:
                case harness.Told(answers=answers):
                    await context.progress("asking", answers, None, "answer")
                case harness.Part(records=part):
                    records += part
                case harness.Broke(failure=failure):
                    raise revive(failure)
                case harness.Ended():
                    ended = message
    finally:
        cause = await child.stop()
    if ended is None:
        raise CrashedError(f"lm_eval {cause.reason}", hint=f"its log: {child.log_path}")
    for one in ended.left_out:
        context.log(f"left out: {one} is no mean over samples", "warn")
    identity = entry.sha256 or entry.id
    run = EvalRun(
        id="", suite=f"lm_eval {', '.join(step.tasks)}", suite_version=ended.version, model=entry.name,
        suite_sha256=sha256_of([step.tasks, [record.item_sha256 for record in records]]), model_key=identity,
        settings=RunSettings(limit=step.limit, seed=step.seed), created_at=created, total=len(records),
        release=RELEASE, tasks=ended.tasks,
    )  # fmt: skip
    key = sha256_of(["harness", created, identity])
    run, _ = await workbench.evals.book.begin(run, key, True)
    try:
        await workbench.evals.book.record(run, key, [Answer(record, None) for record in records])
        run = msgspec.structs.replace(
            run, state="done", finished_at=time.time(), seconds=time.monotonic() - began, done=len(records),
            summaries=summarize(ended.tasks, records),
        )  # fmt: skip
        await workbench.evals.book.finish(run, key)
    finally:
        workbench.evals.book.release(run)
    if step.baseline_name:
        await workbench.evals.book.set_baseline(step.baseline_name, run.id)
    return Outcome(figures=run.figures(), rows=rows_of(run), summary=summary_of(run))
