"""The engine's log: JSON lines in a capped file, each also an event; and pages of any log for those who read along.

One line per fact: UTC time, level, source, text. Invariant: a log that cannot be written (disk full, read-only) never
disturbs a service, and what is written holds no control characters.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from lathe.engine.events import LogLine
from lathe.engine.workbench import LogPage

Level = Literal["debug", "info", "warn", "error"]
MAX_PAGE_BYTES = 1024 * 1024
_LEVELS: dict[int, Level] = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn"}


class Journal:
    """The log of one engine."""

    def __init__(self, path: Path, max_bytes: int, publish: Callable[[LogLine], None]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._publish = publish
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0

    def write(self, text: str, level: Level = "info", source: str = "engine") -> None:
        """Log one line; multi-line text becomes one line with visible breaks."""
        line = LogLine(ts=time.time(), level=level, source=source, text=_one_line(text))
        stamp = datetime.fromtimestamp(line.ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"v": 1, "ts": stamp, "level": level, "source": source, "text": line.text}
        with self._lock:
            try:
                self._append(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            except OSError:
                self._drop()
        self._publish(line)

    def close(self) -> None:
        """Close the file; later lines open it again."""
        with self._lock:
            self._drop()

    def _append(self, line: bytes) -> None:
        if self._file is not None and self._size + len(line) > self._max_bytes:
            self._drop()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
            self._size = self._file.tell()
        self._size += self._file.write(line)

    def _drop(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass
            self._file = None


class JournalHandler(logging.Handler):
    """Carries the standard library's logging (uvicorn, our own loggers) into the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a traceback follows in the same line."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._journal.write(text, _LEVELS.get(record.levelno, "error"), record.name.removeprefix("lathe."))


def read_page(path: Path, after: int, limit: int, *, ended: bool = False) -> LogPage:
    """Whole lines of a log file from a byte offset; a negative offset means the last `limit` lines.

    Reads at most `MAX_PAGE_BYTES`; an unfinished last line waits for the next page, unless the log has ended.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - MAX_PAGE_BYTES) if after < 0 else min(after, size)
            file.seek(start)
            data = file.read(MAX_PAGE_BYTES)
    except FileNotFoundError:
        return LogPage(lines=(), next=max(after, 0), ended=ended)
    if not ended or len(data) == MAX_PAGE_BYTES:
        data = data[: data.rfind(b"\n") + 1] if b"\n" in data else data if len(data) == MAX_PAGE_BYTES else b""
    lines = data.splitlines(keepends=True)
    if after < 0:
        lines = lines[-limit:]
        end = start + len(data)
    else:
        lines = lines[:limit]
        end = start + sum(map(len, lines))
    shown = tuple(line.decode("utf-8", "replace").rstrip("\r\n") for line in lines)
    return LogPage(lines=shown, next=end, ended=ended and end >= size)


def _one_line(text: str) -> str:
    text = text.replace("\n", " \\n ") if "\n" in text else text
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)
