"""Verify a RAG store: every row against its seal, every index against what it was made from."""

from __future__ import annotations

import asyncio

from lathe.engine.errors import ExitCode
from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.steps import RagVerifyStep
from lathe.store.rag.verify import damaged_documents


async def run(step: RagVerifyStep, context: ServiceContext) -> Outcome:
    """One row per problem; exit 1 when there is any."""
    path = store_path(await home_of(context), step.store)
    loop = asyncio.get_running_loop()

    def report(label: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(lambda: loop.create_task(context.progress(label, done, total or None, "row")))

    async with open_for_writing(path) as store:
        if step.mend:
            await asyncio.to_thread(store.rebuild_indexes)
        verdict = await asyncio.to_thread(store.verify, report)
        damaged = await asyncio.to_thread(store.read, damaged_documents) if not verdict.sound else []
    for document in damaged:
        context.log(f"{document} is damaged: build the store again to read it anew", "error")
    figures: dict[str, Figure] = {
        "problems": len(verdict.problems), "documents": verdict.documents, "passages": verdict.passages,
        "vectors": verdict.vectors, "pending": verdict.pending, "damaged_documents": len(damaged),
    }  # fmt: skip
    rows: tuple[dict[str, Figure], ...] = tuple(
        {"table": p.table, "row": p.row, "what": p.what} for p in verdict.problems
    )
    return Outcome(figures=figures, rows=rows, exit=int(ExitCode.OK if verdict.sound else ExitCode.NEGATIVE))
