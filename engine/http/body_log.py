"""What clients sent and got, for those who switch `privacy.log_content` on: masked, private, short-lived.

JSON lines in a file that only its owner can read, at most two of `LOG_BYTES` each, nothing older than `KEEP_S`.
Personal data, secrets and longer numbers are masked before anything is written; a body is kept to `BODY_BYTES`.
Invariant: a log that cannot be written, or falls behind, costs its own lines and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from lathe.engine.rag.ingest.personal import find_personal, mask

LOG_BYTES = 16 * 1024 * 1024
KEEP_S = 7 * 86_400.0
BODY_BYTES = 64 * 1024
_WAITING = 64
"""Entries that may wait for the disk."""

_KEYS = re.compile(r"\blathe-[\w-]{20,}|(?i:\bbearer\s+)[^\s\"']{8,}")
_NUMBERS = re.compile(r"(?<![\d.\[,])(?<!\":)(?<!\": )\+?\d(?:[ ()/-]{0,2}\d){6,}")
"""Telephone, card and account numbers and what looks like them in a text; numbers of the JSON itself are left alone."""


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    ts: float
    id: str
    """The request's id, as in the request log."""
    key: str
    route: str
    status: int
    asked: str
    answered: str


class BodyLog:
    """Appends exchanges, one after another, off the event loop."""

    def __init__(self, path: Path, warn: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._warn = warn
        self._clock = clock
        self._waiting: asyncio.Queue[Exchanged] = asyncio.Queue(_WAITING)
        self._writer: asyncio.Task[None] | None = None
        self._silent = False

    def add(self, *, serial: str, key: str, route: str, status: int, asked: bytes, answered: bytes) -> None:
        """Keep one exchange; drops it where too many wait."""
        if self._silent:
            return
        entry = Exchanged(
            ts=self._clock(),
            id=serial,
            key=key,
            route=route,
            status=status,
            asked=_text(asked),
            answered=_text(answered),
        )
        try:
            self._waiting.put_nowait(entry)
        except asyncio.QueueFull:
            return
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain())

    async def close(self) -> None:
        """Wait for what is on its way to the disk."""
        if self._writer is not None:
            await self._writer

    async def _drain(self) -> None:
        while not self._waiting.empty():
            entries = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            try:
                await asyncio.to_thread(self._write, entries)
            except OSError as error:
                self._silent = True
                self._warn(f"bodies are no longer logged: {error.strerror or error}")
                return

    def _write(self, entries: list[Exchanged]) -> None:
        self._rotate()
        lines = b"".join(msgspec.json.encode(_masked(entry)) + b"\n" for entry in entries)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(lines)

    def _rotate(self) -> None:
        """Put a full or old file aside and drop what is too old."""
        old = self._path.with_suffix(".old.jsonl")
        now = self._clock()
        if old.exists() and now - old.stat().st_mtime > KEEP_S:
            old.unlink()
        if not self._path.exists():
            return
        if self._path.stat().st_size >= LOG_BYTES or now - _began(self._path) > KEEP_S:
            self._path.replace(old)


def _began(path: Path) -> float:
    """When the first line was written; a file that cannot be read so is old."""
    with path.open("rb") as file:
        try:
            return msgspec.json.decode(file.readline(BODY_BYTES * 4), type=_Stamp).ts
        except msgspec.DecodeError:
            return 0.0


class _Stamp(msgspec.Struct):
    """The time of a line."""

    ts: float


def _text(data: bytes) -> str:
    cut = data[:BODY_BYTES].decode("utf-8", "replace")
    return cut if len(data) <= BODY_BYTES else f"{cut} [{len(data) - BODY_BYTES} bytes more]"


def redact(text: str) -> str:
    """Mask keys, personal data and long numbers."""
    text = _KEYS.sub("[KEY]", text)
    return _NUMBERS.sub("[NUMBER]", mask(text, find_personal(text)))


def _masked(entry: Exchanged) -> Exchanged:
    return msgspec.structs.replace(entry, asked=redact(entry.asked), answered=redact(entry.answered))
