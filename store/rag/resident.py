"""A column in memory, for processes that search it again and again.

A small column is held whole and scanned exactly. Of a larger one only the signatures are held, one bit per dimension
(48 MB for a million vectors of 384), as a matrix of 64-bit words with one row per word, so that a scan streams through
memory: XOR, population count, add. Invariant: it says which writes of the column it has seen, and never pretends more.
"""

from __future__ import annotations

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
        width = -(-column.embedder.dimensions // 64) * 8
        if index.ready(db, column.number):
            for batch in index.every_signature(db, column.number):
                ids += [row[0] for row in batch]
                chunks.append(_padded(np.frombuffer(b"".join(row[1] for row in batch), np.uint8), len(batch), width))
        else:
            for batch in index.vectors(db, column.number):
                ids += [row[0] for row in batch]
                matrix = np.frombuffer(b"".join(row[1] for row in batch), "<f4").reshape(len(batch), -1)
                chunks.append(_padded(index.signatures(matrix), len(batch), width))
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
        bits = _padded(index.signatures(query[None, :]), 1, len(self.words) * 8).view(np.uint64)[0]
        distances = np.empty(len(self.ids), np.uint16)
        for first in range(0, len(self.ids), _BLOCK):
            block = self.words[:, first : first + _BLOCK]
            total = np.zeros(block.shape[1], np.uint16)
            for word, bit in zip(block, bits, strict=True):
                total += np.bitwise_count(word ^ bit)
            distances[first : first + _BLOCK] = total
        if mask is not None:
            distances[~mask] = np.iinfo(np.uint16).max
            k = min(k, int(mask.sum()))
        if k >= len(distances):
            return [int(passage) for passage in self.ids]
        return [int(self.ids[row]) for row in np.argpartition(distances, k)[:k]]


def _padded(packed: Array, rows: int, width: int) -> Array:
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
