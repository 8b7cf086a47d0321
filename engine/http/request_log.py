"""One line per HTTP request: ids, sizes and timings, and nothing that a client wrote.

Lines go to the bus as `LogLine`s. Under a flood of refusals the lines of one second are counted instead of written.
Invariant: route templates, statuses, key names, model names and numbers; never a body, a raw path or a header value.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec
from lathe.engine.events import Event, LogLine
from lathe.engine.generation import Timing, Usage

LINES_PER_S = 50


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one request."""

    id: str
    client: str
    route: str
    """Method and path template; `-` where none matched."""
    status: int
    """499: the client left."""
    seconds: float
    bytes_in: int = 0
    bytes_out: int = 0
    key: str = "-"
    model: str | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    error: str | None = None
    """Class or code of the failure, never its text."""


def line(record: Record) -> str:
    """Return the record as one line of `name=value`."""
    parts = [record.id, f"{record.client} key={record.key} {record.route} {record.status}"]
    parts.append(f"{record.seconds * 1000:.1f}ms in={record.bytes_in}B out={record.bytes_out}B")
    if record.model is not None:
        parts.append(f"model={record.model}")
    if record.usage is not None:
        usage = record.usage
        parts.append(f"prompt={usage.prompt_tokens} cached={usage.cached_tokens} generated={usage.completion_tokens}")
    if record.timing is not None:
        first = record.timing.first_token_s
        ttft = "-" if first is None else f"{first * 1000:.1f}ms"
        parts.append(f"queue={record.timing.queue_s * 1000:.1f}ms ttft={ttft}")
    if record.error is not None:
        parts.append(f"error={record.error}")
    return " ".join(parts)


class RequestLog:
    """Writes records as log lines, at most `LINES_PER_S`."""

    def __init__(self, publish: Callable[[Event], None], clock: Callable[[], float] = time.time) -> None:
        self._publish = publish
        self._clock = clock
        self._second = 0
        self._written = 0
        self._dropped = 0

    def add(self, record: Record) -> None:
        """Write a record, or count it where too many come at once."""
        now = self._clock()
        if int(now) != self._second:
            self.flush()
            self._second, self._written = int(now), 0
        if self._written >= LINES_PER_S:
            self._dropped += 1
            return
        self._written += 1
        self.note(_level(record.status), line(record))

    def flush(self) -> None:
        """Tell how many lines were left out."""
        if self._dropped:
            self.note("warn", f"{self._dropped} more requests in one second")
            self._dropped = 0

    def note(self, level: Literal["debug", "info", "warn", "error"], text: str) -> None:
        """Write one line of the server's own."""
        self._publish(LogLine(ts=self._clock(), level=level, source="http", text=text))


def _level(status: int) -> Literal["info", "warn", "error"]:
    if status >= 500:
        return "error"
    return "warn" if status >= 400 and status != 499 else "info"
