"""Versions of the corpus: what each build added, changed and removed.

open --(documents come and go)--> finished       Invariant: at most one version is open, and an interrupted build goes
on in the version it had opened, so that its changes stand together.
"""

from __future__ import annotations

from typing import Any, Literal

from lathe.store.rag.values import Change, CorpusVersion
from lathe.store.rows import from_row
from sqlite_utils import Database as Connection

_SELECT = """
    SELECT v.number, v.started_at, v.finished_at, v.documents, v.passages,
           coalesce(sum(c.what = 'added'), 0) AS added, coalesce(sum(c.what = 'changed'), 0) AS changed,
           coalesce(sum(c.what = 'removed'), 0) AS removed, coalesce(sum(c.what = 'failed'), 0) AS failed
    FROM versions v LEFT JOIN changes c ON c.version = v.number"""


def begin(db: Connection, now: float) -> int:
    """Open a version, or go on with the open one; returns its number."""
    row = db.execute("SELECT number FROM versions WHERE finished_at IS NULL").fetchone()
    if row is not None:
        return int(row[0])
    cursor = db.execute("INSERT INTO versions (started_at, documents, passages) VALUES (?, 0, 0)", [now])
    return int(cursor.lastrowid)


def finish(db: Connection, number: int, now: float) -> CorpusVersion:
    """Close a version; one in which nothing happened is forgotten."""
    documents = db.execute("SELECT count(*) FROM documents").fetchone()[0]
    passages = db.execute("SELECT count(*) FROM passages").fetchone()[0]
    db.execute(
        "UPDATE versions SET finished_at = ?, documents = ?, passages = ? WHERE number = ?",
        [now, documents, passages, number],
    )
    finished = get(db, number)
    if not finished.added + finished.changed + finished.removed + finished.failed:
        db.execute("DELETE FROM versions WHERE number = ?", [number])
    return finished


def get(db: Connection, number: int) -> CorpusVersion:
    """One version."""
    return _version(next(db.query(f"{_SELECT} WHERE v.number = ? GROUP BY v.number", [number])))


def listing(db: Connection, limit: int = -1) -> list[CorpusVersion]:
    """Versions, newest first."""
    return [_version(row) for row in db.query(f"{_SELECT} GROUP BY v.number ORDER BY v.number DESC LIMIT ?", [limit])]


def changes(db: Connection, number: int) -> list[Change]:
    """What one version changed, by path."""
    rows = db.query("SELECT version, path, what, before, after FROM changes WHERE version = ? ORDER BY path", [number])
    return [from_row(Change, row, "changes") for row in rows]


def between(db: Connection, before: int, after: int) -> list[Change]:
    """What became of each document after one version up to another, by path; net of what was undone in between."""
    found: dict[str, Change] = {}
    rows = db.query(
        "SELECT version, path, what, before, after FROM changes WHERE version > ? AND version <= ? ORDER BY version",
        [before, after],
    )
    for row in rows:
        change = from_row(Change, row, "changes")
        first = found.get(change.path)
        was = first.before if first else change.before
        what = _net(was, change)
        if what is None:
            found.pop(change.path, None)
        else:
            found[change.path] = Change(
                version=change.version, path=change.path, what=what, before=was, after=change.after
            )
    return [found[path] for path in sorted(found)]


def _net(was: str, last: Change) -> Literal["added", "changed", "removed", "failed"] | None:
    if last.what == "failed":
        return "failed"
    if not last.after:
        return "removed" if was else None
    if not was:
        return "added"
    return None if was == last.after else "changed"


def _version(row: dict[str, Any]) -> CorpusVersion:
    return from_row(CorpusVersion, row, "versions")
