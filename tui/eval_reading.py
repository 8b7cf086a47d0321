"""Reading eval runs for screens: a run with its cases, its comparison and its gates; one case from several runs.

Invariant: whatever cannot be compared says why, and the rest is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
from lathe.engine.errors import ConfigError, LatheError
from lathe.engine.evals.results import Comparison, EvalRun, Record, Verdict
from lathe.engine.evals.verdict import decide
from lathe.engine.workbench import Workbench
from lathe.tui.views.case import CaseSeen

PAGE = 200
MOST_CASES = 2000
"""Cases listed of one run; an export has them all."""
HISTORY = 8
"""Other runs that a case is looked up in."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was read."""

    run: EvalRun
    records: tuple[Record, ...] = ()
    base: EvalRun | None = None
    comparison: Comparison | None = None
    verdict: Verdict | None = None
    problem: str = ""
    """Why there is no comparison."""


async def read_run(bench: Workbench, run: EvalRun, base: EvalRun | None, gates: Sequence[str]) -> Seen:
    """A run with as many cases as a list shows, against `base` where there is one."""
    records: list[Record] = []
    while len(records) < MOST_CASES:
        page = await bench.eval_records(run.id, len(records), PAGE)
        records += page
        if len(page) < PAGE:
            break
    comparison, problem = None, ""
    if base is not None and run.state == "done":
        try:
            comparison = await bench.eval_compare(base.id, run.id)
        except LatheError as error:
            problem = error.message
    verdict = None
    if run.state == "done":
        with suppress(ConfigError):
            verdict = decide(run, comparison, gates)
    return Seen(run=run, records=tuple(records), base=base, comparison=comparison, verdict=verdict, problem=problem)


async def read_case(bench: Workbench, seen: Seen, label: str) -> CaseSeen | None:
    """One case of a run, and the same in the run it is compared with."""
    after = next((record for record in seen.records if record.label == label), None)
    if after is None:
        task, _, case = label.partition("/")
        after = await _record(bench, seen.run, task, case.partition("#")[0].partition("~")[0], label)
    if after is None:
        return None
    before = None
    if seen.comparison is not None and seen.base is not None:
        before = await _record(bench, seen.base, after.task, after.case, label)
    return CaseSeen(run=seen.run, after=after, base=seen.base if before else None, before=before)


async def with_history(bench: Workbench, found: CaseSeen, runs: Sequence[EvalRun]) -> CaseSeen:
    """The case with its figures in the newest runs of its suite; `runs` are newest first."""
    others = [run for run in runs if run.suite == found.run.suite and run.state == "done"][:HISTORY]
    history: list[tuple[str, float | None]] = []
    for run in reversed(others):
        record = await _record(bench, run, found.after.task, found.after.case, found.after.label)
        if record is not None:
            history.append((run.id, next(iter(record.values.values()), None)))
    return msgspec.structs.replace(found, history=tuple(history))


async def _record(bench: Workbench, run: EvalRun, task: str, case: str, label: str) -> Record | None:
    return next((record for record in await bench.eval_case(run.id, task, case) if record.label == label), None)
