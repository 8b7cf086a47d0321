"""The queue's history: one row per job.

The store does not know what a job is: it keeps the engine's value as a JSON body beside the columns it searches by.
Invariant: numbers grow and are never given twice, and order is by number, because clocks jump.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec
from lathe.store.errors import NotFound
from lathe.store.rows import from_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

ACTIVE = ("queued", "running")
_RESERVED = "reserved"
"""State of a number that was given out and whose job was never saved."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the store sees it."""

    id: str
    """`j-118`."""
    kind: str
    state: str
    run: str | None = None
    """Id of the batch run it belongs to."""
    created_at: float = 0.0
    """Unix seconds, for display."""
    finished_at: float | None = None
    body: str
    """The engine's `Job` as JSON."""


class Jobs:
    """The jobs of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._table = db.table("jobs")

    def new_id(self) -> str:
        """Give out the next id."""
        row = {"kind": "", "state": _RESERVED, "created_at": 0.0, "body": ""}
        return f"j-{self._table.insert(row).last_pk}"

    def save(self, record: JobRecord) -> None:
        """Write a job whose id was given out by `new_id`; raises NotFound for any other id."""
        row = msgspec.structs.asdict(record)
        number = _number(row.pop("id"))
        cursor = self._db.execute(
            "UPDATE jobs SET kind = :kind, state = :state, run = :run, created_at = :created_at, "
            "finished_at = :finished_at, body = :body WHERE number = :number",
            {**row, "number": number},
        )
        if cursor.rowcount == 0:
            raise NotFound(f"no job has the id {record.id!r}", hint="`lathe jobs` lists them")

    def get(self, job_id: str) -> JobRecord:
        """One job; raises NotFound."""
        for record in self._where("number = ? AND state != ?", _number(job_id), _RESERVED):
            return record
        raise NotFound(f"no job has the id {job_id!r}", hint="`lathe jobs` lists them")

    def newest(self, limit: int = 100, states: Collection[str] = ()) -> list[JobRecord]:
        """The newest jobs first, of all states or of some."""
        marks = ", ".join("?" * len(states))
        chosen = f"state IN ({marks})" if states else "1"
        return self._where(f"{chosen} AND state != ? ORDER BY number DESC LIMIT ?", *states, _RESERVED, limit)

    def unfinished(self) -> list[JobRecord]:
        """Jobs saved as queued or running, oldest first."""
        return self._where("state IN (?, ?) ORDER BY number", *ACTIVE)

    def of_run(self, run: str) -> list[JobRecord]:
        """The jobs of a batch run, oldest first."""
        return self._where("run = ? ORDER BY number", run)

    def clear_finished(self) -> int:
        """Forget every job that is over; returns how many. Their numbers stay used."""
        kept = (*ACTIVE, _RESERVED)
        return int(self._db.execute("DELETE FROM jobs WHERE state NOT IN (?, ?, ?)", kept).rowcount)

    def _where(self, condition: str, *values: object) -> list[JobRecord]:
        query = f"SELECT 'j-' || number AS id, * FROM jobs WHERE {condition}"  # noqa: S608 - conditions are ours
        return [from_row(JobRecord, row, "jobs") for row in self._db.query(query, values)]


def _number(job_id: str) -> Any:
    """The number in an id; what is no id finds nothing."""
    head, _, digits = job_id.partition("-")
    if head == "j" and digits.isascii() and digits.isdigit() and len(digits) < 18:
        return int(digits)
    return -1
