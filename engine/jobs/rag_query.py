"""Search a store with each question of a step: the batch twin of `lathe rag query`."""

from __future__ import annotations

from lathe.engine.errors import UsageError
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.requests import SearchRequest
from lathe.engine.steps import RagQueryStep


async def run(step: RagQueryStep, context: ServiceContext) -> Outcome:
    """One row per passage found."""
    if not step.questions:
        raise UsageError("rag-query: no questions given", hint="give `questions`")
    rows: list[dict[str, Figure]] = []
    seconds = 0.0
    for number, question in enumerate(step.questions):
        await context.progress("searching", number, len(step.questions), "question")
        result = await context.workbench.search_store(
            SearchRequest(
                store=step.store, query=question, k=step.k, mode=step.mode, reranker=step.reranker, mmr=step.mmr,
                filter=step.filter,
            )
        )  # fmt: skip
        seconds += result.timings["total"]
        rows += [
            {"question": question, "rank": hit.rank, "score": hit.score, "path": hit.passage.path,
             "start": hit.passage.start, "end": hit.passage.end, "text": hit.passage.text}
            for hit in result.hits
        ]  # fmt: skip
    await context.progress("searching", len(step.questions), len(step.questions), "question")
    figures: dict[str, Figure] = {
        "questions": len(step.questions), "passages": len(rows), "mean_ms": seconds / len(step.questions) * 1000,
    }  # fmt: skip
    return Outcome(figures=figures, rows=tuple(rows))
