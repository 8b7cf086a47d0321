"""`Stores`: the RAG stores of a workspace, as fronts see them. Joins files, embedders and searches; decides nothing.

Stores are opened for reading when first asked and kept; writing is the business of jobs, which hold the lock of the
one store they write. Invariant: a reader is dropped when its file was replaced or removed, so that nobody is answered
from a store that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import msgspec
from lathe.engine.errors import LatheError, MissingError, PolicyError, UsageError
from lathe.engine.rag.asking import ask
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.requests import (
    AskEvent,
    AskRequest,
    PassageView,
    SearchRequest,
    SearchResult,
    StoreDetails,
)
from lathe.engine.rag.searching import Searcher
from lathe.engine.workbench import Workbench
from lathe.store.errors import StoreError
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.knn import Nearest
from lathe.store.rag.store import RagStore, is_store_name
from lathe.store.rag.values import EmbedderIdentity, StoreStats

LISTED = 500
"""Documents that details show."""
LOCAL = "local"
"""The user of this machine, whom no access list of a store keeps out."""


class _Open(msgspec.Struct):
    """A store that is open for reading."""

    file: tuple[int, int]
    """Device and inode."""
    store: RagStore
    searcher: Searcher


class Stores:
    """The stores of one workspace."""

    def __init__(self, folder: Path, workbench: Workbench) -> None:
        self._folder = folder
        self._workbench = workbench
        self._open: dict[str, _Open] = {}
        self._embedders: dict[str, Embedder] = {}
        self._guard = asyncio.Lock()
        self._warming: set[asyncio.Task[None]] = set()

    def path_of(self, name: str) -> Path:
        """The file of a store.

        Raises:
            UsageError: the name is none.
        """
        if not is_store_name(name):
            raise UsageError(
                f"{name!r} cannot name a store", hint="small letters, digits, dot, dash and underscore, 64 at most"
            )
        return self._folder / f"{name}.db"

    async def listing(self) -> list[StoreStats]:
        """Every store by name; files that are no stores are left out."""
        names = await asyncio.to_thread(lambda: sorted(path.stem for path in self._folder.glob("*.db")))
        found: list[StoreStats] = []
        for name in names:
            if is_store_name(name):
                with suppress(StoreError):
                    found.append(await asyncio.to_thread((await self._reader(name)).store.stats))
        return found

    async def details(self, name: str) -> StoreDetails:
        """One store with its documents, errors and versions."""
        opened = await self._reader(name)

        def work() -> StoreDetails:
            store = opened.store
            newest = store.read(lambda db: versions.listing(db, 20))
            return StoreDetails(
                stats=store.stats(),
                documents=tuple(store.read(lambda db: documents.listing(db, LISTED))),
                errors=tuple(store.read(documents.failures)),
                versions=tuple(newest),
                changes=tuple(store.read(lambda db: versions.changes(db, newest[0].number))) if newest else (),
                flags=store.read(documents.flag_totals),
            )

        return await asyncio.to_thread(work)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Find passages."""
        return await (await self._searcher(request.store, request.principal, request.mode != "bm25")).search(request)

    async def ask(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        """Answer a question from a store."""
        searcher = await self._searcher(request.store, request.principal, request.mode != "bm25")
        async with aclosing(ask(self._workbench, searcher, request)) as events:
            async for event in events:
                yield event

    async def passage(self, name: str, passage: int, principal: str = LOCAL) -> PassageView:
        """A passage in its surroundings."""
        opened = (await self._searcher(name, principal, False)).store

        def work() -> PassageView:
            found = opened.read(lambda db: documents.passages(db, [passage])).get(passage)
            if found is None:
                raise MissingError(f"store {name} has no passage {passage}", hint="it changed since: search again")
            around = opened.read(
                lambda db: documents.passages_of(db, found.document, found.ordinal - 1, found.ordinal + 1)
            )
            start, text = documents.text_around(around)
            owner = opened.read(lambda db: documents.by_path(db, found.path))
            return PassageView(
                passage=found, text=text, start=found.start - start, end=found.end - start,
                source=owner.source if owner else "",
            )  # fmt: skip

        return await asyncio.to_thread(work)

    async def embedder_of(self, identity: EmbedderIdentity) -> Embedder | None:
        """The embedder that made a store's vectors; None where it is not on this machine any more."""
        if identity.sha256 not in self._embedders:
            try:
                embedder = await open_embedder(self._workbench, identity.name)
            except LatheError:
                return None
            if embedder.identity.sha256 != identity.sha256:
                return None
            self._embedders[identity.sha256] = embedder
        return self._embedders[identity.sha256]

    async def close(self) -> None:
        """Let go of every file."""
        for task in tuple(self._warming):
            task.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        for opened in self._open.values():
            await asyncio.to_thread(opened.store.close)
        self._open.clear()

    async def _searcher(self, name: str, principal: str, dense: bool) -> Searcher:
        opened = await self._reader(name)
        settings = await asyncio.to_thread(opened.store.settings)
        if settings.access and principal != LOCAL and principal not in settings.access:
            raise PolicyError(f"{principal} may not search store {name}", hint="its owner can change the access list")
        column = await asyncio.to_thread(opened.store.read, columns.active)
        embedder = await self.embedder_of(column.embedder) if dense and column and column.vectors else None
        opened.searcher.embedder = embedder or opened.searcher.embedder
        if embedder is not None:
            self._warm(opened.searcher.nearest)
        return opened.searcher

    def _warm(self, nearest: Nearest) -> None:
        """Read a large column's signatures into memory beside the first searches."""

        async def work() -> None:
            with suppress(StoreError):
                await asyncio.to_thread(nearest.warm)

        if not self._warming:
            task = asyncio.create_task(work(), name="warm a store")
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    async def _reader(self, name: str) -> _Open:
        path = self.path_of(name)
        async with self._guard:
            try:
                facts = await asyncio.to_thread(path.stat)
            except FileNotFoundError:
                await self._drop(name)
                raise MissingError(f"there is no store {name!r}", hint="`lathe rag list` shows every store") from None
            file = (facts.st_dev, facts.st_ino)
            opened = self._open.get(name)
            if opened is None or opened.file != file:
                await self._drop(name)
                store = await asyncio.to_thread(RagStore.open, path, read_only=True)
                searcher = Searcher(store, None, self._workbench)
                self._open[name] = opened = _Open(file=file, store=store, searcher=searcher)
            return opened

    async def _drop(self, name: str) -> None:
        former = self._open.pop(name, None)
        if former is not None:
            await asyncio.to_thread(former.store.close)
