"""The vector index: one bit per dimension in a `vec0` table of sqlite-vec, made from the vectors and never trusted.

Its answer is a set of candidates; their scores are computed from the vectors themselves. Invariant: it is either
`ready`, and then follows its column row by row in the same transactions, or `stale`, and then nobody asks it: a process
without sqlite-vec that writes a column makes it stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from lathe.store.errors import StoreError
from lathe.store.rag import meta
from sqlite_utils import Database as Connection

if TYPE_CHECKING:
    import numpy as np

MAX_CANDIDATES = 4096
"""sqlite-vec's own limit on k."""
_BATCH = 2048


class Chunk(NamedTuple):
    """Some rows of the index."""

    ids: np.ndarray[Any, Any]
    bits: np.ndarray[Any, Any]
    """(rows, bytes)."""


class IndexState(msgspec.Struct, frozen=True):
    """Whether the index of a column may be asked."""

    state: Literal["ready", "stale"]
    version: str = ""
    """Of the sqlite-vec that made it."""


def available(db: Connection) -> bool:
    """Tell whether sqlite-vec is loaded into this connection."""
    return bool(db.execute("SELECT count(*) FROM pragma_module_list WHERE name = 'vec0'").fetchone()[0])


def state(db: Connection, number: int) -> IndexState | None:
    """A column's index; None where it never had one."""
    return meta.get(db, _key(number), IndexState)


def ready(db: Connection, number: int) -> bool:
    """Tell whether the index may be asked through this connection."""
    found = state(db, number)
    return found is not None and found.state == "ready" and available(db)


def signatures(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sign of each dimension, packed into bytes; rows are padded to whole bytes with zeros."""
    import numpy as np

    return np.packbits(vectors > 0, axis=-1, bitorder="little")


def create(db: Connection, number: int, dimensions: int) -> None:
    """Make the empty index of a new column, where sqlite-vec is loaded."""
    if not available(db):
        return
    bits = -(-dimensions // 8) * 8
    db.execute(
        f"CREATE VIRTUAL TABLE index_{number:d} USING vec0(passage INTEGER PRIMARY KEY, signature BIT[{bits:d}])"
    )
    version = db.execute("SELECT vec_version()").fetchone()[0]
    meta.put(db, _key(number), IndexState("ready", version))


def add(db: Connection, number: int, rows: Sequence[tuple[int, bytes]]) -> None:
    """Follow new vectors."""
    if not rows or not _writable(db, number):
        return
    import numpy as np

    matrix = np.frombuffer(b"".join(vector for _, vector in rows), "<f4").reshape(len(rows), -1)
    db.conn.executemany(
        f"INSERT INTO index_{number:d} (passage, signature) VALUES (?, vec_bit(?))",  # noqa: S608
        [(row[0], bits.tobytes()) for row, bits in zip(rows, signatures(matrix), strict=True)],
    )


def remove(db: Connection, number: int, passages: Sequence[int]) -> None:
    """Follow removed vectors."""
    if passages and _writable(db, number):
        db.conn.executemany(f"DELETE FROM index_{number:d} WHERE passage = ?", [(p,) for p in passages])  # noqa: S608


def drop(db: Connection, number: int) -> None:
    """Remove the index, whatever its state."""
    if available(db):
        db.execute(f"DROP TABLE IF EXISTS index_{number:d}")
    meta.remove(db, _key(number))


def rebuild(db: Connection, number: int, dimensions: int, report: Callable[[int], None] = lambda _: None) -> int:
    """Make the index again from the vectors; returns how many it holds."""
    drop(db, number)
    create(db, number, dimensions)
    done = 0
    for batch in vectors(db, number):
        add(db, number, batch)
        done += len(batch)
        report(done)
    return done


def vectors(db: Connection, number: int) -> Iterator[list[tuple[int, bytes]]]:
    """Every vector of a column by passage, a batch at a time, so that the corpus is never in memory at once."""
    last = -1
    query = f"SELECT passage, vector FROM vectors_{number:d} WHERE passage > ? ORDER BY passage LIMIT ?"  # noqa: S608
    while rows := db.execute(query, [last, _BATCH]).fetchall():
        last = rows[-1][0]
        yield rows


def every_signature(db: Connection, number: int) -> Iterator[list[tuple[int, bytes]]]:
    """Every row of the index, a batch at a time."""
    cursor = db.execute(f"SELECT passage, signature FROM index_{number:d}")  # noqa: S608
    while rows := cursor.fetchmany(_BATCH):
        yield rows


def chunked(db: Connection, number: int) -> bool:
    """Tell whether the chunks of this release of sqlite-vec are known here."""
    found = state(db, number)
    return found is not None and found.version.startswith("v0.1.") and ready(db, number)


def chunks(db: Connection, number: int) -> Iterator[Chunk]:
    """The index as sqlite-vec keeps it: a thousand signatures to a blob, read without asking for each row.

    Raises:
        StoreError: this release of sqlite-vec keeps them otherwise.
    """
    import numpy as np

    # The shadow tables of vec0 0.1; the rows of the virtual table cost a microsecond each, a chunk fifty.
    cursor = db.execute(
        "SELECT c.size, c.validity, c.rowids, v.vectors"  # noqa: S608
        f" FROM index_{number:d}_chunks c JOIN index_{number:d}_vector_chunks00 v ON v.rowid = c.chunk_id"
    )
    while (row := cursor.fetchone()) is not None:
        size, validity, rowids, packed = row
        if len(validity) * 8 != size or len(rowids) != size * 8 or not packed or len(packed) % size:
            raise StoreError("sqlite-vec keeps its chunks in a way that is not known here")
        chunk = Chunk(np.frombuffer(rowids, "<i8"), np.frombuffer(packed, np.uint8).reshape(size, -1))
        if validity.count(b"\xff") < len(validity):
            held = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little").view(bool)
            chunk = Chunk(chunk.ids[held], chunk.bits[held])
        yield chunk


def nearest(
    db: Connection, number: int, signature: bytes, k: int, allowed: str = "", values: Sequence[object] = ()
) -> list[int]:
    """The passages whose signatures differ least, out of those that the subquery allows."""
    condition = f"AND passage IN ({allowed})" if allowed else ""
    rows = db.execute(
        f"SELECT passage FROM index_{number:d} WHERE signature MATCH vec_bit(?) AND k = ? {condition}",  # noqa: S608
        [signature, min(k, MAX_CANDIDATES), *values],
    )
    return [row[0] for row in rows.fetchall()]


def _writable(db: Connection, number: int) -> bool:
    """Tell whether the index can follow; one that cannot becomes stale."""
    found = state(db, number)
    if found is None or found.state == "stale":
        return False
    if available(db):
        return True
    meta.put(db, _key(number), IndexState("stale", found.version))
    return False


def _key(number: int) -> str:
    return f"index {number:d}"
