"""Explore a RAG store: the report that screens draw, made anew."""

from __future__ import annotations

import asyncio

from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.exploring import explore
from lathe.engine.steps import RagExploreStep


async def run(step: RagExploreStep, context: ServiceContext) -> Outcome:
    """One row per pair of copies that the report shows."""
    async with open_for_writing(store_path(await home_of(context), step.store)) as store:
        await context.progress("exploring", 0, None)
        report = await asyncio.to_thread(explore, store)
    figures: dict[str, Figure] = {
        "documents": report.documents, "passages": report.passages, "tokens": report.tokens,
        "exact_duplicates": report.exact_duplicates, "near_duplicates": report.near_duplicates,
        "similar_duplicates": report.similar_duplicates, "dropped": report.dropped,
        "flagged_passages": sum(report.flagged_passages.values()), "problems": sum(report.problems.values()),
        "short_outliers": report.lengths.short_outliers, "long_outliers": report.lengths.long_outliers,
        "seconds": report.seconds,
    }  # fmt: skip
    rows: tuple[dict[str, Figure], ...] = tuple(
        {"path": s.path, "ordinal": s.ordinal, "of_path": s.of_path, "of_ordinal": s.of_ordinal, "kind": s.kind,
         "similarity": s.similarity, "text": s.text}
        for s in report.duplicate_samples
    )  # fmt: skip
    return Outcome(figures=figures, rows=rows)
