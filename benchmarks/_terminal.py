"""The TUI in a pseudo-terminal of 160x50, as a user's terminal sees it: bytes in, bytes out, and when."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

import psutil

LATHE = [sys.executable, "-m", "lathe.tui.main"]
_SIZE = struct.pack("HHHH", 50, 160, 0, 0)


class Terminal:
    """A running TUI; `began` is when it was started."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execv(sys.executable, LATHE)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, _SIZE)

    def press(self, keys: str) -> None:
        """Send what a keyboard would."""
        os.write(self._file, keys.encode())

    def read_until(self, word: str, limit_s: float) -> float | None:
        """Seconds from now until the word was written; None if it never was."""
        began, seen, wanted = time.perf_counter(), b"", word.encode()
        while (left := began + limit_s - time.perf_counter()) > 0:
            if not select.select([self._file], [], [], left)[0]:
                continue
            try:
                # A word may arrive in two reads, so its length is kept of the last.
                seen = seen[-len(wanted) :] + os.read(self._file, 65536)
            except OSError:  # Linux says so when the other side is gone
                return None
            if wanted in seen:
                return time.perf_counter() - began
        return None

    def listen(self, seconds: float) -> None:
        """Take what is written and wait."""
        self.read_until("\0", seconds)

    def cost(self, seconds: float) -> tuple[float, float]:
        """Share of one core and resident MiB while nothing is pressed."""
        process = psutil.Process(self.pid)
        before, began = process.cpu_times(), time.perf_counter()
        self.listen(seconds)
        after, took = process.cpu_times(), time.perf_counter() - began
        used = after.user + after.system - before.user - before.system
        return used / took, process.memory_info().rss / 2**20

    def close(self) -> None:
        """Quit as a user would, then make sure."""
        self.press("\x11")
        self.listen(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._file)
