"""From folders to documents: walk, skip what is known, read ahead of whoever embeds. The door of ingest.

    walk (thread, at most 20,000 files ahead) -> reader (one limited child) -> queue (32 M characters) -> caller
Invariant: `Gone` comes only after everything else, only for files below folders that could be listed; leaving the loop
early stops walk, child and queue.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec
from lathe.engine.rag.ingest.ahead import AheadQueue
from lathe.engine.rag.ingest.protocol import Failed, Same
from lathe.engine.rag.ingest.reader import DocumentReader
from lathe.engine.rag.ingest.values import Cleaning, FileProblem, Gone, Item, KnownFile, ReadProgress, Unchanged
from lathe.engine.rag.ingest.walk import Found, Unlisted, walk
from lathe.engine.rag.values import ParsedDocument, ReadLimits

AHEAD_CHARS = 32 * 1024 * 1024
"""Characters of documents that may wait for the embedder."""
_AHEAD_FILES = 20_000
_BATCH = 512
_ITEM = 1_000
"""What an item without text weighs."""

Report = Callable[[ReadProgress], None]


class Reader(Protocol):
    """What reads one file; `DocumentReader` does it in a limited process."""

    async def read(
        self, path: Path, limits: ReadLimits, known_sha256: str | None = None
    ) -> ParsedDocument | Same | Failed:
        """Read a file, or tell that its content has the hash it was known by; every failure is an answer."""


_Entry = Found | FileProblem | Unlisted


async def read_folder(
    roots: Sequence[Path],
    known: Mapping[str, KnownFile],
    limits: ReadLimits | None = None,
    *,
    log_path: Path,
    cleaning: Cleaning | None = None,
    report: Report | None = None,
    trust_times: bool = True,
    ahead_chars: int = AHEAD_CHARS,
) -> AsyncGenerator[Item, None]:
    """Yield what became of every file below some roots.

    `known` is what the store holds, by the names that items carry; a file whose size and time are as remembered is
    `Unchanged` without being opened unless `trust_times` is false, and one that was only touched is found by its hash.
    A run that was cut short is resumed by calling again with what was stored by then.
    """
    async with (
        DocumentReader(log_path, cleaning) as reader,
        aclosing(read_with(reader, roots, known, limits, report, trust_times, ahead_chars)) as items,
    ):
        async for item in items:
            yield item


async def read_with(
    reader: Reader,
    roots: Sequence[Path],
    known: Mapping[str, KnownFile],
    limits: ReadLimits | None = None,
    report: Report | None = None,
    trust_times: bool = True,
    ahead_chars: int = AHEAD_CHARS,
) -> AsyncGenerator[Item, None]:
    """The same with a reader that is there already."""
    run = _Run(roots, known, limits or ReadLimits(), report or (lambda _: None), trust_times, ahead_chars)
    walking = asyncio.create_task(run.walk(), name="ingest-walk")
    reading = asyncio.create_task(run.read(reader), name="ingest-read")
    try:
        while (item := await run.ready.get()) is not None:
            yield item
        await reading  # first: where it failed, nobody takes what the walk still finds
        await walking
    finally:
        for task in (reading, walking):
            task.cancel()
        await asyncio.gather(walking, reading, return_exceptions=True)


class _Run:
    def __init__(
        self,
        roots: Sequence[Path],
        known: Mapping[str, KnownFile],
        limits: ReadLimits,
        report: Report,
        trust_times: bool,
        ahead_chars: int,
    ) -> None:
        self.ready: AheadQueue[Item] = AheadQueue(ahead_chars)
        self._found: AheadQueue[_Entry] = AheadQueue(_AHEAD_FILES)
        self._roots = roots
        self._known = known
        self._limits = limits
        self._report = report
        self._trust_times = trust_times
        self._progress = ReadProgress()
        self._missing = set(known)
        self._unlisted: list[str] = []

    async def walk(self) -> None:
        """Find files ahead of reading them, listing folders in a thread."""
        try:
            entries = walk(self._roots)
            while batch := await asyncio.to_thread(_take, entries):
                for entry in batch:
                    if isinstance(entry, Found):
                        self._advance(files_total=1, bytes_total=entry.file_bytes)
                    await self._found.put(entry, 1)
            self._progress = msgspec.structs.replace(self._progress, walked=True)
            self._advance()
        finally:
            await self._found.end()

    async def read(self, reader: Reader) -> None:
        """Turn what was found into items, in order, then tell what is gone."""
        try:
            while (entry := await self._found.get()) is not None:
                await self._one(reader, entry)
            for path in sorted(self._missing):
                if self._progress.walked and self._is_gone(path):
                    await self.ready.put(Gone(path), _ITEM)
        finally:
            await self.ready.end()

    async def _one(self, reader: Reader, entry: _Entry) -> None:
        if isinstance(entry, Unlisted):
            self._unlisted.append(entry.prefix)
            await self.ready.put(entry.problem, _ITEM)
            return
        if isinstance(entry, FileProblem):
            self._missing.discard(entry.path)
            await self.ready.put(entry, _ITEM)
            return
        self._missing.discard(entry.name)
        self._progress = msgspec.structs.replace(self._progress, current=entry.name)
        item = await self._item(reader, entry)
        self._advance(files_done=1, bytes_done=entry.file_bytes)
        await self.ready.put(item, _ITEM + (len(item.text) if isinstance(item, ParsedDocument) else 0))

    async def _item(self, reader: Reader, file: Found) -> Item:
        known = self._known.get(file.name)
        times = (file.file_bytes, file.modified_ns)
        if known is not None and self._trust_times and times == (known.file_bytes, known.modified_ns):
            return Unchanged(file.name, known)
        answer = await reader.read(file.path, self._limits, known.sha256 if known is not None else None)
        match answer:
            case Same(sha256=sha256, file_bytes=size, modified_ns=modified):
                return Unchanged(file.name, KnownFile(sha256, size, modified))
            case Failed(failure=failure, document=is_document, file_bytes=size):
                return FileProblem(
                    path=file.name,
                    failure=failure,
                    kind="failed" if is_document else "skipped",
                    file_bytes=file.file_bytes if size is None else size,
                    modified_ns=file.modified_ns,
                )
            case _:
                return answer

    def _advance(self, **steps: int) -> None:
        """Add to the counts of the progress and report it."""
        counts = {name: getattr(self._progress, name) + step for name, step in steps.items()}
        self._progress = msgspec.structs.replace(self._progress, **counts)
        self._report(self._progress)

    def _is_gone(self, path: str) -> bool:
        """It stood below a root of this run, and no folder above it was closed to us."""
        roots = [os.fsencode(os.path.realpath(root)).decode("utf-8", "backslashreplace") for root in self._roots]
        return any(_below(path, root) for root in roots) and not any(_below(path, closed) for closed in self._unlisted)


def _take(entries: Iterator[_Entry]) -> list[_Entry]:
    return list(islice(entries, _BATCH))


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
