"""Hash a file while somebody else writes it: front to back, but for a head that is written last.

llama.cpp's quantizer leaves the head of its output blank, appends the tensors, and goes back to fill the head in. Who
knows that head beforehand can hash behind the writer instead of reading everything again afterwards, and the disk works
meanwhile, too. Invariant: a digest is returned only of the bytes that are in the file at the end; where the head came
out otherwise, or the writer did something else, there is none, and the caller reads the file again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import queue
import threading
from io import FileIO
from pathlib import Path
from typing import Any, Self

_CHUNK = 1 << 20
_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE: let the disk begin, and wait for nothing."""


class Follower:
    """Follows one file in a thread, for the length of a block."""

    def __init__(self, path: Path, head: bytes, size: int) -> None:
        """Prepare; the file is there, and empty.

        Args:
            head: what its first bytes will be once it is complete.
            size: what it will measure.
        """
        self._path = path
        self._head = head
        self._size = size
        self._digest = hashlib.sha256(head)
        self._done = len(head)
        self._written: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._file: FileIO | None = None
        self._buffer = memoryview(bytearray(_CHUNK))

    def __enter__(self) -> Self:
        self._file = self._path.open("rb", buffering=0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._file is not None:
            self._file.close()

    def written(self, end: int) -> None:
        """Say that the writer has given everything before `end` to the system, or still holds it back itself."""
        self._written.put(end)

    def digest(self) -> str | None:
        """The file's SHA-256, now that its writer is done; None where it is not what was expected."""
        self._end()
        self._take(self._size)
        assert self._file is not None
        state = os.fstat(self._file.fileno())
        if not os.path.samestat(state, self._path.stat()) or not self._done == self._size == state.st_size:
            return None
        self._file.seek(0)
        return self._digest.hexdigest() if self._file.read(len(self._head)) == self._head else None

    def _end(self) -> None:
        self._written.put(None)
        self._thread.join()

    def _follow(self) -> None:
        while (end := self._written.get()) is not None:
            self._take(end)

    def _take(self, end: int) -> None:
        """Hash what has come since."""
        assert self._file is not None
        before, there = self._done, min(end, os.fstat(self._file.fileno()).st_size)
        self._file.seek(before)
        while self._done < there:
            count = self._file.readinto(self._buffer[: min(_CHUNK, there - self._done)])
            if not count:
                return
            self._digest.update(self._buffer[:count])
            self._done += count
        if _SYNC_RANGE is not None and self._done > before:
            _SYNC_RANGE(self._file.fileno(), before, self._done - before, _START_WRITING)


def _sync_range() -> Any:
    """The system call that begins writing to the disk; None where there is none."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_SYNC_RANGE = _sync_range()
