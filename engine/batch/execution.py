"""Running a plan through the `Workbench`: one job per step, in order, with events for whoever listens.

A step whose needs failed is skipped; a step that did exactly this before is reused under `resume`. Invariant: the
last event is always `run.summary`, and its exit code is the most severe of the steps'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from lathe.engine.batch.places import located
from lathe.engine.batch.plan import Plan, PlannedStep, substitute
from lathe.engine.errors import SEVERITY, ExitCode, Failure, LatheError, TimeoutExpired, describe
from lathe.engine.events import JobProgressed
from lathe.engine.jobs.kinds import name_of
from lathe.engine.jobs.values import Figure, Job, Outcome
from lathe.engine.steps import Step
from lathe.engine.workbench import Workbench

StepState = Literal["done", "reused", "gate_failed", "negative", "failed", "skipped", "cancelled"]
Emit = Callable[[str, dict[str, Any]], None]
"""(event name, fields); `reports.JsonLines.emit` adds time, sequence number and run id."""

_PROGRESS_INTERVAL_S = 1.0


class StepResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one step."""

    id: str
    run: str
    state: StepState
    exit: int
    job: str | None = None
    seconds: float = 0.0
    outcome: Outcome | None = None
    failure: Failure | None = None
    broken_gates: tuple[str, ...] = ()


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a plan."""

    run: str
    name: str
    steps: tuple[StepResult, ...]
    exit: int
    seconds: float

    @property
    def state(self) -> str:
        """One word for the summary."""
        words = {ExitCode.OK: "done", ExitCode.NEGATIVE: "gate_failed", ExitCode.INTERRUPTED: "interrupted"}
        return words.get(ExitCode(self.exit), "failed")


async def execute(plan: Plan, workbench: Workbench, run: str, emit: Emit, *, resume: bool = True) -> RunResult:
    """Run every step whose needs succeeded."""
    started = time.monotonic()
    emit("run.started", {"name": plan.name, "plan": plan.path, "steps": [step.id for step in plan.steps]})
    results: dict[str, StepResult] = {}
    try:
        async with _Progress(workbench, emit):
            for planned in plan.steps:
                results[planned.id] = await _run_step(planned, results, workbench, run, emit, resume)
    except asyncio.CancelledError:
        _skip_rest(plan, results, "cancelled", ExitCode.INTERRUPTED)
        return _summary(plan, run, results, time.monotonic() - started, emit)
    return _summary(plan, run, results, time.monotonic() - started, emit)


async def _run_step(
    planned: PlannedStep, results: dict[str, StepResult], workbench: Workbench, run: str, emit: Emit, resume: bool
) -> StepResult:
    tag = name_of(planned.step)
    failed = [need for need in planned.needs if results[need].state not in ("done", "reused")]
    if failed:
        failure = Failure("E_SKIPPED", f"needs {', '.join(failed)}, which did not succeed")
        result = StepResult(id=planned.id, run=tag, state="skipped", exit=0, failure=failure)
        emit("step.skipped", {"step": planned.id, "why": failure.message})
        return result
    began = time.monotonic()
    try:
        filled = substitute(planned.step, {key: _values(result) for key, result in results.items()})
        step = await asyncio.to_thread(located, filled, Path.cwd())
        job, reused = await _do(step, planned, workbench, run, emit, resume)
        result = _judge(planned, tag, job, reused, time.monotonic() - began)
    except LatheError as error:
        failure = describe(error)
        result = StepResult(
            id=planned.id, run=tag, state="failed", exit=failure.exit, failure=failure, seconds=time.monotonic() - began
        )
    fields = msgspec.to_builtins(result)
    emit("step.finished", {"step": fields.pop("id"), "kind": fields.pop("run"), **fields})
    return result


async def _do(
    step: Step, planned: PlannedStep, workbench: Workbench, run: str, emit: Emit, resume: bool
) -> tuple[Job, bool]:
    """Run the step as a job, or find the job that did it before."""
    if resume:
        previous = await workbench.previous(step)
        if previous is not None:
            emit("step.reused", {"step": planned.id, "job": previous.id})
            return previous, True
    job = await workbench.submit(step, run)
    emit("step.started", {"step": planned.id, "kind": name_of(step), "job": job.id, "title": job.title})
    try:
        async with asyncio.timeout(planned.timeout_s):
            return await workbench.wait(job.id), False
    except TimeoutError:
        await workbench.cancel(job.id)
        raise TimeoutExpired(f"step {planned.id!r} took longer than {planned.timeout_s:g} s") from None
    except asyncio.CancelledError:
        await asyncio.shield(workbench.cancel(job.id))
        raise


def _judge(planned: PlannedStep, tag: str, job: Job, reused: bool, seconds: float) -> StepResult:
    """Turn a finished job into the step's result, gates included."""
    common: dict[str, Any] = {"id": planned.id, "run": tag, "job": job.id, "seconds": seconds, "outcome": job.outcome}
    if job.state != "done" or job.outcome is None:
        failure = job.failure or Failure("E_INTERNAL", f"job {job.id} ended {job.state} without saying why")
        state: StepState = "cancelled" if job.state == "cancelled" else "failed"
        return StepResult(state=state, exit=failure.exit, failure=failure, **common)
    figures = job.outcome.figures
    missed = [gate for gate in planned.expect if not gate.passes(figures)]
    if missed:
        shown = ", ".join(f"{gate} (is {_shown(gate.value(figures))})" for gate in missed)
        broken = tuple(map(str, missed))
        failure = Failure("E_GATE", f"gate missed: {shown}", "", int(ExitCode.NEGATIVE))
        return StepResult(state="gate_failed", exit=1, failure=failure, broken_gates=broken, **common)
    if job.outcome.exit:
        return StepResult(state="negative", exit=job.outcome.exit, **common)
    return StepResult(state="reused" if reused else "done", exit=0, **common)


def _shown(value: Figure) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "not measured" if value is None else str(value)


def _values(result: StepResult) -> dict[str, object]:
    """What `${ID....}` may refer to."""
    if result.outcome is None:
        return {}
    values: dict[str, object] = {f"figures.{name}": value for name, value in result.outcome.figures.items()}
    if result.outcome.artefacts:
        first = result.outcome.artefacts[0]
        values |= {"model": first.path, "path": first.path}
    return values


def _skip_rest(plan: Plan, results: dict[str, StepResult], state: StepState, code: ExitCode) -> None:
    for planned in plan.steps:
        if planned.id not in results:
            results[planned.id] = StepResult(id=planned.id, run=name_of(planned.step), state=state, exit=int(code))


def _summary(plan: Plan, run: str, results: dict[str, StepResult], seconds: float, emit: Emit) -> RunResult:
    ordered = tuple(results[step.id] for step in plan.steps)
    result = RunResult(
        run=run, name=plan.name, steps=ordered, exit=int(worst(r.exit for r in ordered)), seconds=seconds
    )
    artefacts = [
        {"step": step.id, "path": artefact.path, "sha256": artefact.sha256}
        for step in ordered
        if step.outcome
        for artefact in step.outcome.artefacts
    ]
    emit(
        "run.summary",
        {
            "state": result.state,
            "exit": result.exit,
            "seconds": round(seconds, 3),
            "steps": [{"id": step.id, "state": step.state, "exit": step.exit} for step in ordered],
            "artifacts": artefacts,
        },
    )
    return result


def worst(codes: Iterable[int]) -> ExitCode:
    """The most severe of several exit codes; interruption outranks all, for it says that the rest did not run."""
    return min((ExitCode(code) for code in codes), key=SEVERITY.index, default=ExitCode.OK)


class _Progress:
    """Forwards progress of the engine's jobs as events, at most one a second per job."""

    def __init__(self, workbench: Workbench, emit: Emit) -> None:
        self._workbench = workbench
        self._emit = emit
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._listen(), name="batch-progress")

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        told: dict[str, float] = {}
        async for event in self._workbench.events():
            if not isinstance(event, JobProgressed):
                continue
            now = time.monotonic()
            if now - told.get(event.id, 0.0) >= _PROGRESS_INTERVAL_S:
                told[event.id] = now
                progress = event.progress
                self._emit(
                    "job.progress",
                    {
                        "job": event.id,
                        "stage": progress.label,
                        "done": progress.done,
                        "total": progress.total,
                        "unit": progress.unit,
                        "rate": progress.rate,
                        "eta_s": progress.eta_s,
                    },
                )
