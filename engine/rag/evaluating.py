"""How good a store's retrieval is: test sets and golden questions through the same search that users get.

Invariant: a figure is computed from what `Searcher` returned, never from a shortcut beside it; passages are judged by
their document, or by the span of it that a golden question names.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from lathe.engine.rag import beir
from lathe.engine.rag.building import Builder, Report, silent, words
from lathe.engine.rag.embedding import Embedder
from lathe.engine.rag.metrics import Judgements, evaluate, quantile
from lathe.engine.rag.requests import Mode, SearchRequest
from lathe.engine.rag.searching import Searcher
from lathe.engine.rag.splitting import Splitter
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import NewDocument, NewPassage, Question, StoredPassage

DEPTH = 101
"""What `recall@100` needs, and one more, which may be the query itself."""
_TOGETHER = 500
"""Documents of a test set per transaction."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one way of searching."""

    mode: Mode
    figures: dict[str, float]
    """`ndcg@10`, `recall@5`, `recall@10`, `recall@100`, `mrr@10`, `queries`, `p50_ms`, `p95_ms`."""


async def measure(
    searcher: Searcher, queries: dict[str, str], judgements: Judgements, mode: Mode, report: Report = silent,
    *, reranker: str | None = None, identify: Callable[[StoredPassage, str], list[str]] | None = None,
) -> Measured:  # fmt: skip
    """Ask every question and judge the answers.

    `identify` names what a passage counts as for a question; without it, its document, which is of one data set with
    the questions, and the document that is the question itself is passed over.
    """
    run: dict[str, list[str]] = {}
    seconds: list[float] = []
    for number, (query, text) in enumerate(queries.items(), 1):
        request = SearchRequest(store="", query=text, k=DEPTH, mode=mode, reranker=reranker)
        result = await searcher.search(request)
        seconds.append(result.timings["total"])
        run[query] = [
            name for hit in result.hits
            for name in (identify(hit.passage, query) if identify else [hit.passage.path])
        ]  # fmt: skip
        await report(f"asking, {mode}", number, len(queries), "question")
    figures = evaluate(run, judgements, ignore_identical_ids=identify is None)
    if seconds:
        figures |= {"p50_ms": statistics.median(seconds) * 1000, "p95_ms": quantile(sorted(seconds), 0.95) * 1000}
    return Measured(mode=mode, figures=figures)


async def measure_questions(searcher: Searcher, questions: Sequence[Question], mode: Mode) -> Measured:
    """The same over a store's own golden questions."""
    grades = {question.id: {_target(i): r.grade for i, r in enumerate(question.relevant)} for question in questions}
    by_id = {question.id: question for question in questions}

    def identify(passage: StoredPassage, query: str) -> list[str]:
        found = [
            _target(i) for i, relevant in enumerate(by_id[query].relevant)
            if relevant.path == passage.path
            and (relevant.start is None or relevant.end is None
                 or (relevant.start < passage.end and passage.start < relevant.end))
        ]  # fmt: skip
        return found or [f"{passage.path}#{passage.ordinal}"]

    texts = {question.id: question.text for question in questions}
    return await measure(searcher, texts, grades, mode, identify=identify)


async def load_corpus(store: RagStore, folder: Path, embedder: Embedder | None, report: Report = silent) -> float:
    """Put the corpus of a test set into a store and embed it, going on where an earlier run stopped.

    Returns the seconds that embedding took."""
    settings = store.settings().splitter
    splitter = Splitter(words, settings, settings.tokens, 0)
    if embedder is not None:
        splitter = Splitter(embedder.count, settings, embedder.identity.max_tokens, embedder.reserved)
    version = await asyncio.to_thread(store.write, lambda db: versions.begin(db, time.time()))
    known = await asyncio.to_thread(store.read, lambda db: documents.known(db, str(folder)))
    batch: list[tuple[NewDocument, list[NewPassage]]] = []
    total = 0
    for line in beir.corpus(folder):
        total += 1
        if line.id in known:
            continue
        batch.append(await asyncio.to_thread(_prepared, line, folder, splitter))
        if len(batch) == _TOGETHER:
            await _put(store, batch, version)
            await report("reading the corpus", total, None, "document")
    await _put(store, batch, version)
    await asyncio.to_thread(store.write, lambda db: versions.finish(db, version, time.time()))
    if embedder is None:
        return 0.0
    builder = Builder(store, embedder, report=report)
    began = time.monotonic()
    number = await builder.open_column()
    await builder.embed_all(number)
    await asyncio.to_thread(store.write, lambda db: columns.activate(db, number))
    return time.monotonic() - began


def _prepared(line: beir.CorpusLine, folder: Path, splitter: Splitter) -> tuple[NewDocument, list[NewPassage]]:
    parsed = beir.as_document(line)
    row = NewDocument(
        path=line.id, source=str(folder), sha256="", size=len(line.text), mtime_ns=0, media_type=parsed.media_type,
        title=line.title, chars=len(parsed.text),
    )  # fmt: skip
    return row, splitter.stored(parsed)


async def _put(store: RagStore, batch: list[tuple[NewDocument, list[NewPassage]]], version: int) -> None:
    ready = tuple(batch)
    batch.clear()
    await asyncio.to_thread(
        store.write, lambda db: [documents.put(db, row, passages, version) for row, passages in ready]
    )


def _target(number: int) -> str:
    return f"target {number}"
