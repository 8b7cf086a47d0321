"""`Stores`: the RAG stores of a workspace, as fronts see them. Joins files, embedders and searches; decides nothing.

Stores are opened for reading when first asked and kept; writing is the business of jobs, which hold the lock of the
one store they write. Invariant: a reader is dropped when its file was replaced or removed, so that nobody is answered
from a store that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from lathe.engine.errors import LatheError, MissingError, PolicyError, UsageError
from lathe.engine.jobs.values import FINAL
from lathe.engine.rag.asking import ask
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.exploring import stored_report
from lathe.engine.rag.ingest.report import QualityReport
from lathe.engine.rag.ingest.watch import watch
from lathe.engine.rag.requests import (
    AskEvent,
    AskRequest,
    PassageView,
    SearchRequest,
    SearchResult,
    StoreDetails,
    StoreDiff,
    Watched,
)
from lathe.engine.rag.searching import Searcher
from lathe.engine.steps import RagBuildStep, RagReembedStep
from lathe.engine.workbench import Workbench
from lathe.store.errors import NotFound, StoreError, StoreReadOnly
from lathe.store.rag import columns, documents, versions
from lathe.store.rag import questions as golden
from lathe.store.rag.knn import Nearest
from lathe.store.rag.store import RagStore, remove_file
from lathe.store.rag.values import (
    EmbedderIdentity,
    Question,
    StoredDocument,
    StoredPassage,
    StoreSettings,
    StoreStats,
    is_store_name,
)

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

Result = TypeVar("Result")
LISTED = 500
"""Documents that details show."""
LOCAL = "local"
"""The user of this machine, whom no access list of a store keeps out."""


def may_search(settings: StoreSettings, principal: str) -> bool:
    """Whether a store's access list lets somebody in; keys of the HTTP API are `key:NAME`."""
    return not settings.access or principal == LOCAL or principal.removeprefix("key:") in settings.access


class _Open(msgspec.Struct):
    """A store that is open for reading."""

    file: tuple[int, int]
    """Device and inode."""
    store: RagStore
    searcher: Searcher


class Stores:
    """The stores of one workspace."""

    def __init__(self, folder: Path, workbench: Workbench, *, lasting: bool = False) -> None:
        """`lasting`: this engine goes on after the call, so that work can be started which nobody waits for."""
        self._lasting = lasting
        self._folder = folder
        self._workbench = workbench
        self._open: dict[str, _Open] = {}
        self._embedders: dict[str, Embedder] = {}
        self._anew: set[tuple[str, str]] = set()
        """Stores, with the embedder they had, for which a new embedding was started."""
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

    async def documents(self, name: str, after: str = "", limit: int = 200) -> list[StoredDocument]:
        """Documents by path, a page at a time."""
        return await self._read(name, lambda db: documents.listing(db, limit, after))

    async def passages(self, name: str, document: str, after: int = -1, limit: int = 200) -> list[StoredPassage]:
        """A document's passages in order, those after an ordinal."""

        def work(db: Connection) -> list[StoredPassage]:
            found = documents.by_path(db, document)
            if found is None:
                raise MissingError(f"store {name} has no document {document!r}", hint=f"`lathe rag show {name}`")
            return documents.passages_of(db, found.id, after + 1, limit=limit)

        return await self._read(name, work)

    async def report(self, name: str) -> QualityReport | None:
        """The newest exploration report; None where the store was never explored."""
        return await self._read(name, stored_report)

    async def diff(self, name: str, before: int | None = None, after: int | None = None) -> StoreDiff:
        """What came between two versions; by default the last one beside the one before it."""

        def work(db: Connection) -> StoreDiff:
            numbers = [version.number for version in versions.listing(db)]
            last = numbers[0] if numbers else 0
            to = last if after is None else after
            since = next((n for n in numbers if n < to), 0) if before is None else before
            for number in (to, since):
                if number and number not in numbers:
                    raise MissingError(f"store {name} has no version {number}", hint=f"the newest is {last}")
            if since > to:
                raise UsageError(f"version {since} is newer than {to}")
            return StoreDiff(store=name, before=since, after=to, changes=tuple(versions.between(db, since, to)))

        return await self._read(name, work)

    async def share(self, name: str, principals: tuple[str, ...]) -> StoreStats:
        """Say who besides the user of this machine may search a store; nobody named: everyone with a key."""
        opened = await self._reader(name)

        def work() -> None:
            with RagStore.open(opened.store.path) as store:
                store.change_settings(
                    msgspec.structs.replace(store.settings(), access=tuple(dict.fromkeys(principals)))
                )

        await asyncio.to_thread(work)
        return await asyncio.to_thread(opened.store.stats)

    async def questions(self, name: str) -> list[Question]:
        """Golden questions by id, drafts among them."""
        return await self._read(name, lambda db: golden.listing(db, drafts=True))

    async def remove(self, name: str) -> int:
        """Delete a store for good, unless a job has to do with it; returns the bytes that are free again."""
        path = self.path_of(name)
        busy = next(
            (
                job
                for job in await self._workbench.jobs()
                if job.state not in FINAL and getattr(job.step, "store", None) == name
            ),
            None,
        )
        if busy is not None:
            raise UsageError(f"{busy.id} is at work on store {name}", hint=f"`lathe jobs cancel {busy.id}` first")
        async with self._guard:
            await self._drop(name)
        try:
            return await asyncio.to_thread(remove_file, path)
        except NotFound as error:
            raise MissingError(f"there is no store {name!r}", hint=error.hint) from error

    async def watch(self, name: str, interval_s: float = 2.0) -> AsyncGenerator[Watched, None]:
        """Bring a store up to date whenever its folders change, until the caller leaves the loop."""
        opened = await self._reader(name)
        sources = (await asyncio.to_thread(opened.store.settings)).sources
        if not sources:
            raise UsageError(f"store {name} was made without folders", hint=f"`lathe rag add {name} DIR`")
        words_only = (await asyncio.to_thread(opened.store.read, columns.active)) is None
        step = RagBuildStep(store=name, words_only=words_only)
        async with aclosing(watch([Path(source) for source in sources], interval_s)) as rounds:
            async for seen in rounds:
                job = await self._workbench.wait((await self._workbench.submit(step)).id)
                yield Watched(added=seen.added, changed=seen.changed, removed=seen.removed, job=job)

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

    async def _embedder_of(self, name: str, settings: StoreSettings, identity: EmbedderIdentity) -> Embedder | None:
        """The embedder that made a store's vectors; None where it is not on this machine any more.

        Where another model goes by its name by now, the store is embedded anew with that, once.
        """
        if identity.sha256 not in self._embedders:
            try:
                embedder = await open_embedder(self._workbench, identity.name)
            except LatheError:
                return None
            if embedder.identity.sha256 != identity.sha256:
                if self._lasting and settings.reembed == "auto" and (name, identity.sha256) not in self._anew:
                    self._anew.add((name, identity.sha256))
                    await self._workbench.submit(RagReembedStep(store=name, embedder=identity.name))
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
        if not may_search(settings, principal):
            raise PolicyError(f"{principal} may not search store {name}", hint="its owner can change the access list")
        column = await asyncio.to_thread(opened.store.read, columns.active)
        wanted = dense and column is not None and column.vectors > 0
        embedder = await self._embedder_of(name, settings, column.embedder) if wanted and column else None
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

    async def _read(self, name: str, work: Callable[[Connection], Result]) -> Result:
        opened = await self._reader(name)
        return await asyncio.to_thread(opened.store.read, work)

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
                store = await asyncio.to_thread(_open, path)
                searcher = Searcher(store, None, self._workbench)
                self._open[name] = opened = _Open(file=file, store=store, searcher=searcher)
            return opened

    async def _drop(self, name: str) -> None:
        former = self._open.pop(name, None)
        if former is not None:
            await asyncio.to_thread(former.store.close)


def _open(path: Path) -> RagStore:
    """Open a store for reading; one of an earlier release is brought up to date first."""
    try:
        return RagStore.open(path, read_only=True)
    except StoreReadOnly:
        RagStore.open(path).close()
        return RagStore.open(path, read_only=True)
