"""Columns: the vectors of all passages by one embedder, each column a table of its own.

    create -> building --activate--> active --(another is activated)--> retired --drop--> gone
Invariant: at most one column is active, the switch is one transaction, and a vector is stored together with a seal
over itself, its passage's seal and the embedder's hash, so it can never pass for the vector of anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from lathe.store.errors import NotFound, StoreError
from lathe.store.rag import index, meta
from lathe.store.rag.seals import seal, vector_seal
from lathe.store.rag.values import Column, EmbedderIdentity
from lathe.store.rows import from_row, to_json
from sqlite_utils import Database as Connection

Detached = dict[bytes, dict[int, bytes]]
"""Content key -> column -> vector, of passages about to be replaced."""
_MANY = 500


class Counts(msgspec.Struct, frozen=True):
    """What a column holds; counting the rows would read every vector's page."""

    rows: int = 0
    writes: int = 0
    """Grows with every change; caches compare it."""


class Unembedded(msgspec.Struct, frozen=True):
    """A passage that a column has no vector for."""

    id: int
    heading: str
    text: str
    tokens: int


def create(db: Connection, embedder: EmbedderIdentity, now: float) -> int:
    """Make an empty column for an embedder; returns its number."""
    if not 0 < embedder.dimensions <= 65536:
        raise StoreError(f"an embedder of {embedder.dimensions} dimensions cannot be stored")
    body = to_json(embedder)
    cursor = db.execute("INSERT INTO columns (embedder, state, created_at, seal) VALUES (?, 'building', ?, x'')",
                        [body, now])  # fmt: skip
    number = int(cursor.lastrowid)
    _set_state(db, number, "building")
    db.execute(f"""
        CREATE TABLE vectors_{number:d} (
            passage INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
            vector BLOB NOT NULL, seal BLOB NOT NULL
        ) STRICT""")
    index.create(db, number, embedder.dimensions)
    return number


def all_columns(db: Connection) -> tuple[Column, ...]:
    """Every column, oldest first."""
    rows = db.execute("SELECT number, embedder, state, created_at FROM columns ORDER BY number").fetchall()
    return tuple(
        from_row(
            Column,
            {"number": number, "embedder": embedder, "state": state, "created_at": created_at,
             "vectors": counts(db, number).rows},
            "columns", ("embedder",),
        )
        for number, embedder, state, created_at in rows
    )  # fmt: skip


def get(db: Connection, number: int) -> Column:
    """One column."""
    found = next((column for column in all_columns(db) if column.number == number), None)
    if found is None:
        raise NotFound(f"the store has no column {number}")
    return found


def active(db: Connection) -> Column | None:
    """The column that answers."""
    return next((column for column in all_columns(db) if column.state == "active"), None)


def of_embedder(db: Connection, embedder: EmbedderIdentity) -> Column | None:
    """The column made by exactly this embedder, whatever it is called today."""
    anonymous = msgspec.structs.replace(embedder, name="")
    found = (c for c in all_columns(db) if msgspec.structs.replace(c.embedder, name="") == anonymous)
    return next((column for column in found if column.state != "retired"), None)


def activate(db: Connection, number: int) -> None:
    """Let a column answer in place of the active one."""
    for column in all_columns(db):
        if column.state == "active" and column.number != number:
            _set_state(db, column.number, "retired")
    _set_state(db, get(db, number).number, "active")


def drop(db: Connection, number: int) -> None:
    """Forget a column with its vectors."""
    if get(db, number).state == "active":
        raise StoreError(f"column {number} is the one that answers", hint="activate another first")
    index.drop(db, number)
    db.execute(f"DROP TABLE vectors_{number:d}")
    db.execute("DELETE FROM columns WHERE number = ?", [number])
    meta.remove(db, _counts_key(number))


def missing(db: Connection, number: int, after: int, limit: int) -> list[Unembedded]:
    """Passages without a vector, by id, those after an id."""
    rows = db.execute(
        "SELECT p.id, p.heading, p.text, p.tokens FROM passages p WHERE p.id > ?"  # noqa: S608
        f" AND NOT EXISTS (SELECT 1 FROM vectors_{number:d} v WHERE v.passage = p.id) ORDER BY p.id LIMIT ?",
        [after, limit],
    )
    return [Unembedded(*row) for row in rows.fetchall()]


def lacking(db: Connection, number: int) -> int:
    """How many passages a column has no vector for."""
    passages: int = db.execute("SELECT count(*) FROM passages").fetchone()[0]
    return max(0, passages - counts(db, number).rows)


def put(db: Connection, number: int, vectors: Sequence[tuple[int, bytes]]) -> int:
    """Store vectors (little-endian float32) of passages; those of passages gone meanwhile are dropped."""
    embedder = get(db, number).embedder
    seals: dict[int, bytes] = {}
    for part in _parts([passage for passage, _ in vectors]):
        query = f"SELECT id, seal FROM passages WHERE id IN ({_marks(part)})"  # noqa: S608
        seals.update(db.execute(query, part).fetchall())
    rows = [(passage, vector, seals[passage]) for passage, vector in vectors if passage in seals]
    _insert(db, number, embedder, rows)
    return len(rows)


def _insert(db: Connection, number: int, embedder: EmbedderIdentity, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Insert (passage, vector, seal of the passage)."""
    import numpy as np

    for passage, vector, _ in rows:
        if len(vector) != embedder.dimensions * 4 or not np.isfinite(np.frombuffer(vector, "<f4")).all():
            raise StoreError(
                f"the vector of passage {passage} has not {embedder.dimensions} finite numbers",
                hint="the embedder is broken, or is not the one that the column was made with",
            )
    sealed = [(p, vector, vector_seal(embedder.sha256, p, passage_seal, vector)) for p, vector, passage_seal in rows]
    db.conn.executemany(f"INSERT INTO vectors_{number:d} VALUES (?, ?, ?)", sealed)  # noqa: S608
    index.add(db, number, [(passage, vector) for passage, vector, _ in rows])
    _count(db, number, len(rows))


def read(db: Connection, number: int, passages: Iterable[int]) -> dict[int, bytes]:
    """Vectors by passage."""
    found: dict[int, bytes] = {}
    for part in _parts(list(passages)):
        rows = db.execute(
            f"SELECT passage, vector FROM vectors_{number:d} WHERE passage IN ({_marks(part)})",  # noqa: S608
            part,
        )
        found.update(rows.fetchall())
    return found


def counts(db: Connection, number: int) -> Counts:
    """How many vectors a column holds, and how often it was written."""
    return meta.get(db, _counts_key(number), Counts) or Counts()


def content_key(heading: str, text: str) -> bytes:
    """What the vector of a passage depends on, besides the embedder."""
    return hashlib.sha256(f"{len(heading)}:{heading}{text}".encode()).digest()


def detach(db: Connection, document: int) -> Detached:
    """The sound vectors of a document about to be replaced."""
    kept: Detached = {}
    for column in all_columns(db):
        rows = db.execute(
            "SELECT p.id, p.heading, p.text, p.seal, v.vector, v.seal FROM passages p"  # noqa: S608
            f" JOIN vectors_{column.number:d} v ON v.passage = p.id WHERE p.document = ?",
            [document],
        )
        for passage, heading, text, passage_seal, vector, sealed in rows.fetchall():
            if vector_seal(column.embedder.sha256, passage, passage_seal, vector) == sealed:
                kept.setdefault(content_key(heading, text), {})[column.number] = vector
    return kept


def attach(db: Connection, kept: Detached, passages: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Give passages (id, content key, seal) the vectors that their words had before."""
    for column in all_columns(db):
        rows = [
            (passage, kept[key][column.number], sealed)
            for passage, key, sealed in passages
            if column.number in kept.get(key, {})
        ]
        if rows:
            _insert(db, column.number, column.embedder, rows)


def forget(db: Connection, passages: Sequence[int]) -> None:
    """Take passages out of every column."""
    for column in all_columns(db):
        before = db.conn.total_changes
        db.conn.executemany(
            f"DELETE FROM vectors_{column.number:d} WHERE passage = ?",  # noqa: S608
            [(passage,) for passage in passages],
        )
        gone = db.conn.total_changes - before
        index.remove(db, column.number, passages)
        _count(db, column.number, -gone)


def _count(db: Connection, number: int, difference: int) -> None:
    now = counts(db, number)
    meta.put(db, _counts_key(number), Counts(now.rows + difference, now.writes + 1))


def _counts_key(number: int) -> str:
    return f"counts {number:d}"


def _set_state(db: Connection, number: int, state: str) -> None:
    row = db.execute("SELECT number, embedder, created_at FROM columns WHERE number = ?", [number]).fetchone()
    sealed = seal((row[0], row[1], state, row[2]))
    db.execute("UPDATE columns SET state = ?, seal = ? WHERE number = ?", [state, sealed, number])


def _parts(ids: list[int]) -> list[list[int]]:
    return [ids[first : first + _MANY] for first in range(0, len(ids), _MANY)]


def _marks(part: Sequence[Any]) -> str:
    return ", ".join("?" * len(part))
