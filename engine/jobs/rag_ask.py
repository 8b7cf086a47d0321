"""Answer each question of a step from a store: the batch twin of `lathe rag ask`."""

from __future__ import annotations

from contextlib import aclosing

from lathe.engine.errors import UsageError
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.requests import Answered, AskRequest, Checked, Retrieved
from lathe.engine.steps import RagAskStep


async def run(step: RagAskStep, context: ServiceContext) -> Outcome:
    """One row per question."""
    if not step.questions:
        raise UsageError("rag-ask: no questions given", hint="give `questions`")
    rows: list[dict[str, Figure]] = []
    for number, question in enumerate(step.questions):
        await context.progress("answering", number, len(step.questions), "question")
        rows.append(await _answer(step, question, context))
    await context.progress("answering", len(step.questions), len(step.questions), "question")
    sentences = sum(int(row.get("sentences") or 0) for row in rows)
    supported = sum(int(row.get("supported") or 0) for row in rows)
    figures: dict[str, Figure] = {
        "questions": len(rows), "answered": sum(1 for row in rows if row["in_documents"]),
        "cited": sum(1 for row in rows if row["cited"]),
        "supported": supported / sentences if sentences else None,
    }  # fmt: skip
    return Outcome(figures=figures, rows=tuple(rows))


async def _answer(step: RagAskStep, question: str, context: ServiceContext) -> dict[str, Figure]:
    request = AskRequest(
        store=step.store, question=question, model=step.model, k=step.k, max_tokens=step.max_tokens,
        support=step.support, quote=step.quote, always=step.always, mode=step.mode, reranker=step.reranker,
        mmr=step.mmr, filter=step.filter,
    )  # fmt: skip
    row: dict[str, Figure] = {"question": question}
    given: list[str] = []
    async with aclosing(context.workbench.ask_store(request)) as events:
        async for event in events:
            match event:
                case Retrieved():
                    given = [citation.passage.path for citation in event.given]
                case Answered():
                    row |= {
                        "answer": event.text, "in_documents": event.in_documents,
                        "cited": ", ".join(f"[{n}] {given[n - 1]}" for n in event.cited),
                    }  # fmt: skip
                case Checked():
                    supported = sum(sentence.supported for sentence in event.sentences)
                    row |= {"sentences": len(event.sentences), "supported": supported}
    return row
