"""Search over one store: by meaning, by words, or both; filtered, diversified, explained.

    query -> vector -> nearest passages --.
          -> words  -> BM25 ---------------+-> fused -> (reranked) -> (MMR) -> hits with the score by source
Invariant: a search that one source cannot serve says so in `note` and uses the other; it never fails for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.generation import EmbedRequest
from lathe.engine.rag.embedding import Embedder
from lathe.engine.rag.fusion import marginal_relevance, reciprocal_rank
from lathe.engine.rag.requests import Hit, Mode, SearchRequest, SearchResult, SourceScore
from lathe.engine.rag.strength import background
from lathe.engine.workbench import Workbench
from lathe.store.errors import StoreError
from lathe.store.rag import columns, copies, documents, words
from lathe.store.rag.filters import allowed
from lathe.store.rag.knn import Nearest
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import Column

if TYPE_CHECKING:
    from lathe.engine.rag.embedding import Matrix, Vector

MAX_K = 1000
POOL = 100
"""Passages that each source gives to the fusion."""


class Searcher:
    """Searches one open store."""

    def __init__(
        self, store: RagStore, embedder: Embedder | None = None, workbench: Workbench | None = None,
        column: int | None = None,
    ) -> None:  # fmt: skip
        """`column`: the vectors to search; None: those that are active."""
        self.store = store
        self.embedder = embedder
        self.nearest = Nearest(store, column)
        self._number = column
        self._workbench = workbench
        self._unrelated: tuple[str, Matrix] | None = None
        self._embedded: tuple[str, str, Vector] | None = None
        """Embedder, question and vector of the newest question: an ask needs it twice, and a build may keep the model
        busy."""

    async def unrelated(self) -> Matrix:
        """Vectors of unrelated text by this embedder, computed once."""
        assert self.embedder is not None
        if self._unrelated is None or self._unrelated[0] != self.embedder.identity.sha256:
            self._unrelated = (self.embedder.identity.sha256, await background(self.embedder))
        return self._unrelated[1]

    async def embedded(self, query: str) -> Vector:
        """The vector of a question."""
        assert self.embedder is not None
        sha256, held = self.embedder.identity.sha256, self._embedded
        if held is None or held[:2] != (sha256, query):
            [vector] = await self.embedder.embed([query], "query")
            self._embedded = held = (sha256, query, vector)
        return held[2]

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one question; leaving the call ends its reads."""
        if not 0 < request.k <= MAX_K:
            raise UsageError(f"k: {request.k} is outside 1 to {MAX_K}")
        if request.mmr is not None and not 0 <= request.mmr <= 1:
            raise UsageError(f"mmr: {request.mmr} is outside 0 to 1")
        began = time.monotonic()
        timings: dict[str, float] = {}
        mode, note, vector = request.mode, "", None
        if mode != "bm25" and (problem := self._why_not_dense()):
            if mode == "dense":
                raise UnavailableError(problem, hint="search with `--mode bm25`, or embed the store")
            mode, note = "bm25", f"{problem}: searched by words alone"
        if mode != "bm25":
            vector = await self.embedded(request.query)
            timings["embed"] = time.monotonic() - began
        left = threading.Event()
        try:
            hits = await asyncio.to_thread(self._find, request, mode, vector, timings, left)
            if request.reranker is not None and hits:
                hits = await self._rerank(request, hits, timings)
            if request.mmr is not None and mode != "bm25":
                hits = await asyncio.to_thread(self._diversify, hits, request.k, request.mmr)
        finally:
            left.set()
        timings["total"] = time.monotonic() - began
        ranked = tuple(msgspec.structs.replace(hit, rank=rank) for rank, hit in enumerate(hits[: request.k], 1))
        return SearchResult(hits=ranked, mode=mode, note=note, timings=timings)

    def _column(self) -> Column | None:
        number = self._number
        return self.store.read(columns.active if number is None else lambda db: columns.get(db, number))

    def _why_not_dense(self) -> str:
        column = self._column()
        if column is None or not column.vectors:
            return "the store has no vectors"
        if self.embedder is None:
            return f"its embedder {column.embedder.name} is not here"
        if self.embedder.identity.sha256 != column.embedder.sha256:
            return f"its vectors are by another embedder, {column.embedder.name}"
        return ""

    def _find(
        self, request: SearchRequest, mode: Mode, vector: Vector | None, timings: dict[str, float],
        left: threading.Event,
    ) -> list[Hit]:  # fmt: skip
        pool = max(POOL, 2 * request.k)
        found: dict[str, dict[int, float]] = {}
        if vector is not None:
            with _timed(timings, "dense"):
                found["dense"] = dict(
                    self.nearest.search(vector, pool, request.filter, exact=request.exact, cancelled=left.is_set)
                )
        if mode != "dense":
            sql, values = allowed(request.filter)
            with _timed(timings, "bm25"):
                found["bm25"] = dict(
                    self.store.read(
                        lambda db: words.search(db, request.query, pool, sql, values), cancelled=left.is_set
                    )
                )
        began = time.monotonic()
        ranks = {name: {item: rank for rank, item in enumerate(scores, 1)} for name, scores in found.items()}
        if len(found) > 1:
            order = reciprocal_rank({name: list(scores) for name, scores in found.items()}, {})
        else:
            order = [pair for scores in found.values() for pair in scores.items()]
        order = order[:pool]
        policy = self.store.settings().duplicates
        repeated = self.store.read(lambda db: copies.among(db, [item for item, _ in order], policy))
        order = [pair for pair in order if pair[0] not in repeated]
        passages = self.store.read(lambda db: documents.passages(db, [item for item, _ in order]))
        timings["fuse"] = time.monotonic() - began
        return [
            Hit(
                rank=rank, score=score, passage=passages[item],
                sources={n: SourceScore(ranks[n][item], found[n][item]) for n in found if item in found[n]},
            )
            for rank, (item, score) in enumerate(order, 1)
            if item in passages
        ]  # fmt: skip

    async def _rerank(self, request: SearchRequest, hits: list[Hit], timings: dict[str, float]) -> list[Hit]:
        """Let a cross-encoder read the query with each passage."""
        import numpy as np

        if self._workbench is None or request.reranker is None:
            raise UnavailableError("no reranker can be asked here")
        began = time.monotonic()
        best = hits[: max(POOL // 2, request.k)]
        answer = await self._workbench.embed(
            EmbedRequest(
                model=request.reranker, texts=tuple(hit.passage.text for hit in best), pooling="rank",
                query=request.query, client="rag",
            )
        )  # fmt: skip
        scores = np.frombuffer(answer.vectors, "<f4")
        order = sorted(range(len(best)), key=lambda i: (-float(scores[i]), i))
        timings["rerank"] = time.monotonic() - began
        return [
            msgspec.structs.replace(
                best[i], score=float(scores[i]),
                sources=best[i].sources | {"rerank": SourceScore(rank, float(scores[i]))},
            )
            for rank, i in enumerate(order, 1)
        ]  # fmt: skip

    def _diversify(self, hits: list[Hit], k: int, trade: float) -> list[Hit]:
        import numpy as np

        column = self._column()
        if column is None:
            raise StoreError("the store lost its vectors while it was searched")
        ids = [hit.passage.id for hit in hits]
        vectors = self.store.read(lambda db: columns.read(db, column.number, ids))
        known = [hit for hit in hits if hit.passage.id in vectors]
        if not known:
            return hits
        matrix = np.stack([np.frombuffer(vectors[hit.passage.id], "<f4") for hit in known])
        chosen = marginal_relevance([hit.score for hit in known], matrix, k, trade)
        return [known[i] for i in chosen]


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    timings[name] = time.monotonic() - began
