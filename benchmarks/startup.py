"""How quickly Lathe is there, and what it costs when it only waits: commands, first paint, idle CPU and memory.

    python benchmarks/startup.py [--runs 9] [--idle 20]

The TUI is driven in a pseudo-terminal of 160x50; "first paint" is the time until the dashboard's navigation row was
written. Uses a workspace of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import psutil

LATHE = [sys.executable, "-m", "lathe.tui.main"]
SIZE = struct.pack("HHHH", 50, 160, 0, 0)


def wall(arguments: list[str], runs: int) -> tuple[float, float]:
    """Median and maximum seconds of a command, after one warm-up."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([*LATHE, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]), max(times[1:])


class Terminal:
    """A TUI in a pseudo-terminal."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execv(sys.executable, LATHE)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, SIZE)

    def read_until(self, word: bytes, limit_s: float) -> float | None:
        """Seconds from the start until the word was written; None if it never was."""
        seen = b""
        deadline = time.perf_counter() + limit_s
        while time.perf_counter() < deadline:
            if select.select([self.file], [], [], 0.05)[0]:
                seen += os.read(self.file, 65536)
                if word in seen:
                    return time.perf_counter() - self.began
        return None

    def idle(self, seconds: float) -> tuple[float, float]:
        """Share of one core and resident megabytes while nothing is pressed."""
        process = psutil.Process(self.pid)
        self.read_until(b"\0never\0", 3)
        before, began = process.cpu_times(), time.perf_counter()
        self.read_until(b"\0never\0", seconds)
        after, took = process.cpu_times(), time.perf_counter() - began
        used = after.user + after.system - before.user - before.system
        return used / took, process.memory_info().rss / 2**20

    def close(self) -> None:
        """Quit as a user would, then make sure."""
        os.write(self.file, b"\x11")
        self.read_until(b"\0never\0", 1)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self.file)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--idle", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATHE_HOME"] = str(Path(folder) / "home")
        rows = [("what", "median", "max", "goal")]
        for option, goal in (("--version", "100 ms"), ("--help", "200 ms")):
            median, worst = wall([option], arguments.runs)
            rows.append((f"lathe {option}", f"{median * 1000:.0f} ms", f"{worst * 1000:.0f} ms", goal))
        subprocess.run([*LATHE, "engine", "start"], stdout=subprocess.DEVNULL, check=True)
        paints = []
        for _ in range(arguments.runs):
            terminal = Terminal()
            paints.append(terminal.read_until(b"Dash", 20) or float("nan"))
            terminal.close()
        rows.append(("first paint", f"{statistics.median(paints):.2f} s", f"{max(paints):.2f} s", "1 s"))
        terminal = Terminal()
        share, resident = terminal.idle(arguments.idle)
        terminal.close()
        rows.append(("idle TUI, share of a core", f"{share:.1%}", "", "3 %"))
        rows.append(("idle TUI, resident", f"{resident:.0f} MB", "", "120 MB"))
        subprocess.run([*LATHE, "engine", "stop"], stdout=subprocess.DEVNULL, check=False)
    print("| " + " | ".join(rows[0]) + " |\n|---|---:|---:|---:|")
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
