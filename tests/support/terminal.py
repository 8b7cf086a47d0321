"""A program in a pseudo-terminal, as a user's terminal sees it: keys in, bytes out, resizes, a line that drops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self

LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"


class Terminal:
    """Runs a command in a terminal of its own until it ends; `output` is what it has written so far."""

    def __init__(
        self, command: Sequence[str], *, size: tuple[int, int] = (80, 24), environment: Mapping[str, str] | None = None
    ) -> None:
        self.output = b""
        self._code: int | None = None
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.execve(command[0], list(command), {**os.environ, "TERM": "xterm-256color", **(environment or {})})
        self.resize(*size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._code is None:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            os.close(self._file)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the kernel sends SIGWINCH."""
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Send what a keyboard would."""
        os.write(self._file, keys.encode())

    def drop(self) -> None:
        """Close the line, as when a window or an SSH session goes."""
        os.close(self._file)

    def read_until(self, word: str, limit_s: float = 60.0) -> None:
        """Wait until the word is written after all that was read before."""
        start = len(self.output)
        deadline = time.monotonic() + limit_s
        while word.encode() not in self.output[start:]:
            left = deadline - time.monotonic()
            assert left > 0, f"{word!r} was never written; the last was {self.output[-500:]!r}"
            assert self._take(left), f"it ended without writing {word!r}: {self.output[-500:]!r}"

    def settle(self) -> None:
        """Read until nothing is written for a moment: several key presses may be answered by one paint."""
        while self._take(0.3):
            pass

    def ended(self, limit_s: float = 30.0) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        deadline = time.monotonic() + limit_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                while self._take(0):
                    pass
                return self._code
            assert time.monotonic() < deadline, "it did not end"
            self._take(0.05)

    def _take(self, wait_s: float) -> bool:
        """Read what is there; false at the end of the line or when nothing came."""
        try:
            if not select.select([self._file], [], [], wait_s)[0]:
                return False
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the other side is gone, and the line may be dropped
            return False
        self.output += data
        return bool(data)
