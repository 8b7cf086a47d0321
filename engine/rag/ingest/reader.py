"""The engine's side of the parser's process: one long-lived child, replaced when a file kills it.

    async with DocumentReader(log_path) as read:
        document = await read(path, limits)
Invariant: a file costs at most `wall_s` seconds and one child; after any way of failing, or of being cancelled, the
next file meets a child that is in step.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

import msgspec
from lathe.engine.errors import CrashedError, Failure, LatheError, describe, revive
from lathe.engine.process import Child, ExitCause, spawn
from lathe.engine.rag.ingest.errors import DocumentError, TooMuch
from lathe.engine.rag.ingest.protocol import Failed, FromParser, Parsed, Part, Read, Ready, Same
from lathe.engine.rag.ingest.values import Cleaning
from lathe.engine.rag.values import Block, ParsedDocument, ReadLimits
from lathe.engine.wire import WireError

_START_S = 60.0
"""For a process to be ready; a loaded machine is slow to import."""
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Threads reserve address space, which is what the memory limit counts."""


class DocumentReader:
    """Reads files in a limited process; an async context manager that is also the `ReadDocument` of values.py."""

    def __init__(self, log_path: Path, cleaning: Cleaning | None = None) -> None:
        self._log_path = log_path
        self._cleaning = cleaning or Cleaning()
        self._child: Child | None = None
        self._incoming: AsyncIterator[FromParser] | None = None
        self._turn = asyncio.Lock()
        self.started = 0
        """Processes started so far: one, and one for each file that ended its own."""

    async def __aenter__(self) -> DocumentReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __call__(self, path: Path, limits: ReadLimits) -> ParsedDocument:
        """Read one file.

        Raises:
            LatheError: why it gives no text.
        """
        answer = await self.read(path, limits)
        if isinstance(answer, Failed):
            raise revive(answer.failure)
        assert isinstance(answer, ParsedDocument)  # `Same` answers only a known hash
        return answer

    async def read(
        self, path: Path, limits: ReadLimits, known_sha256: str | None = None
    ) -> ParsedDocument | Same | Failed:
        """Read one file, or learn that its content is as known; every failure of the file is an answer.

        Raises:
            CrashedError: the parser cannot even be started.
        """
        request = Read(os.fsencode(path), limits, self._cleaning, known_sha256)
        async with self._turn:
            await self._ensure()
            in_step = False
            try:
                async with asyncio.timeout(limits.wall_s):
                    answer, leaving = await self._ask(request)
                in_step = not leaving
                return answer
            except TimeoutError:
                return _failed(TooMuch(f"reading it takes more than {limits.wall_s:g} s"))
            except WireError as error:
                return _failed(DocumentError(f"the parser answered nonsense: {error.message}"))
            except CrashedError:
                cause = await self._ended()
                return Failed(_death(cause, limits))
            finally:
                if not in_step:
                    self._abandon()

    async def close(self) -> None:
        """End the process."""
        child, self._child, self._incoming = self._child, None, None
        if child is not None:
            child.close()  # it ends by itself when its channel closes
            await child.stop(grace_s=1.0)

    async def _ask(self, request: Read) -> tuple[ParsedDocument | Same | Failed, bool]:
        assert self._child is not None and self._incoming is not None
        await self._child.send(request)
        texts: list[str] = []
        blocks: list[Block] = []
        async for message in self._incoming:
            match message:
                case Part(text=text, blocks=some):
                    texts.append(text)
                    blocks.extend(some)
                case Parsed(document=document, leaving=leaving):
                    return msgspec.structs.replace(document, text="".join(texts), blocks=tuple(blocks)), leaving
                case Failed(leaving=leaving):
                    return message, leaving
                case Same():
                    return message, False
                case Ready():
                    raise WireError("the parser was ready twice")
        raise CrashedError("the parser ended")

    async def _ensure(self) -> None:
        """Have a child that is ready."""
        if self._child is not None:
            return
        child = await spawn(
            "lathe.engine.rag.ingest.child", role="document parser", log_path=self._log_path, env=_ENVIRONMENT
        )
        self.started += 1
        incoming: AsyncIterator[FromParser] = child.messages(FromParser)
        try:
            async with asyncio.timeout(_START_S):
                first = await anext(incoming, None)
        except TimeoutError:
            first = None
        except BaseException:
            child.kill()
            child.close()
            raise
        if not isinstance(first, Ready):
            cause = await child.stop(grace_s=0.1)
            raise CrashedError(f"the document parser did not start: {cause.reason}", hint=f"its log: {self._log_path}")
        self._child, self._incoming = child, incoming

    async def _ended(self) -> ExitCause | None:
        """How the child died; None when its channel closed but it lives."""
        assert self._child is not None
        try:
            async with asyncio.timeout(5.0):
                return await self._child.wait()
        except TimeoutError:
            return None

    def _abandon(self) -> None:
        """Leave this child behind: its reaper collects it."""
        child, self._child, self._incoming = self._child, None, None
        if child is not None:
            child.kill()
            child.close()


def _failed(error: LatheError) -> Failed:
    return Failed(describe(error))


def _death(cause: ExitCause | None, limits: ReadLimits) -> Failure:
    """The row of a file that ended its parser."""
    if cause is not None and cause.out_of_memory:
        return describe(TooMuch(f"reading it takes more than {limits.memory_bytes >> 20} MiB of memory"))
    reason = cause.reason if cause is not None else "closed its channel"
    return describe(DocumentError(f"the parser {reason} while reading it", code="E_PARSER_CRASH"))
