"""Put golden questions into a store, from JSON lines: `{"id": ..., "text": ..., "relevant": [{"path": ...}]}`.

Invariant: the file is checked whole before the store is touched, and a question replaces the one with its id.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import DataError
from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import RagGoldenStep
from lathe.store.rag import documents, questions
from lathe.store.rag.values import Question

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


async def run(step: RagGoldenStep, context: ServiceContext) -> Outcome:
    """Read the file and enter its questions."""
    asked = await asyncio.to_thread(_read, Path(step.file))
    path = store_path(await home_of(context), step.store)
    async with open_for_writing(path) as store:
        known = {row.path for row in await asyncio.to_thread(store.read, documents.listing)}
        named = {relevant.path for question in asked for relevant in question.relevant}
        if missing := sorted(named - known):
            raise DataError(
                f"store {step.store} has no document {missing[0]!r}"
                + f" and {len(missing) - 1} more" * bool(missing[1:]),
                hint=f"`lathe rag show {step.store}` lists its documents",
            )
        await asyncio.to_thread(store.write, partial(_enter, asked))
        total = len(await asyncio.to_thread(store.read, questions.listing))
    return Outcome(figures={"added": len(asked), "questions": total})


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
