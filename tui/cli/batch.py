"""`lathe --batch PLAN`: a pipeline without a screen. Events on stdout, narration on stderr, the exit code a verdict."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from lathe.engine.batch.execution import RunResult, execute, worst
from lathe.engine.batch.places import located
from lathe.engine.batch.plan import Plan, load
from lathe.engine.batch.reports import JsonLines, junit, markdown, result_of
from lathe.engine.errors import CannotCreate, ExitCode, UsageError, describe
from lathe.engine.jobs.kinds import name_of, title_of
from lathe.engine.workbench import Workbench
from lathe.tui.cli.shell import Shell, anchored, boundary, put, put_table, say


def run_batch(shell: Shell, path: Path, *, dry_run: bool, resume: bool, jsonl: bool, reports: tuple[Path, ...]) -> int:
    """Validate, then run (or show) the plan; returns the exit code."""
    reports = tuple(Path(anchored(report)) for report in reports)
    with boundary(as_json=jsonl):
        plan = load(path)
        for report in reports:
            _check(report)
    if dry_run:
        return shell.run(lambda workbench: _preview(plan, workbench, resume, jsonl), as_json=jsonl)
    run = time.strftime("r-%Y%m%d-%H%M%S", time.gmtime())
    lines = JsonLines(run, put)
    emit = lines.emit if jsonl else _narrate

    async def work(workbench: Workbench) -> RunResult:
        return await execute(plan, workbench, run, emit, resume=resume)

    result = shell.run(work, as_json=jsonl)
    if not jsonl:
        _table(result)
    return int(worst([result.exit, *(_write(report, result) for report in reports)]))


async def _preview(plan: Plan, workbench: Workbench, resume: bool, jsonl: bool) -> int:
    """What would run, and what would be reused."""
    rows: list[dict[str, Any]] = []
    for planned in plan.steps:
        refers = "${" in msgspec.json.encode(planned.step).decode()
        previous = await workbench.previous(located(planned.step, Path.cwd())) if resume and not refers else None
        action = f"reuse {previous.id}" if previous else "run"
        rows.append({
            "id": planned.id, "run": name_of(planned.step), "what": title_of(planned.step), "action": action,
            "needs": list(planned.needs), "expect": [str(gate) for gate in planned.expect],
        })  # fmt: skip
    if jsonl:
        put(json.dumps({"plan": plan.name, "steps": rows}, ensure_ascii=False))
    else:
        cells = [
            (r["id"], r["run"], r["what"], r["action"], " ".join(r["needs"]), "; ".join(r["expect"])) for r in rows
        ]
        put_table(("id", "run", "what", "action", "needs", "expect"), cells)
    return 0


def _narrate(event: str, fields: dict[str, Any]) -> None:
    match event:
        case "step.started":
            say(f"{fields['step']}: {fields['kind']} {fields['title']} ({fields['job']})")
        case "step.reused":
            say(f"{fields['step']}: done before by {fields['job']}")
        case "step.skipped":
            say(f"{fields['step']}: skipped, {fields['why']}")
        case "job.progress" if fields["total"]:
            say(f"  {fields['job']} {fields['stage']} {fields['done'] / fields['total']:.0%}")
        case "step.finished":
            failure = fields.get("failure")
            say(f"{fields['step']}: {fields['state']}" + (f": {failure['message']}" if failure else ""))
        case _:
            pass


def _table(result: RunResult) -> None:
    rows = [(step.id, step.run, step.state, f"{step.seconds:.1f}", result_of(step)) for step in result.steps]
    put_table(("step", "run", "state", "s", "result"), rows, right=(3,))
    put(f"{result.name}: {result.state} (exit {result.exit})")


def _check(report: Path) -> None:
    """Refuse what could not be written once everything has run."""
    if report.suffix not in (".xml", ".json", ".md"):
        raise UsageError(f"--report {report}: write .xml (JUnit), .json or .md")
    there = report.exists()
    if (
        report.is_dir()
        or not (there or report.parent.is_dir())
        or not os.access(report if there else report.parent, os.W_OK)
    ):
        raise CannotCreate(f"--report {report} cannot be written", hint="name a file in a folder that is there")


def _write(path: Path, result: RunResult) -> int:
    """Write a report; where that fails, the plan's own verdict still stands beside the code returned."""
    texts = {
        ".xml": lambda: junit(result),
        ".md": lambda: markdown(result),
        ".json": lambda: msgspec.json.format(msgspec.json.encode(result)).decode() + "\n",
    }
    try:
        path.write_text(texts[path.suffix](), "utf-8")
    except OSError as error:
        say(f"lathe: {describe(error).message}")
        return int(ExitCode.CANNOT_CREATE)
    return int(ExitCode.OK)
