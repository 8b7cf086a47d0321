"""The log of finished requests: who asked which model, how much, how fast; never what.

Invariant: no column can hold prompt or answer text, and the log holds at most `KEPT` rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from lathe.store.rows import from_row, to_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

KEPT = 10_000


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request; durations by the engine's monotonic clock, None where it never came that far."""

    id: str
    model: str
    client: str
    """Name of the API key or of the front; never an address."""
    finish: str
    """stop, length, cancelled, error, ..."""
    finished_at: float
    """Unix seconds, for display."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    """Time to the first token, queueing included."""
    total_s: float | None = None


class Requests:
    """The request log of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Append finished requests and drop the oldest beyond the cap."""
        self._db.table("requests").insert_all(to_row(record) for record in records)
        self._db.execute("DELETE FROM requests WHERE number <= (SELECT max(number) FROM requests) - ?", [KEPT])

    def newest(self, limit: int = 100, model: str | None = None) -> list[RequestRecord]:
        """The newest first, of all models or of one."""
        rows = self._db.query(
            "SELECT * FROM requests WHERE ?1 IS NULL OR model = ?1 ORDER BY number DESC LIMIT ?2", [model, limit]
        )
        return [from_row(RequestRecord, _unnumbered(row), "requests") for row in rows]

    def count(self) -> int:
        """How many are kept."""
        return int(self._db.execute("SELECT count(*) FROM requests").fetchone()[0])


def _unnumbered(row: dict[str, object]) -> dict[str, object]:
    del row["number"]
    return row
