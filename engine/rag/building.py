"""Build a store from folders: read what changed, split it, embed what has no vector, forget what is gone.

    walk -> unchanged? -> read -> split -> documents and passages   (one transaction per document)
                                                 '--> without a vector -> embed -> vectors   (one per batch)
Both halves run at once and meet only in the store. Invariant: what is committed is never done again, so a run that is
killed at any moment loses at most the document and the batch under way, and the next run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from lathe.engine.errors import LatheError, UsageError, describe
from lathe.engine.rag.embedding import Embedder
from lathe.engine.rag.sources import Found, shown, source_names, walk
from lathe.engine.rag.splitting import Splitter
from lathe.engine.rag.together import together
from lathe.engine.rag.values import ParsedDocument, ReadDocument, ReadLimits
from lathe.quantize.artefact import file_sha256
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.columns import Unembedded
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import CorpusVersion, FileError, NewDocument, NewPassage

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

Result = TypeVar("Result")
WINDOW = 1024
"""Passages taken from the store at a time, to find those of similar length."""
BATCH = 128
"""Passages whose vectors are committed together: what a kill can cost."""
READERS = 2
"""Files read at once."""
AHEAD = 8 * WINDOW
"""Passages that reading may be ahead of embedding, so that a crash finds little unfinished."""
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
        read: ReadDocument,
        *,
        count: Callable[[Sequence[str]], list[int]] | None = None,
        flags: Callable[[str], dict[str, int]] = lambda _: {},
        limits: ReadLimits = ReadLimits(),  # noqa: B008 - a frozen value
        partition: str = "",
        report: Report = silent,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`count` stands in for the tokenizer of the embedder where there is none."""
        self._store, self._embedder, self._read, self._flags = store, embedder, read, flags
        self._limits, self._partition, self._report, self._log = limits, partition, report, log
        splitter = store.settings().splitter
        if embedder is not None:
            self._splitter = Splitter(embedder.count, splitter, embedder.identity.max_tokens, embedder.reserved)
        else:
            self._splitter = Splitter(count or words, splitter, splitter.tokens, 0)
        self._files = self._done = self._unchanged = self._failed = self._embedded = 0
        self._embed_seconds = 0.0
        self._pending = 0
        self._reading = True
        self._moved = asyncio.Condition()

    async def run(self, sources: Sequence[str]) -> BuildReport:
        """Bring the store up to date with its sources.

        Raises:
            MissingError: a source is not there. LatheError: the embedder failed; what is done stays done.
        """
        began = time.monotonic()
        version = await self._write(lambda db: versions.begin(db, time.time()))
        number = await self.open_column() if self._embedder is not None else None
        found = await asyncio.to_thread(_walk_all, sources)
        self._files = len(found)
        async with together() as group:
            if number is not None:
                group.create_task(self._embed(number))
            group.create_task(self._read_all(found, version))
        await asyncio.to_thread(self._forget_gone, found, sources, version)
        if number is not None:
            await self._write(lambda db: columns.activate(db, number))
        finished = await self._write(lambda db: versions.finish(db, version, time.time()))
        return BuildReport(
            version=finished, files=self._files, unchanged=self._unchanged, embedded=self._embedded,
            failed=self._failed, seconds=time.monotonic() - began, embed_seconds=self._embed_seconds,
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
    async def _read_all(self, found: Sequence[Found], version: int) -> None:
        known: dict[str, tuple[int, int, str]] = {}
        for source in {file.source for file in found}:
            known |= await asyncio.to_thread(self._store.read, partial(documents.known, source=shown(source)))
        slots = asyncio.Semaphore(READERS)

        async def one(file: Found) -> None:
            try:
                await self._take(file, known.get(file.name), version)
            finally:
                slots.release()
            self._done += 1
            await self._tell()

        try:
            async with together() as group:
                for file in found:
                    await slots.acquire()
                    async with self._moved:
                        await self._moved.wait_for(lambda: self._embedder is None or self._pending < AHEAD)
                    group.create_task(one(file))
        finally:
            async with self._moved:
                self._reading = False
                self._moved.notify_all()

    async def _take(self, file: Found, before: tuple[int, int, str] | None, version: int) -> None:
        """Read one file, unless it is as it was."""
        if file.problem:
            await self._fail(file, "E_UNREADABLE", file.problem, "", version)
            return
        if before is not None and before[:2] == (file.size, file.mtime_ns):
            self._unchanged += 1
            return
        try:
            sha256 = await asyncio.to_thread(file_sha256, file.path)
            if before is not None and before[2] == sha256:
                self._unchanged += 1
                return
            document = await self._read(file.path, self._limits)
            passages = await asyncio.to_thread(self._split, document)
        except (LatheError, OSError) as error:
            failure = describe(error)
            await self._fail(file, failure.code, failure.message, failure.hint, version)
            return
        row = _document(file, sha256, document, self._partition)
        await self._write(lambda db: documents.put(db, row, passages, version))
        async with self._moved:
            self._pending += len(passages)
            self._moved.notify_all()

    def _split(self, document: ParsedDocument) -> list[NewPassage]:
        passages = self._splitter.stored(document)
        return [msgspec.structs.replace(p, flags=p.flags | self._flags(p.text)) for p in passages]

    async def _fail(self, file: Found, code: str, message: str, hint: str, version: int) -> None:
        self._failed += 1
        self._log(f"{file.name}: {message}")
        error = FileError(
            path=file.name, code=code, message=message, hint=hint, size=file.size, mtime_ns=file.mtime_ns,
            version=version,
        )  # fmt: skip
        await self._write(lambda db: documents.fail(db, error))

    def _forget_gone(self, found: Sequence[Found], sources: Sequence[str], version: int) -> None:
        here = {file.name for file in found}
        for source in sources:
            stored = self._store.read(partial(documents.known, source=shown(source)))
            for name in sorted(stored.keys() - here):
                self._store.write(partial(documents.remove, path=name, version=version))
        prefixes = tuple(source_names(sources).values())
        for error in self._store.read(documents.failures):
            if error.path not in here and error.path.startswith(prefixes):
                self._store.write(partial(documents.remove, path=error.path, version=version))

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
        if self._done < self._files:
            await self._report(f"reading, {self._embedded} passages embedded", self._done, self._files, "file")
        else:
            total = self._embedded + self._pending
            await self._report("embedding", self._embedded, total, "passage")

    async def _write(self, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.to_thread(self._store.write, work)


async def no_files(path: Path, limits: ReadLimits) -> ParsedDocument:
    """The reader of a build that reads nothing."""
    raise UsageError(f"{path} is not read here: only what is stored is embedded")


def words(texts: Sequence[str]) -> list[int]:
    """Tokens guessed from words, for a store that has no embedder yet."""
    return [len(text.split()) * 4 // 3 + 1 if text.strip() else 0 for text in texts]


def _walk_all(sources: Sequence[str]) -> list[Found]:
    names = source_names(sources)
    return [file for source in sources for file in walk(source, names[source])]


def _document(file: Found, sha256: str, document: ParsedDocument, partition: str) -> NewDocument:
    return NewDocument(
        path=file.name, source=shown(file.source), sha256=sha256, size=file.size, mtime_ns=file.mtime_ns,
        media_type=document.media_type, title=document.title or Path(file.name).name, language=document.language,
        partition=partition, parser=document.parser, metadata=document.metadata, flags=document.flags,
        chars=len(document.text),
    )  # fmt: skip
