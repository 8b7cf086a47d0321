"""Bounded forward reading of a file: a window of fixed size, a position that cannot leave the header's limit.

Reads go through `pread`, not `mmap`: a file that another process truncates must be an error and not a SIGBUS.
Invariant: memory holds one window and what the caller asked for, and nothing is allocated for bytes that the file
does not have.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from lathe.quantize.errors import GgufError, InputMissing
from lathe.quantize.gguf.types import MAX_HEADER_BYTES

_WINDOW = 1 << 18
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Source:
    """An open file with a position; `place` names what is being read, for messages."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        self.position = position
        self.place = "the header"
        self._window = b""
        self._window_start = 0
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
        except FileNotFoundError as error:
            raise InputMissing(f"there is no file {path}", hint="check the path") from error
        try:
            status = os.fstat(self._handle)
            if not stat.S_ISREG(status.st_mode):
                raise self.error("it is not a regular file")
        except BaseException:
            self.close()
            raise
        self.size = status.st_size
        self.end = min(self.size, MAX_HEADER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def error(self, message: str, code: str = "E_GGUF_HEADER") -> GgufError:
        """Make the error to raise, with the file's name."""
        return GgufError(f"{self.path}: {message}", code=code)

    def require(self, count: int) -> None:
        """Raise unless `count` more bytes of header can be there."""
        if count > self.end - self.position:
            if self.size > self.end:
                raise self.error(f"the header is larger than {MAX_HEADER_BYTES:,} bytes", "E_GGUF_LIMIT")
            raise self.error(
                f"truncated in {self.place}: {count:,} bytes needed at byte {self.position:,}, "
                f"{max(0, self.end - self.position):,} left"
            )

    def take(self, count: int) -> bytes:
        """Read the next bytes."""
        self.require(count)
        start = self.position - self._window_start
        if start < 0 or start + count > len(self._window):
            self._load(count)
            start = 0
        self.position += count
        return self._window[start : start + count]

    def skip(self, count: int) -> None:
        """Step over bytes that are there."""
        self.require(count)
        self.position += count

    def u32(self) -> int:
        """Read an unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """Read an unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def strings(self, count: int, limit: int) -> Iterator[list[bytes]]:
        """Read `count` strings in batches of about a window; refuse one longer than `limit` bytes."""
        unpack = _U64.unpack_from
        while count:
            self.require(8)
            self._load(min(_WINDOW, self.end - self.position))
            window, size = self._window, len(self._window)
            batch: list[bytes] = []
            append = batch.append
            here = 0
            while count and here + 8 <= size:
                (length,) = unpack(window, here)
                if length > limit:
                    raise self.error(
                        f"{self.place}: a string of {length:,} bytes; the limit is {limit:,}", "E_GGUF_LIMIT"
                    )
                stop = here + 8 + length
                if stop > size:
                    break
                append(window[here + 8 : stop])
                here = stop
                count -= 1
            self.position += here
            if here == 0:  # one string larger than the window
                append(self.take(self.u64()))
                count -= 1
            yield batch

    def _load(self, count: int) -> None:
        """Fill the window from the position on, with at least `count` bytes."""
        wanted = min(max(count, _WINDOW), self.end - self.position)
        self._window = os.pread(self._handle, wanted, self.position)
        self._window_start = self.position
        if len(self._window) < count:
            raise self.error("the file shrank while it was read")
