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
from pathlib import Path
from typing import Any, Self

_CHUNK = 4 << 20
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
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        os.close(self._file)

    def written(self, end: int) -> None:
        """Say that the writer has given everything before `end` to the system, or still holds it back itself."""
        self._written.put(end)

    def digest(self) -> str | None:
        """The file's SHA-256, now that its writer is done; None where it is not what was expected."""
        self._end()
        self._take(self._size)
        state = os.fstat(self._file)
        if not os.path.samestat(state, self._path.stat()) or not self._done == self._size == state.st_size:
            return None
        return self._digest.hexdigest() if os.pread(self._file, len(self._head), 0) == self._head else None

    def _end(self) -> None:
        self._written.put(None)
        self._thread.join()

    def _follow(self) -> None:
        while (end := self._written.get()) is not None:
            self._take(end)

    def _take(self, end: int) -> None:
        """Hash what has come since."""
        there = min(end, os.fstat(self._file).st_size)
        while self._done < there:
            data = os.pread(self._file, min(_CHUNK, there - self._done), self._done)
            if not data:
                return
            self._digest.update(data)
            if _SYNC_RANGE is not None:
                _SYNC_RANGE(self._file, self._done, len(data), _START_WRITING)
            self._done += len(data)


def _sync_range() -> Any:
    """The system call that begins writing to the disk; None where there is none."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_SYNC_RANGE = _sync_range()
