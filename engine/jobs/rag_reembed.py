"""Embed a store with another model: a second column beside the one that answers, compared, then switched in one step.

Invariant: until the switch every question is answered from the former column, and a run that is stopped goes on with
the vectors it had made.
"""

from __future__ import annotations

import asyncio

from lathe.engine.errors import ExitCode
from lathe.engine.jobs.rag_stores import embedder_of, home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.building import Builder
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.evaluating import measure_questions
from lathe.engine.rag.searching import Searcher
from lathe.engine.steps import RagReembedStep
from lathe.store.rag import columns, questions
from lathe.store.rag.knn import calibrate
from lathe.store.rag.store import RagStore


async def run(step: RagReembedStep, context: ServiceContext) -> Outcome:
    """Make the second column, compare, switch."""
    path = store_path(await home_of(context), step.store)
    async with open_for_writing(path) as store:
        embedder = await open_embedder(context.workbench, step.embedder)
        before = await asyncio.to_thread(store.read, columns.active)
        builder = Builder(store, embedder, report=context.progress)
        number = await builder.open_column()
        embedded = await builder.embed_all(number)
        figures: dict[str, Figure] = {"embedded": embedded, "column": number, "switched": False}
        if before is None or before.number == number:
            return Outcome(figures=figures | {"switched": before is None})
        golden = await asyncio.to_thread(store.read, questions.listing)
        former = await embedder_of(before, context) if golden else None
        old = await _recall(store, former, before.number) if former is not None else None
        new = await _recall(store, embedder, number) if golden else None
        figures |= {"recall@10 before": old, "recall@10 after": new, "questions": len(golden)}
        if old and new is not None and new < old * step.least_agreement:
            context.log(f"recall fell from {old:.3f} to {new:.3f}: the former column goes on answering", "warn")
            return Outcome(figures=figures, exit=int(ExitCode.NEGATIVE))
        await asyncio.to_thread(store.write, lambda db: columns.activate(db, number))
        if not step.keep:
            await asyncio.to_thread(store.write, lambda db: columns.drop(db, before.number))
        prefilter = await asyncio.to_thread(calibrate, store)
        if prefilter is not None:
            await asyncio.to_thread(store.set_prefilter, prefilter)
    return Outcome(figures=figures | {"switched": True})


async def _recall(store: RagStore, embedder: Embedder, column: int) -> float | None:
    golden = await asyncio.to_thread(store.read, questions.listing)
    measured = await measure_questions(Searcher(store, embedder, column=column), golden, "dense")
    return measured.figures.get("recall@10")
