"""Golden questions of a store: from JSON lines, `{"id": ..., "text": ..., "relevant": [{"path": ...}]}`, or drafted.

Invariant: the file is checked whole before the store is touched, a question replaces the one with its id, and what a
model drafted is asked only after somebody confirmed it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import DataError, UsageError
from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.drafting import draft
from lathe.engine.steps import RagGoldenStep
from lathe.store.rag import documents, questions
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import Question

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


async def run(step: RagGoldenStep, context: ServiceContext) -> Outcome:
    """Enter, draft, confirm, drop; one row per question that the store has then."""
    if step.draft and step.model is None:
        raise UsageError("rag-golden: drafting needs a model", hint="name one with `model`")
    asked = await asyncio.to_thread(_read, Path(step.file)) if step.file is not None else []
    path = store_path(await home_of(context), step.store)
    async with open_for_writing(path) as store:
        await asyncio.to_thread(_check, asked, store, step.store)
        await asyncio.to_thread(store.write, partial(_enter, asked))
        await asyncio.to_thread(store.write, partial(_judge, step))
        drafted = 0
        if step.draft and step.model is not None:
            async for question in draft(context.workbench, store, step.model, step.draft):
                await asyncio.to_thread(store.write, partial(_enter, [question]))
                drafted += 1
                await context.progress("drafting", drafted, step.draft, "question")
        every = await asyncio.to_thread(store.read, partial(questions.listing, drafts=True))
    figures: dict[str, Figure] = {
        "added": len(asked), "drafted": drafted, "questions": sum(q.state == "confirmed" for q in every),
        "drafts": sum(q.state == "draft" for q in every),
    }  # fmt: skip
    rows: tuple[dict[str, Figure], ...] = tuple(
        {"id": q.id, "state": q.state, "text": q.text, "path": q.relevant[0].path if q.relevant else None}
        for q in every
    )
    return Outcome(figures=figures, rows=rows)


def _check(asked: list[Question], store: RagStore, name: str) -> None:
    known = {row.path for row in store.read(documents.listing)}
    named = {relevant.path for question in asked for relevant in question.relevant}
    if missing := sorted(named - known):
        raise DataError(
            f"store {name} has no document {missing[0]!r}" + f" and {len(missing) - 1} more" * bool(missing[1:]),
            hint=f"`lathe rag show {name}` lists its documents",
        )


def _judge(step: RagGoldenStep, db: Connection) -> None:
    """Confirm and drop."""
    for number in step.drop:
        questions.remove(db, number)
    known = {question.id: question for question in questions.listing(db, drafts=True)}
    for number in step.confirm:
        if number not in known:
            raise UsageError(f"the store has no question {number!r}", hint="`lathe rag golden STORE` lists them")
        questions.put(db, msgspec.structs.replace(known[number], state="confirmed"))


def _enter(asked: list[Question], db: Connection) -> None:
    for question in asked:
        questions.put(db, question)


def _read(path: Path) -> list[Question]:
    decoder = msgspec.json.Decoder(Question)
    asked: list[Question] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            asked.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise DataError(f"{path}:{number}: {error}") from error
    return asked
