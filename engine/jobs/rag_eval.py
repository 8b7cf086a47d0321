"""Measure retrieval on a BEIR-layout test set or on a store's golden questions.

A test set becomes a store of its own in the workspace's `jobs` folder, so that a second run embeds nothing again.
Invariant: figures of several ways of searching come from one and the same store.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

from lathe.engine.errors import DataError, UsageError
from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.paths import Home
from lathe.engine.rag import beir
from lathe.engine.rag.default_embedder import default_embedder
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.evaluating import Measured, load_corpus, measure, measure_questions
from lathe.engine.rag.searching import Searcher
from lathe.engine.release import RELEASE
from lathe.engine.steps import RagEvalStep
from lathe.store.rag import columns, questions
from lathe.store.rag.values import SplitterSettings, StoreSettings


async def run(step: RagEvalStep, context: ServiceContext) -> Outcome:
    """One row per embedder, way of cutting and way of searching."""
    if (step.store is None) == (step.beir is None):
        raise UsageError("rag-eval: give either a store or a BEIR folder")
    home = await home_of(context)
    if step.beir is None:
        return _outcome([(None, None, await _golden(step, step.store or "", home, context))])
    test = await asyncio.to_thread(beir.read_set, Path(step.beir), step.split)
    references = step.embedders or (step.embedder,)
    if set(step.modes) == {"bm25"}:
        references = (None,)
    elif references == (None,):
        references = (await default_embedder(context.workbench),)
    budgets: tuple[int | None, ...] = step.tokens or (None,)
    found: list[_Row] = []
    for reference in references:
        embedder = await open_embedder(context.workbench, reference) if reference is not None else None
        found += [(embedder, cut, await _beir(step, test, embedder, cut, home, context)) for cut in budgets]
    return _outcome(found)


_Row = tuple[Embedder | None, int | None, tuple[list[Measured], dict[str, Figure]]]


def _outcome(found: list[_Row]) -> Outcome:
    """A table of everything; figures by name where there is one embedder and one way of cutting."""
    rows: list[dict[str, Figure]] = []
    figures: dict[str, Figure] = {}
    for embedder, tokens, (measured, facts) in found:
        name = embedder.identity.name if embedder is not None else None
        for one in measured:
            rows.append({"mode": one.mode, "embedder": name, "tokens": tokens, **one.figures})
            prefix = "" if len(found) == 1 else f"{name or 'words'}.{tokens or 'whole'}."
            figures |= {f"{prefix}{one.mode}.{key}": value for key, value in one.figures.items()}
        if len(found) == 1:
            figures |= facts | (measured[-1].figures if measured else {})
    return Outcome(figures=figures, rows=tuple(rows))


async def _beir(
    step: RagEvalStep, test: beir.BeirSet, embedder: Embedder | None, tokens: int | None, home: Home,
    context: ServiceContext,
) -> tuple[list[Measured], dict[str, Figure]]:  # fmt: skip
    folder = Path(test.folder)
    whole = tokens is None and not step.passages
    splitter = SplitterSettings(whole=whole) if tokens is None else SplitterSettings(tokens=tokens)
    settings = StoreSettings(
        name=folder.name, created_at=time.time(), lathe=RELEASE, sources=(str(folder),), splitter=splitter
    )
    async with open_for_writing(_cache(home, folder, splitter, embedder), settings) as store:
        seconds = await load_corpus(store, folder, embedder, context.progress)
        searcher = Searcher(store, embedder, context.workbench)
        measured = [
            await measure(searcher, test.queries, test.judgements, mode, context.progress, reranker=step.reranker)
            for mode in step.modes
        ]
        stats = await asyncio.to_thread(store.stats)
    return measured, {
        "documents": stats.documents, "passages": stats.passages, "embed_s": seconds,
        "embedder": embedder.identity.name if embedder else None,
    }  # fmt: skip


def _cache(home: Home, folder: Path, splitter: SplitterSettings, embedder: Embedder | None) -> Path:
    """Where the store of a test set lies: one for each corpus, embedder and way of cutting."""
    facts = (folder / "corpus.jsonl").stat()
    identity = embedder.identity.sha256 if embedder else ""
    parts = f"{folder} {facts.st_size} {facts.st_mtime_ns} {splitter} {identity}"
    place = home.root / "jobs" / "rag-eval"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{hashlib.sha256(parts.encode()).hexdigest()[:16]}.db"


async def _golden(
    step: RagEvalStep, name: str, home: Home, context: ServiceContext
) -> tuple[list[Measured], dict[str, Figure]]:
    async with open_for_writing(store_path(home, name)) as store:
        golden = await asyncio.to_thread(store.read, questions.listing)
        if not golden:
            raise DataError(f"store {name} has no golden questions", hint=f"`lathe rag golden {name} FILE` adds some")
        column = await asyncio.to_thread(store.read, columns.active)
        embedder = await open_embedder(context.workbench, column.embedder.name) if column else None
        searcher = Searcher(store, embedder, context.workbench)
        modes = step.modes if embedder else ("bm25",)
        return [await measure_questions(searcher, golden, mode) for mode in modes], {"questions": len(golden)}
