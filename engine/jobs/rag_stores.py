"""What jobs over RAG stores share: where a store lies, and the store open for writing while a job runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from lathe.engine.errors import LatheError, MissingError, UsageError
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.paths import Home
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import Column, StoreSettings, is_store_name


async def home_of(context: ServiceContext) -> Home:
    """The workspace that the engine of a job serves."""
    return Home(Path((await context.workbench.snapshot()).engine.home))


def store_path(home: Home, name: str) -> Path:
    """The file of a store."""
    if not is_store_name(name):
        raise UsageError(
            f"{name!r} cannot name a store", hint="small letters, digits, dot, dash and underscore, 64 at most"
        )
    return home.stores / f"{name}.db"


async def embedder_of(column: Column, context: ServiceContext) -> Embedder | None:
    """The embedder that made a column; None where it is not on this machine any more."""
    try:
        embedder = await open_embedder(context.workbench, column.embedder.name)
    except LatheError:
        return None
    return embedder if embedder.identity.sha256 == column.embedder.sha256 else None


@asynccontextmanager
async def open_for_writing(path: Path, settings: StoreSettings | None = None) -> AsyncIterator[RagStore]:
    """A store with its lock held; made if there are settings for a new one.

    Raises:
        MissingError: there is none. StoreLocked: another job or process writes it.
    """
    if settings is None and not await asyncio.to_thread(path.exists):
        raise MissingError(f"there is no store {path.stem!r}", hint="`lathe rag list` shows every store")
    work = partial(RagStore.create, path, settings) if settings is not None else partial(RagStore.open, path)
    opening = asyncio.create_task(asyncio.to_thread(work))
    try:
        store = await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.shield(_close_after(opening))
        raise
    try:
        yield store
    finally:
        await asyncio.shield(asyncio.to_thread(store.close))


async def _close_after(opening: asyncio.Task[RagStore]) -> None:
    """Close a store that nobody waits for any more: the thread that opens it cannot be stopped."""
    await asyncio.wait({opening})
    if opening.exception() is None:
        await asyncio.to_thread(opening.result().close)
