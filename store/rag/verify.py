"""Verification: read every row, compute every seal again, and compare every index with what it was made from.

SQLite's own checks look at the structure of pages; seven in ten flipped bytes stand inside values and pass them.
Invariant: nothing is mended here. `mend` makes the indexes again, which loses nothing; damaged documents are read again
by the next build, because `verify` is what tells that they must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from lathe.store.rag import columns, index, words
from lathe.store.rag.seals import COLUMN_FIELDS, DOCUMENT_FIELDS, PASSAGE_FIELDS, seal, vector_seal
from lathe.store.rag.values import Column, Problem
from sqlite_utils import Database as Connection

MAX_PROBLEMS = 1000
Report = Callable[[str, int, int], None]
_BATCH = 1000


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what was found."""

    problems: tuple[Problem, ...]
    documents: int
    passages: int
    vectors: int
    pending: int
    """Passages that the active column has no vector for yet."""

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


class _Findings:
    """Problems up to a bound: a store of a million broken rows says so without a million lines."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, table: str, row: object, what: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(table, str(row), what))


def verify(db: Connection, report: Report = lambda label, done, total: None) -> Verdict:
    """Check everything; the connection may read only, except that the keyword index is not asked then."""
    found = _Findings()
    for row in db.execute("PRAGMA integrity_check(100)").fetchall():
        if row[0] != "ok":
            found.add("file", "", str(row[0]))
    for row in db.execute("PRAGMA foreign_key_check").fetchall():
        found.add(str(row[0]), row[1], f"refers to nothing in {row[2]}")
    documents = _documents(db, found)
    passages = _passages(db, found, report)
    vectors, pending = 0, 0
    for column in _columns(db, found):
        checked = _vectors(db, column, found, report)
        vectors += checked
        if column.state == "active":
            pending = passages - checked
    if not db.execute("PRAGMA query_only").fetchone()[0] and not words.sound(db):
        found.add("words", "", "the keyword index does not agree with the passages: rebuild it")
    return Verdict(
        problems=tuple(found.problems), documents=documents, passages=passages, vectors=vectors, pending=pending
    )


def mend(db: Connection, report: Callable[[int], None] = lambda _: None) -> int:
    """Make every index again from the truth; returns the vectors indexed."""
    words.rebuild(db)
    return sum(
        index.rebuild(db, column.number, column.embedder.dimensions, report) for column in columns.all_columns(db)
    )


def damaged_documents(db: Connection) -> list[str]:
    """Paths of documents that are not as they were written, or whose passages or vectors are not."""
    paths = dict(db.execute("SELECT id, path FROM documents").fetchall())
    broken: set[int] = set()
    for row, sealed in _sealed(db, "documents", DOCUMENT_FIELDS):
        if seal(row) != sealed:
            broken.add(row[0])
    for row, sealed in _sealed(db, "passages", PASSAGE_FIELDS):
        if seal(row) != sealed:
            broken.add(row[1])
    return sorted(paths[document] for document in broken if document in paths)


def _documents(db: Connection, found: _Findings) -> int:
    held = dict(db.execute("SELECT document, count(*) FROM passages GROUP BY document").fetchall())
    count = 0
    for row, sealed in _sealed(db, "documents", DOCUMENT_FIELDS):
        count += 1
        if seal(row) != sealed:
            found.add("documents", row[1], "is not as it was written")
        elif held.get(row[0], 0) != row[DOCUMENT_FIELDS.index("passages")]:
            found.add("documents", row[1], f"has {held.get(row[0], 0)} passages instead of {row[13]}")
    return count


def _passages(db: Connection, found: _Findings, report: Report) -> int:
    total = db.execute("SELECT count(*) FROM passages").fetchone()[0]
    count = 0
    for row, sealed in _sealed(db, "passages", PASSAGE_FIELDS):
        count += 1
        if seal(row) != sealed:
            found.add("passages", row[0], "is not as it was written")
        if not count % _BATCH:
            report("passages", count, total)
    report("passages", count, count)
    return count


def _columns(db: Connection, found: _Findings) -> list[Column]:
    for row, sealed in _sealed(db, "columns", COLUMN_FIELDS):
        if seal(row) != sealed:
            found.add("columns", row[0], "is not as it was written")
    try:
        return list(columns.all_columns(db))
    except Exception as error:  # noqa: BLE001 - a column that cannot be read is a finding, and hides its vectors
        found.add("columns", "", str(error))
        return []


def _vectors(db: Connection, column: Column, found: _Findings, report: Report) -> int:
    table = f"vectors_{column.number:d}"
    count, last = 0, -(2**62)
    query = (
        f"SELECT v.passage, v.vector, v.seal, p.seal FROM {table} v LEFT JOIN passages p ON p.id = v.passage"  # noqa: S608
        f" WHERE v.passage > ? ORDER BY v.passage LIMIT {_BATCH}"
    )
    while rows := db.execute(query, [last]).fetchall():
        for passage, vector, sealed, passage_seal in rows:
            if passage_seal is None:
                found.add(table, passage, "belongs to no passage")
            elif vector_seal(column.embedder.sha256, passage, passage_seal, vector) != sealed:
                found.add(table, passage, "is not as it was written")
        last = rows[-1][0]
        count += len(rows)
        report(table, count, column.vectors)
    if count != column.vectors:
        found.add(table, "", f"holds {count} vectors instead of {column.vectors}")
    if index.ready(db, column.number):
        _index(db, column, found)
    return count


def _index(db: Connection, column: Column, found: _Findings) -> None:
    """Compare every signature with its vector; both sides are walked once, a batch at a time."""
    import numpy as np

    table = f"index_{column.number:d}"
    held = 0
    try:
        for batch in index.every_signature(db, column.number):
            held += len(batch)
            truth = columns.read(db, column.number, [passage for passage, _ in batch])
            for passage, signature in batch:
                vector = truth.get(passage)
                if vector is None:
                    found.add(table, passage, "has no vector: rebuild the index")
                elif index.signatures(np.frombuffer(vector, "<f4")).tobytes() != signature:
                    found.add(table, passage, "does not agree with its vector: rebuild the index")
    except Exception as error:  # noqa: BLE001 - an index that cannot be read is a finding; it can be made again
        found.add(table, "", f"cannot be read: {error}")
        return
    if held != column.vectors:
        found.add(table, "", f"holds {held} signatures instead of {column.vectors}: rebuild the index")


def _sealed(db: Connection, table: str, fields: tuple[str, ...]) -> Iterator[tuple[list[Any], bytes]]:
    """Rows as they stand, with their seals, in batches by key so that no long statement holds the whole table."""
    names = ", ".join(f'"{name}"' for name in fields)
    last = -(2**62)
    query = f"SELECT {names}, seal FROM {table} WHERE {fields[0]} > ? ORDER BY {fields[0]} LIMIT {_BATCH}"  # noqa: S608
    while rows := db.execute(query, [last]).fetchall():
        for row in rows:
            yield list(row[:-1]), row[-1]
        last = rows[-1][0]
