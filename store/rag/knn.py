"""The nearest vectors of a column: exactly where that is cheap, else signatures first and true scores for the best.

    small column, or few passages allowed      -> every score computed                         exact
    large column, held in memory (`warm`)      -> XOR and popcount over signatures, rescored    approximate
    large column, first questions of a process -> the chunks of `vec0` stream by, rescored      approximate
    the same where its chunks are not known    -> `vec0` itself scans                           approximate
Invariant: a score is always the inner product with the stored vector itself; only which passages are considered is
approximate, and how good that is on this store's own vectors is what `calibrate` measures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lathe.store.errors import StoreError
from lathe.store.rag import columns, index, meta
from lathe.store.rag.filters import allowed
from lathe.store.rag.resident import Resident, is_small, scan
from lathe.store.rag.store import PREFILTER, RagStore
from lathe.store.rag.values import Column, Filter, Prefilter

if TYPE_CHECKING:
    import numpy as np
    from sqlite_utils import Database as Connection

    Array = np.ndarray[Any, Any]

Scored = list[tuple[int, float]]
DEFAULT_FACTOR = 24
"""Candidates per result before a store is calibrated."""
MIN_CANDIDATES = 128
FEW = 4096
"""Up to this many allowed passages are scored one by one."""
FACTORS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GOAL = 0.995
"""Recall at 10 that the calibration aims at, above the 0.99 that users are promised."""
Cancelled = Callable[[], bool]
EVERYTHING = Filter()


class _Now(NamedTuple):
    """The column that a search is for, as it stands."""

    column: Column
    writes: int
    prefilter: Prefilter | None


class Nearest:
    """Vector search over one open store; safe to use from several threads."""

    def __init__(self, store: RagStore, number: int | None = None) -> None:
        """`number`: the column to search; None: whichever is active."""
        self._store = store
        self._number = number
        self._resident: tuple[int, Resident] | None = None
        self._loading = threading.Lock()

    def search(
        self, query: Array, k: int, condition: Filter = EVERYTHING, *, exact: bool = False,
        cancelled: Cancelled | None = None,
    ) -> Scored:  # fmt: skip
        """The passages nearest to a unit vector, best first, with their cosine.

        Raises:
            StoreError: the store has no vectors, or the query comes from another embedder.
        """
        now = self._look()
        column = now.column
        if len(query) != column.embedder.dimensions:
            raise StoreError(f"a query of {len(query)} dimensions cannot be compared with {column.embedder.name}'s "
                             f"{column.embedder.dimensions}")  # fmt: skip
        if is_small(column):
            resident = self._held(now)
            return resident.nearest(query, k, self._mask(resident, condition, cancelled))
        if exact:
            return self._store.read(lambda db: _scan(db, column, query, k, condition), cancelled=cancelled)
        return self._prefiltered(now, query, k, condition, cancelled)

    def warm(self) -> None:
        """Read the signatures of a large column into memory, so that the next searches need not scan the file."""
        now = self._look()
        if not is_small(now.column):
            self._held(now)

    def candidates(self, k: int) -> int:
        """How many candidates a search for k results considers."""
        return _wanted(self._store.prefilter(), k)

    def _prefiltered(self, now: _Now, query: Array, k: int, condition: Filter, cancelled: Cancelled | None) -> Scored:
        column = now.column
        sql, values = allowed(condition)
        ids = self._ids(condition, cancelled)
        if ids is not None and len(ids) <= FEW:
            return self._rescored(column, query, ids, k)
        wanted = _wanted(now.prefilter, k)
        held = self._resident
        cold = held is None or held[0] != column.number
        if cold and self._store.read(lambda db: index.chunked(db, column.number)):
            import numpy as np

            among = None if ids is None else np.array(ids, np.int64)
            found = self._store.read(lambda db: scan(db, column, query, wanted, among), cancelled=cancelled)
        elif cold and self._store.read(lambda db: index.ready(db, column.number)):
            bits = index.signatures(query).tobytes()
            found = self._store.read(
                lambda db: index.nearest(db, column.number, bits, wanted, sql, values), cancelled=cancelled
            )
        else:
            import numpy as np

            resident = self._held(now)
            mask = None if ids is None else resident.mask(np.array(ids, np.int64))
            found = resident.candidates(query, wanted, mask)
        return self._rescored(column, query, found, k)

    def _rescored(self, column: Column, query: Array, passages: Sequence[int], k: int) -> Scored:
        vectors = self._store.read(lambda db: columns.read(db, column.number, passages))
        return _best(query, vectors, k)

    def _mask(self, resident: Resident, condition: Filter, cancelled: Cancelled | None) -> Array | None:
        import numpy as np

        ids = self._ids(condition, cancelled)
        return None if ids is None else resident.mask(np.array(ids, np.int64))

    def _ids(self, condition: Filter, cancelled: Cancelled | None) -> list[int] | None:
        if condition.empty:
            return None
        sql, values = allowed(condition)
        return self._store.read(lambda db: [row[0] for row in db.execute(sql, values).fetchall()], cancelled=cancelled)

    def _look(self) -> _Now:
        """What a search has to know, in one read."""
        number = self._number

        def work(db: Connection) -> _Now | None:
            column = columns.active(db) if number is None else columns.get(db, number)
            if column is None:
                return None
            return _Now(column, columns.counts(db, column.number).writes, meta.get(db, PREFILTER, Prefilter))

        now = self._store.read(work)
        if now is None:
            raise StoreError(f"{self._store.path} has no vectors", hint="search it by words, or embed it")
        return now

    def _held(self, now: _Now) -> Resident:
        """The column in memory, at least as it was at the look; one thread reads it while others wait."""
        column = now.column
        with self._loading:
            held = self._resident
            if held is None or held[0] != column.number or held[1].writes < now.writes:
                self._resident = held = (column.number, self._store.read(lambda db: Resident.load(db, column)))
            return held[1]


def _wanted(prefilter: Prefilter | None, k: int) -> int:
    return max(MIN_CANDIDATES, k * (prefilter.factor if prefilter else DEFAULT_FACTOR))


def calibrate(store: RagStore, queries: int = 100, seed: int = 0) -> Prefilter | None:
    """Find the smallest number of candidates that finds the true ten nearest, on the store's own vectors.

    Each query is a stored vector without itself. Returns None for a column that is scanned exactly anyway.
    """
    import numpy as np

    column = store.read(columns.active)
    if column is None or is_small(column):
        return None
    resident = store.read(lambda db: Resident.load(db, column))
    picked = np.random.default_rng(seed).choice(len(resident.ids), min(queries, len(resident.ids)), replace=False)
    ids = [int(resident.ids[row]) for row in picked]
    stored = store.read(lambda db: columns.read(db, column.number, ids))
    matrix = np.stack([np.frombuffer(stored[passage], "<f4") for passage in ids])
    truth = store.read(lambda db: _exact_many(db, column, matrix, 11))
    ranks: list[int] = []
    for query, own, nearest in zip(matrix, ids, truth, strict=True):
        order = resident.candidates(query, FACTORS[-1] * 10)
        vectors = store.read(partial(columns.read, number=column.number, passages=order))
        ranks += _needed(resident, query, vectors, [passage for passage in nearest if passage != own][:10])
    recalls = {factor: sum(rank <= factor * 10 for rank in ranks) / len(ranks) for factor in FACTORS}
    factor = next((factor for factor in FACTORS if recalls[factor] >= GOAL), FACTORS[-1])
    return Prefilter(factor=factor, recall=recalls[factor], queries=len(ids))


def _needed(resident: Resident, query: Array, vectors: dict[int, bytes], truth: Sequence[int]) -> list[int]:
    """How many candidates it takes until each true neighbour is among them."""
    import numpy as np

    passages = list(vectors)
    packed = index.signatures(np.stack([np.frombuffer(vectors[p], "<f4") for p in passages]))
    distances = np.bitwise_count(packed ^ index.signatures(query)).sum(1, dtype=np.int64)
    # Ties count against us: whether a tied candidate is taken is chance.
    needed = dict(zip(passages, np.searchsorted(np.sort(distances), distances, side="right"), strict=True))
    return [int(needed.get(passage, len(resident.ids))) for passage in truth]


def _exact_many(db: Connection, column: Column, queries: Array, k: int) -> list[list[int]]:
    """The true nearest of many queries in one pass over the vectors."""
    import numpy as np

    scores = np.full((len(queries), 0), 0, np.float32)
    ids = np.zeros((len(queries), 0), np.int64)
    for batch in index.vectors(db, column.number):
        block = np.frombuffer(b"".join(vector for _, vector in batch), "<f4").reshape(len(batch), -1)
        here = np.broadcast_to(np.array([passage for passage, _ in batch], np.int64), (len(queries), len(batch)))
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        ids = np.concatenate([ids, here], axis=1)
        if scores.shape[1] > k:
            keep = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, ids = np.take_along_axis(scores, keep, 1), np.take_along_axis(ids, keep, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return [[int(passage) for passage in row] for row in np.take_along_axis(ids, order, 1)]


def _scan(db: Connection, column: Column, query: Array, k: int, condition: Filter) -> Scored:
    """Every score of a large column, a batch at a time."""
    sql, values = allowed(condition)
    ids = {row[0] for row in db.execute(sql, values).fetchall()} if sql else None
    best: dict[int, float] = {}
    for batch in index.vectors(db, column.number):
        rows = {passage: vector for passage, vector in batch if ids is None or passage in ids}
        best.update(_best(query, rows, k))
        if len(best) > 8 * k:
            best = dict(sorted(best.items(), key=lambda item: -item[1])[:k])
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]


def _best(query: Array, vectors: dict[int, bytes], k: int) -> Scored:
    import numpy as np

    if not vectors:
        return []
    matrix = np.frombuffer(b"".join(vectors.values()), "<f4").reshape(len(vectors), -1)
    passages, scores = np.fromiter(vectors, np.int64, len(vectors)), matrix @ query
    order = np.lexsort((passages, -scores))[:k]
    return list(zip(passages[order].tolist(), scores[order].tolist(), strict=True))
