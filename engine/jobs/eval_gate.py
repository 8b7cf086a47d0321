"""Hold a finished eval run against its gates and its baseline; exit 1 where one is missed.

Invariant: a gate on what was not measured is missed, and an expired waiver excuses nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from lathe.engine.errors import ExitCode
from lathe.engine.evals.results import Comparison, Verdict
from lathe.engine.jobs.services import EngineWorkbench, ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.steps import GateStep


async def run(step: GateStep, context: ServiceContext) -> Outcome:
    """Compare, decide, report."""
    from lathe.engine.evals.reports.files import style_of, write
    from lathe.engine.evals.verdict import decide
    from lathe.engine.evals.waivers import read_waivers

    workbench: EngineWorkbench = context.workbench
    styles = [(Path(path), style_of(Path(path))) for path in step.reports]
    waivers = await asyncio.to_thread(read_waivers, Path(step.waivers)) if step.waivers else []
    finished = await workbench.eval_run(step.of)
    comparison = await workbench.evals.compare(step.baseline, step.of, step.tolerance) if step.baseline else None
    verdict = await asyncio.to_thread(decide, finished, comparison, step.gates, waivers)
    for gate in verdict.gates:
        context.log(str(gate), "info" if gate.ok else "error")
    for text in verdict.expired:
        context.log(f"expired waiver: {text}", "warn")
    for path, style in styles:
        report = await workbench.evals.report(step.of, style, step.baseline, verdict)
        await asyncio.to_thread(write, path, report)
    figures: dict[str, Figure] = {
        "run": finished.id,
        "passed": verdict.passed,
        "missed": sum(not gate.ok for gate in verdict.gates),
    }
    if comparison is not None:
        figures |= comparison.figures()
    rows: tuple[dict[str, Figure], ...] = tuple(
        {"gate": gate.gate, "figure": gate.figure, "value": gate.value, "passed": gate.passed, "waived": gate.waived}
        for gate in verdict.gates
    )
    code = ExitCode.OK if verdict.passed else ExitCode.NEGATIVE
    return Outcome(figures=figures, rows=rows, exit=int(code), summary=summary_of(verdict, comparison))


def summary_of(verdict: Verdict, comparison: Comparison | None) -> str:
    """What was missed, and what got worse by how much, in one line."""
    missed = [f"MISSED {gate.gate} ({gate.figure} is {_shown(gate.value)})" for gate in verdict.gates if not gate.ok]
    worse = [
        f"{one.task} {one.metric} {one.before.value:.4g} -> {one.after.value:.4g}, "
        f"{one.difference.value:+.4g} [{one.difference.low:+.4g}, {one.difference.high:+.4g}]"
        for one in (comparison.metrics if comparison else ())
        if one.primary and one.material and one.finding == "worse"
    ]
    passed = sum(gate.ok for gate in verdict.gates)
    return "; ".join([*missed, f"{passed} of {len(verdict.gates)} gates hold", *worse])


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
