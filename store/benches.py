"""Benches at rest: one row per test that was timed, so that each machine has a history of each model.

In `evals.db`. Invariant: rows are only ever added; what is compared shares machine, model, test and setting.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from lathe.store.rows import from_row, to_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


class BenchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One test of one bench."""

    number: int = 0
    """Given by the store; the order of measuring."""
    at: float
    """Unix seconds."""
    job: str
    machine: str
    """Processor, cores, accelerators: what the figure holds for."""
    model: str
    model_key: str
    """What else tells it from others of that name: kind and size."""
    test: str
    """`pp512`, `tg128`, ..."""
    setting: str
    """Backend, threads, KV types and batch sizes, as one text: equal settings are comparable."""
    rate: float
    """Tokens per second, mean over the repetitions."""
    deviation: float
    samples: int
    body: str = "{}"
    """JSON: the whole row, and the bench's figures."""


class Benches:
    """The benches of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, records: Iterable[BenchRecord]) -> None:
        """Keep what was measured."""
        rows = [{name: value for name, value in to_row(record).items() if name != "number"} for record in records]
        self._db.table("benches").insert_all(rows)

    def newest(self, limit: int, machine: str | None = None, model: str | None = None) -> list[BenchRecord]:
        """Newest first; of one machine, of one model by name."""
        conditions = [name for name, value in (("machine", machine), ("model", model)) if value is not None]
        where = " AND ".join(f"{name} = ?" for name in conditions) or "1"
        values = [value for value in (machine, model) if value is not None]
        rows = self._db.query(
            f"SELECT * FROM benches WHERE {where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - names are ours
            [*values, limit],
        )
        return [from_row(BenchRecord, row, "benches") for row in rows]
