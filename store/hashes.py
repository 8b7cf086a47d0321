"""Hashes of files, remembered while a file is untouched, so that no gigabyte is read twice.

Invariant: an answer is given only for the size and time of change that were hashed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from lathe.store.rows import to_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


class HashRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file as it was hashed."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class Hashes:
    """The remembered hashes of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, path: str, size: int, mtime_ns: int) -> str | None:
        """The hash of a file, if it was hashed as it is now."""
        row = self._db.execute(
            "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?", [path, size, mtime_ns]
        ).fetchone()
        return str(row[0]) if row else None

    def put(self, record: HashRecord) -> None:
        """Remember a file's hash."""
        self._db.table("hashes").upsert(to_row(record), pk="path")

    def forget(self, path: str) -> None:
        """Drop what is known of a file or of everything below a folder."""
        below = f"{path.rstrip('/')}/"
        self._db.execute("DELETE FROM hashes WHERE path = ?1 OR substr(path, 1, ?2) = ?3", [path, len(below), below])
