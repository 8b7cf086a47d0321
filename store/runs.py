"""Batch runs: what a plan did, step by step, and which results can be used again.

Invariant: a step is reusable only when it ended `done` under the same key, which is a hash over parameters and inputs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from lathe.store.errors import NotFound
from lathe.store.rows import from_row, to_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a plan."""

    id: str
    """`r-2026-11-20-07`: the UTC day and a number within it."""
    plan: str
    """The plan's name."""
    state: str
    exit: int | None = None
    created_at: float
    finished_at: float | None = None


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run."""

    run: str
    name: str
    """Unique within the run."""
    key: str
    """Hash over what determines the result."""
    state: str
    job: str | None = None
    result: str = "null"
    """The engine's outcome as JSON."""


class Runs:
    """The batch runs of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def start(self, plan: str, now: float) -> RunRecord:
        """Begin a run under the next id of its day."""
        prefix = f"r-{datetime.fromtimestamp(now, UTC):%Y-%m-%d}-"
        taken = self._db.execute(
            "SELECT max(CAST(substr(id, ?) AS INTEGER)) FROM runs WHERE substr(id, 1, ?) = ?",
            [len(prefix) + 1, len(prefix), prefix],
        ).fetchone()[0]
        run = RunRecord(id=f"{prefix}{(taken or 0) + 1:02d}", plan=plan, state="running", created_at=now)
        self._db.table("runs").insert(to_row(run))
        return run

    def finish(self, run_id: str, state: str, exit_code: int, now: float) -> RunRecord:
        """End a run; raises NotFound."""
        run = msgspec.structs.replace(self.get(run_id), state=state, exit=exit_code, finished_at=now)
        self._db.execute(
            "UPDATE runs SET state = :state, exit = :exit, finished_at = :finished_at WHERE id = :id", to_row(run)
        )
        return run

    def get(self, run_id: str) -> RunRecord:
        """One run; raises NotFound."""
        for run in self._where("id = ?", run_id):
            return run
        raise NotFound(f"no run has the id {run_id!r}", hint="the folder runs/ of the workspace holds their reports")

    def newest(self, limit: int = 100) -> list[RunRecord]:
        """The newest first."""
        return self._where("1 ORDER BY number DESC LIMIT ?", limit)

    def record(self, step: StepRecord) -> None:
        """Write a step of a run, again if its state changed."""
        self._db.execute(
            "INSERT INTO run_steps (run, name, key, state, job, result) "
            "VALUES (:run, :name, :key, :state, :job, :result) ON CONFLICT (run, name) DO UPDATE SET "
            "key = excluded.key, state = excluded.state, job = excluded.job, result = excluded.result",
            to_row(step),
        )

    def steps(self, run_id: str) -> list[StepRecord]:
        """The steps of a run in the order they were first written."""
        return self._steps("run = ? ORDER BY number", run_id)

    def reusable(self, key: str) -> StepRecord | None:
        """The newest finished step with that key, of any run."""
        return next(iter(self._steps("key = ? AND state = 'done' ORDER BY number DESC LIMIT 1", key)), None)

    def _where(self, condition: str, *values: object) -> list[RunRecord]:
        columns = "id, plan, state, exit, created_at, finished_at"
        rows = self._db.query(f"SELECT {columns} FROM runs WHERE {condition}", values)  # noqa: S608 - conditions are ours
        return [from_row(RunRecord, row, "runs") for row in rows]

    def _steps(self, condition: str, *values: object) -> list[StepRecord]:
        columns = "run, name, key, state, job, result"
        rows = self._db.query(f"SELECT {columns} FROM run_steps WHERE {condition}", values)  # noqa: S608 - ours
        return [from_row(StepRecord, row, "run_steps") for row in rows]
