"""The wire format of protocol buffers, walked in place: fields of a message by number, without loading the message.

Only what a bounded look into a foreign file needs. Invariant: no field reaches outside the message that holds it, and
a file costs at most `MAX_FIELDS` steps and one window of memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from lathe.quantize.errors import FormatError, InputMissing

MAX_FILE_BYTES = 2 << 30
"""The format's own limit for one message."""
MAX_FIELDS = 4_000_000
_WINDOW = 1 << 16
_VARINT, _FIXED64, _SPAN, _FIXED32 = 0, 1, 2, 5


class Span(NamedTuple):
    """Bytes of a file: a string, or a message inside a message."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class WireFile:
    """A file that holds one message; `code` is the error code of what is found wrong with it."""

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        self._code = code
        self._steps = 0
        self._window = b""
        self._window_start = 0
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise InputMissing(f"there is no file {path}", hint="check the path") from error
        try:
            status = os.fstat(self._handle)
            if not stat.S_ISREG(status.st_mode):
                raise self.error("it is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise self.error(f"{status.st_size:,} bytes; the limit of its format is {MAX_FILE_BYTES:,}")
        except BaseException:
            self.close()
            raise
        self.message = Span(0, status.st_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def error(self, message: str) -> FormatError:
        """Make the error to raise, with the file's name."""
        return FormatError(f"{self.path}: {message}", code=self._code)

    def fields(self, message: Span, *, fixed: bool = False) -> Iterator[tuple[int, int | Span]]:
        """Yield (field number, number or span) of a message in file order.

        Fixed-size numbers are skipped; with `fixed` their bytes come as a span.
        """
        position = message.start
        while position < message.stop:
            self._steps += 1
            if self._steps > MAX_FIELDS:
                raise self.error(f"more than {MAX_FIELDS:,} fields")
            key, position = self._varint(position, message.stop)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, position = self._varint(position, message.stop)
                yield number, value
            elif kind == _SPAN:
                size, position = self._varint(position, message.stop)
                if size > message.stop - position:
                    raise self.error(f"a field of {size:,} bytes at byte {position:,} leaves its message")
                yield number, Span(position, position + size)
                position += size
            elif kind in (_FIXED32, _FIXED64):
                start, position = position, position + (4 if kind == _FIXED32 else 8)
                if position > message.stop:
                    raise self.error(f"truncated at byte {position:,}")
                if fixed:
                    yield number, Span(start, position)
            else:
                raise self.error(f"wire type {kind} at byte {position:,}")

    def numbers(self, value: int | Span, limit: int) -> list[int]:
        """Decode a repeated number, packed or not, of at most `limit` items per field."""
        if isinstance(value, int):
            return [value]
        found: list[int] = []
        position = value.start
        while position < value.stop:
            if len(found) == limit:
                raise self.error(f"more than {limit} numbers at byte {value.start:,}")
            number, position = self._varint(position, value.stop)
            found.append(number)
        return found

    def text(self, value: int | Span, limit: int = 4096) -> str:
        """Decode a string; invalid UTF-8 becomes U+FFFD."""
        return self.read(value, limit).decode("utf-8", "replace")

    def read(self, value: int | Span, limit: int = 4096) -> bytes:
        """Return the bytes of a field of at most `limit`."""
        if isinstance(value, int) or value.size > limit:
            raise self.error("a number or an overlong text stands where a name belongs")
        if value.size > _WINDOW:
            return os.pread(self._handle, value.size, value.start)
        if value.start < self._window_start or value.stop > self._window_start + len(self._window):
            self._load(value.start)
        start = value.start - self._window_start
        return self._window[start : start + value.size]

    def span(self, value: int | Span) -> Span:
        """Require a message where there could be a number."""
        if isinstance(value, int):
            raise self.error("a number stands where a message belongs")
        return value

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        index = position - self._window_start
        if index < 0 or index + 10 > len(self._window):
            self._load(position)
            index = 0
        value = shift = 0
        window = self._window
        for byte in window[index : index + min(10, stop - position)]:
            value |= (byte & 0x7F) << shift
            position += 1
            if byte < 0x80:
                return value & (1 << 64) - 1, position
            shift += 7
        raise self.error(f"truncated at byte {position:,}")

    def _load(self, position: int) -> None:
        self._window = os.pread(self._handle, _WINDOW, position)
        self._window_start = position
