"""Build a store from folders: read what changed, split it, embed what has no vector, forget what is gone.

    walk -> unchanged? -> read (limited child) -> split -> documents and passages    (one transaction per document)
                                                                '--> without a vector -> embed -> vectors    (per batch)
Both halves run at once and meet only in the store. Invariant: what is committed is never done again, so a run that is
killed at any moment loses at most the document and the batch under way, and the next run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from lathe.engine.errors import Failure, LatheError, describe
from lathe.engine.rag.embedding import Embedder
from lathe.engine.rag.ingest.errors import DocumentError, Encrypted, NotADocument, NoText, TooMuch
from lathe.engine.rag.ingest.folder import Reader, read_with
from lathe.engine.rag.ingest.values import FileProblem, Gone, Item, KnownFile, ReadProgress, Unchanged
from lathe.engine.rag.sources import Sources
from lathe.engine.rag.splitting import Splitter
from lathe.engine.rag.together import together
from lathe.engine.rag.values import ParsedDocument, ReadLimits
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.columns import Unembedded
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import CorpusVersion, FileError, NewDocument

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

Result = TypeVar("Result")
WINDOW = 1024
"""Passages taken from the store at a time, to find those of similar length."""
BATCH = 128
"""Passages whose vectors are committed together: what a kill can cost."""
AHEAD = 8 * WINDOW
"""Passages that reading may be ahead of embedding, so that a crash finds little unfinished."""
_SETTLED = frozenset(error.code for error in (DocumentError, NotADocument, NoText, Encrypted, TooMuch))
"""Failures that the file itself is the reason for: it is read again only when it has changed."""
Report = Callable[[str, float, float | None, str], Awaitable[None]]
"""(label, done, total, unit), as jobs report progress."""


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a build did."""

    version: CorpusVersion
    files: int
    unchanged: int
    embedded: int
    """Passages that got a vector."""
    failed: int
    """Files that could not be read."""
    skipped: int
    """Files that are no documents: images, pipes, links that lead out of the folder."""
    seconds: float
    embed_seconds: float
    """Wall time in which the embedder was working."""


async def silent(_label: str, _done: float, _total: float | None, _unit: str) -> None:
    """Report to nobody."""


class Builder:
    """One build of one store, which it has open for writing."""

    def __init__(
        self,
        store: RagStore,
        embedder: Embedder | None,
        reader: Reader | None = None,
        *,
        count: Callable[[Sequence[str]], list[int]] | None = None,
        limits: ReadLimits = ReadLimits(),  # noqa: B008 - a frozen value
        partition: str = "",
        everything: bool = False,
        report: Report = silent,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`count` stands in for the tokenizer of the embedder where there is none; `everything` reads unchanged files
        too; without a reader only what is stored can be embedded."""
        self._store, self._embedder, self._reader = store, embedder, reader
        self._limits, self._partition, self._everything = limits, partition, everything
        self._report, self._log = report, log
        splitter = store.settings().splitter
        if embedder is not None:
            self._splitter = Splitter(embedder.count, splitter, embedder.identity.max_tokens, embedder.reserved)
        else:
            self._splitter = Splitter(count or words, splitter, splitter.tokens, 0)
        self._before: dict[str, KnownFile] = {}
        self._progress = ReadProgress()
        self._unchanged = self._failed = self._skipped = self._embedded = 0
        self._embed_seconds = 0.0
        self._pending = 0
        self._reading = True
        self._moved = asyncio.Condition()

    async def run(self, given: Sequence[str]) -> BuildReport:
        """Bring the store up to date with its sources.

        Raises:
            MissingError: a source is not there. LatheError: the embedder failed; what is done stays done.
        """
        began = time.monotonic()
        sources = Sources(given)
        await asyncio.to_thread(sources.check)
        version = await self._write(lambda db: versions.begin(db, time.time()))
        number = await self.open_column() if self._embedder is not None else None
        async with together() as group:
            if number is not None:
                group.create_task(self._embed(number))
            group.create_task(self._read_all(sources, version))
        if number is not None:
            await self._write(lambda db: columns.activate(db, number))
        finished = await self._write(lambda db: versions.finish(db, version, time.time()))
        return BuildReport(
            version=finished, files=self._progress.files_done, unchanged=self._unchanged, embedded=self._embedded,
            failed=self._failed, skipped=self._skipped, seconds=time.monotonic() - began,
            embed_seconds=self._embed_seconds,
        )  # fmt: skip

    async def embed_all(self, number: int) -> int:
        """Give every passage its vector in one column; returns how many got one."""
        self._reading = False
        self._pending = await asyncio.to_thread(self._store.read, lambda db: columns.lacking(db, number))
        await self._embed(number)
        return self._embedded

    async def open_column(self) -> int:
        """The column of the embedder, made if need be; the first one of a store answers from the start."""
        assert self._embedder is not None
        identity = self._embedder.identity

        def work(db: Connection) -> int:
            former = columns.of_embedder(db, identity)
            number = former.number if former else columns.create(db, identity, time.time())
            if columns.active(db) is None:
                columns.activate(db, number)
            return number

        return await self._write(work)

    # -- reading -------------------------------------------------------------------------------------------------
    async def _read_all(self, sources: Sources, version: int) -> None:
        self._before = await asyncio.to_thread(self._known, sources, version)
        assert self._reader is not None
        try:
            stream = read_with(self._reader, sources.roots, self._before, self._limits, self._seen)
            async with aclosing(stream) as items:
                async for item in items:
                    await self._take(item, sources, version)
                    await self._tell()
                    async with self._moved:
                        await self._moved.wait_for(lambda: self._embedder is None or self._pending < AHEAD)
        finally:
            async with self._moved:
                self._reading = False
                self._moved.notify_all()

    def _known(self, sources: Sources, version: int) -> dict[str, KnownFile]:
        """What the store holds of the sources, by whole path; what it can no longer be told by goes at once."""
        known: dict[str, KnownFile] = {}
        for source in sources.given:
            for name, facts in self._store.read(lambda db, source=source: documents.known(db, source)).items():  # type: ignore[misc]
                path = sources.path_of(name, source)
                if path is None:
                    self._store.write(lambda db, name=name: documents.remove(db, name, version))  # type: ignore[misc]
                elif self._everything:
                    known[path] = KnownFile("")
                else:
                    known[path] = KnownFile(facts[2], *facts[:2])
            for error in self._store.read(documents.failures):
                if (path := sources.path_of(error.path, source)) is not None:
                    settled = error.code in _SETTLED and not self._everything
                    known[path] = KnownFile("", error.size, error.mtime_ns) if settled else KnownFile("")
        return known

    def _seen(self, progress: ReadProgress) -> None:
        self._progress = progress

    async def _take(self, item: Item, sources: Sources, version: int) -> None:
        """Store what became of one file."""
        name, source = sources.cite(item.path)
        match item:
            case Unchanged(known=now):
                self._unchanged += 1
                if now.modified_ns != self._before[item.path].modified_ns:
                    await self._write(lambda db: documents.touch(db, name, now.modified_ns))
            case Gone():
                await self._write(lambda db: documents.remove(db, name, version))
            case FileProblem(failure=failure, kind=kind):
                self._failed += kind == "failed"
                self._skipped += kind == "skipped"
                await self._fail(name, failure, item.file_bytes or 0, item.modified_ns, version, kind == "skipped")
            case ParsedDocument():
                await self._put(item, name, source, version)

    async def _fail(
        self, name: str, failure: Failure, size: int, modified_ns: int, version: int, skipped: bool = False
    ) -> None:
        if not skipped:
            self._log(f"{name}: {failure.message}")
        error = FileError(
            path=name, code=failure.code, message=failure.message, hint=failure.hint, size=size,
            mtime_ns=modified_ns, version=version, skipped=skipped,
        )  # fmt: skip
        await self._write(lambda db: documents.fail(db, error))

    async def _put(self, document: ParsedDocument, name: str, source: str, version: int) -> None:
        try:
            passages = await asyncio.to_thread(self._splitter.stored, document)
        except LatheError as error:
            self._failed += 1
            await self._fail(name, describe(error), document.file_bytes, document.modified_ns, version)
            return
        row = _document(document, name, source, self._partition)
        await self._write(lambda db: documents.put(db, row, passages, version))
        async with self._moved:
            self._pending += len(passages)
            self._moved.notify_all()

    # -- embedding -----------------------------------------------------------------------------------------------
    async def _embed(self, number: int) -> None:
        after = 0
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: not self._reading or self._pending >= WINDOW)
                reading = self._reading
            missing = partial(columns.missing, number=number, after=after, limit=WINDOW)
            rows = await asyncio.to_thread(self._store.read, missing)
            if not rows:
                if not reading:
                    return
                async with self._moved:
                    self._pending = 0  # what was pending is gone: its document was replaced meanwhile
                continue
            after = rows[-1].id
            rows.sort(key=lambda row: row.tokens, reverse=True)
            for first in range(0, len(rows), BATCH):
                await self._embed_batch(number, rows[first : first + BATCH])

    async def _embed_batch(self, number: int, rows: Sequence[Unembedded]) -> None:
        assert self._embedder is not None
        began = time.monotonic()
        texts = [f"{row.heading} {row.text}" if row.heading else row.text for row in rows]
        matrix = await self._embedder.embed(texts, "passage")
        self._embed_seconds += time.monotonic() - began
        vectors = [(row.id, vector.astype("<f4").tobytes()) for row, vector in zip(rows, matrix, strict=True)]
        self._embedded += await self._write(lambda db: columns.put(db, number, vectors))
        async with self._moved:
            self._pending = max(0, self._pending - len(rows))
            self._moved.notify_all()
        await self._tell()

    async def _tell(self) -> None:
        progress = self._progress
        rate = f" {self._embedded / self._embed_seconds:.0f}/s" if self._embed_seconds > 1 else ""
        if self._reading:
            total = progress.files_total if progress.walked else None
            label = f"reading, {self._embedded} embedded{rate}" if self._embedder is not None else "reading"
            await self._report(label, progress.files_done, total, "file")
        else:
            await self._report(f"embedding{rate}", self._embedded, self._embedded + self._pending, "passage")

    async def _write(self, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.to_thread(self._store.write, work)


def words(texts: Sequence[str]) -> list[int]:
    """Tokens guessed from words, for a store that has no embedder yet."""
    return [len(text.split()) * 4 // 3 + 1 if text.strip() else 0 for text in texts]


def _document(document: ParsedDocument, name: str, source: str, partition: str) -> NewDocument:
    facts = {"charset": document.encoding, "incomplete": document.skipped[0] if document.skipped else None}
    return NewDocument(
        path=name, source=source, sha256=document.sha256, size=document.file_bytes, mtime_ns=document.modified_ns,
        media_type=document.media_type, title=document.title or Path(name).name, language=document.language,
        partition=partition, parser=document.parser,
        metadata=document.metadata | {key: value for key, value in facts.items() if value}, flags=document.flags,
        chars=len(document.text),
    )  # fmt: skip
