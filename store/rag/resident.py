"""A column in memory, for processes that search it again and again.

A small column is held whole and scanned exactly. Of a larger one only the signatures are held, one bit per dimension
(48 MB for a million vectors of 384), as a matrix of 64-bit words with one row per word, so that a scan streams through
memory: XOR, population count, add. Invariant: it says which writes of the column it has seen, and never pretends more.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from lathe.store.rag import columns, index
from lathe.store.rag.values import Column
from sqlite_utils import Database as Connection

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

EXACT_BYTES = 32 * 1024 * 1024
"""Columns up to this size are scanned exactly: about 20,000 vectors of 384, a scan of a few milliseconds."""
_BLOCK = 1 << 16
"""Signatures scanned at a time, so that intermediate results stay in the cache."""
_WORDS = 3
"""64-bit words whose differences add up in a byte; wider sums are formed a third as often."""
_SAMPLE = 16
"""Of so many distances one is looked at to guess where the nearest end."""
_GROUP = 16
"""Chunks of the index scanned at a time, for the same reason."""


def row_bytes(column: Column) -> int:
    """Bytes of a signature in memory: whole 64-bit words."""
    return -(-column.embedder.dimensions // 64) * 8


def is_small(column: Column) -> bool:
    """Tell whether a column is held whole."""
    return column.vectors * column.embedder.dimensions * 4 <= EXACT_BYTES


class Resident:
    """The passages of one column with their vectors or signatures."""

    def __init__(self, ids: Array, floats: Array | None, words: Array | None, writes: int) -> None:
        self.ids = ids
        self.floats = floats
        """(rows, dimensions) where the column is small."""
        self.words = words
        """(words, rows) of 64 bits where it is not."""
        self.writes = writes

    @classmethod
    def load(cls, db: Connection, column: Column) -> Resident:
        """Read a column within one snapshot."""
        import numpy as np

        writes = columns.counts(db, column.number).writes
        ids: list[int] = []
        chunks: list[Array] = []
        if is_small(column):
            for batch in index.vectors(db, column.number):
                ids += [row[0] for row in batch]
                chunks.append(np.frombuffer(b"".join(row[1] for row in batch), "<f4").reshape(len(batch), -1))
            floats = np.concatenate(chunks) if chunks else np.zeros((0, column.embedder.dimensions), np.float32)
            return cls(np.array(ids, np.int64), floats, None, writes)
        width = row_bytes(column)
        if index.chunked(db, column.number):
            parts = list(index.chunks(db, column.number))
            packed = np.concatenate([padded(part.bits, len(part.bits), width) for part in parts])
            numbers = np.concatenate([part.ids for part in parts]).astype(np.int64)
            return cls(numbers, None, np.ascontiguousarray(packed.view(np.uint64).T), writes)
        if index.ready(db, column.number):
            for batch in index.every_signature(db, column.number):
                ids += [row[0] for row in batch]
                chunks.append(padded(np.frombuffer(b"".join(row[1] for row in batch), np.uint8), len(batch), width))
        else:
            for batch in index.vectors(db, column.number):
                ids += [row[0] for row in batch]
                matrix = np.frombuffer(b"".join(row[1] for row in batch), "<f4").reshape(len(batch), -1)
                chunks.append(padded(index.signatures(matrix), len(batch), width))
        packed = np.concatenate(chunks).view(np.uint64) if chunks else np.zeros((0, width // 8), np.uint64)
        return cls(np.array(ids, np.int64), None, np.ascontiguousarray(packed.T), writes)

    @property
    def exact(self) -> bool:
        """Whether scores come from the vectors themselves."""
        return self.floats is not None

    def mask(self, allowed: Array) -> Array:
        """Rows whose passages are among the allowed ids."""
        import numpy as np

        return np.isin(self.ids, allowed)

    def nearest(self, query: Array, k: int, mask: Array | None = None) -> list[tuple[int, float]]:
        """The passages with the largest inner product, best first; only where the column is held whole."""
        import numpy as np

        assert self.floats is not None
        scores = self.floats @ query
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        best = _largest(scores, k)
        return [(int(self.ids[row]), float(scores[row])) for row in best if np.isfinite(scores[row])]

    def candidates(self, query: Array, k: int, mask: Array | None = None) -> list[int]:
        """The passages whose signatures differ least from the query's."""
        import numpy as np

        assert self.words is not None
        bits = _words(query, len(self.words) * 8)
        distances = np.empty(len(self.ids), np.uint16)
        for first in range(0, len(self.ids), _BLOCK):
            _differences(self.words[:, first : first + _BLOCK], bits, distances[first : first + _BLOCK])
        return _nearest(self.ids, distances, k, mask)


def scan(db: Connection, column: Column, query: Array, k: int, allowed: Array | None = None) -> list[int]:
    """What `Resident.candidates` finds, without holding the column: the index streams by, a few megabytes at a time."""
    import numpy as np

    width = row_bytes(column)
    bits = _words(query, width)
    ids: list[Array] = []
    distances: list[Array] = []
    chunks = index.chunks(db, column.number)
    while group := list(islice(chunks, _GROUP)):
        rows = np.concatenate([padded(chunk.bits, len(chunk.bits), width) for chunk in group]).view(np.uint64)
        total = np.zeros(len(rows), np.uint16)
        for place, bit in enumerate(bits):
            total += np.bitwise_count(rows[:, place] ^ bit)
        distances.append(total)
        ids += [chunk.ids for chunk in group]
    if not ids:
        return []
    every = np.concatenate(ids)
    return _nearest(every, np.concatenate(distances), k, None if allowed is None else np.isin(every, allowed))


def _differences(words: Array, bits: Array, into: Array) -> None:
    """Count the bits in which each column of words differs from a query's; nothing is allocated within the loop."""
    import numpy as np

    rows = words.shape[1]
    differing, count, sums = np.empty(rows, np.uint64), np.empty(rows, np.uint8), np.empty(rows, np.uint8)
    into[:] = 0
    for first in range(0, len(words), _WORDS):
        for place in range(first, min(first + _WORDS, len(words))):
            np.bitwise_xor(words[place], bits[place], out=differing)
            if place == first:
                np.bitwise_count(differing, out=sums)
            else:
                np.add(sums, np.bitwise_count(differing, out=count), out=sums)
        np.add(into, sums, out=into)


def _words(query: Array, width: int) -> Array:
    """The signature of a query as 64-bit words."""
    import numpy as np

    words: Array = padded(index.signatures(query[None, :]), 1, width).view(np.uint64)[0]
    return words


def _nearest(ids: Array, distances: Array, k: int, mask: Array | None) -> list[int]:
    """The k of least distance, in no order."""
    import numpy as np

    if mask is not None:
        distances[~mask] = np.iinfo(np.uint16).max
        k = min(k, int(mask.sum()))
    rows = np.arange(len(ids)) if k >= len(distances) else _least(distances, k)
    found: list[int] = ids[rows].tolist()
    return found


def _least(distances: Array, k: int) -> Array:
    """Where the k least stand, in no order.

    A sample says up to which distance a few more than k lie; only those are put in order, which is ten times cheaper
    than to partition all of them. Where the sample misled, all of them are.
    """
    import numpy as np

    sample = distances[::_SAMPLE]
    rank = 2 * k // _SAMPLE + 8
    if rank < len(sample):
        near = np.flatnonzero(distances <= np.partition(sample, rank)[rank])
        if len(near) >= k:
            return near if len(near) == k else near[np.argpartition(distances[near], k)[:k]]
    return np.argpartition(distances, k)[:k]


def padded(packed: Array, rows: int, width: int) -> Array:
    """Rows of bytes, filled up with zeros to a width."""
    import numpy as np

    packed = packed.reshape(rows, -1)
    if packed.shape[1] == width:
        return packed
    wide = np.zeros((rows, width), np.uint8)
    wide[:, : packed.shape[1]] = packed
    return wide


def _largest(scores: Array, k: int) -> Array:
    """Indices of the k largest, largest first, ties by position."""
    import numpy as np

    rows = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
    return rows[np.lexsort((rows, -scores[rows]))]
