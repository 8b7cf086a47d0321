"""The output of a child process: a pipe drained into a capped file and a short tail in memory.

Invariant: whatever a child writes, the file never exceeds `cap` (one older half is kept beside it as `NAME.1`), memory
holds at most `TAIL_BYTES`, and a disk that refuses the log never disturbs the child.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path

CAP = 8 * 1024 * 1024
"""Bytes of the current file and of its predecessor together."""
TAIL_BYTES = 32 * 1024
_CHUNK = 64 * 1024
_BURST, _RATE = 4 * 1024 * 1024, 1024 * 1024
"""Bytes taken at full speed, then bytes per second: a flooding child blocks on its own pipe, not our processor."""


class ChildLog:
    """Drains a pipe until every writer has closed it."""

    def __init__(self, pipe: int, path: Path, cap: int = CAP) -> None:
        self._pipe = pipe
        self._path = path
        self._half = max(1, cap // 2)
        self._file: int | None = None
        self._size = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._lock = threading.Lock()
        self._allowance = float(_BURST)
        self._thread = threading.Thread(target=self._drain, name=f"log-{path.stem}", daemon=True)

    def start(self) -> None:
        """Begin to drain, in a thread of its own: writing to a slow disk must not stall the event loop."""
        self._open()
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until everything written so far has arrived; a grandchild may keep the pipe open for longer."""
        self._thread.join(timeout_s)

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines, undecodable bytes replaced."""
        with self._lock:
            data = b"".join(self._tail)
        return data[-TAIL_BYTES:].decode("utf-8", "replace").splitlines()[-lines:]

    def _drain(self) -> None:
        last = time.monotonic()
        try:
            while data := os.read(self._pipe, _CHUNK):
                self._keep(data)
                self._write(data)
                now = time.monotonic()
                self._allowance = min(_BURST, self._allowance + (now - last) * _RATE) - len(data)
                last = now
                if self._allowance < 0:
                    time.sleep(-self._allowance / _RATE)
        except OSError:
            pass
        finally:
            os.close(self._pipe)
            self._close()

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self._tail.append(data)
            self._tail_size += len(data)
            while self._tail and self._tail_size - len(self._tail[0]) >= TAIL_BYTES:
                self._tail_size -= len(self._tail.popleft())

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            if self._size + len(data) > self._half:
                self._rotate()
            view = memoryview(data)[-self._half :]
            while view:
                view = view[os.write(self._file, view) :]
            self._size += len(data)
        except OSError:
            self._close()

    def _rotate(self) -> None:
        self._close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._open()
        if self._file is None:
            raise OSError("log file could not be opened again")

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._file).st_size
        except OSError:
            self._file = None

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
