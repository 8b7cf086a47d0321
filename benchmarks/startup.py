"""How quickly Lathe is there, and what it costs when it only waits: commands, first paint, idle CPU and memory.

    python benchmarks/startup.py [--runs 9] [--idle 20]

The TUI is driven in a pseudo-terminal of 160x50; "first paint" is the time until the dashboard's navigation row was
written. Uses a workspace of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from _terminal import LATHE, Terminal


def wall(arguments: list[str], runs: int) -> tuple[float, float]:
    """Median and maximum seconds of a command, after one warm-up."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([*LATHE, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]), max(times[1:])


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
            paints.append(terminal.read_until("Dash", 20) or float("nan"))
            terminal.close()
        rows.append(("first paint", f"{statistics.median(paints):.2f} s", f"{max(paints):.2f} s", "1 s"))
        terminal = Terminal()
        terminal.listen(3)
        share, resident = terminal.cost(arguments.idle)
        terminal.close()
        rows.append(("idle TUI, share of a core", f"{share:.1%}", "", "3 %"))
        rows.append(("idle TUI, resident", f"{resident:.0f} MB", "", "120 MB"))
        subprocess.run([*LATHE, "engine", "stop"], stdout=subprocess.DEVNULL, check=False)
    print("| " + " | ".join(rows[0]) + " |\n|---|---:|---:|---:|")
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
