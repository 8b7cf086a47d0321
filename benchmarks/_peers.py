"""What the comparisons share: finding the peers, alternating runs, medians, tables, a model to measure on."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lathe.engine.embedded import CHECKPOINT, HELD_OUT_TEXT
from lathe.engine.native import tiles

TEXT = HELD_OUT_TEXT


def peer(name: str) -> Path | None:
    """A tool of llama.cpp, from LATHE_PEERS or the path; None, and a word about it, where there is none."""
    folder = os.environ.get("LATHE_PEERS")
    found = Path(folder, name) if folder else Path(shutil.which(name) or "")
    if found.is_file():
        return found
    print(f"{name} not found: its comparison is left out (see benchmarks/README.md)")
    return None


def embedded_model(folder: Path) -> Path:
    """The embedded model in F16."""
    from lathe.quantize.convert import convert_checkpoint

    path = folder / "stdlib-4m-f16.gguf"
    if not path.exists():
        convert_checkpoint(CHECKPOINT, path, outtype="f16")
    return path


def repack_flags() -> list[str]:
    """Peers must compute with the kernels that we do: without repacking where this build's tiles are broken."""
    return [] if tiles.work() else ["--no-repack"]


def run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a peer to its end; its output stands in the error where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done


def run_for(command: Sequence[str | Path], pattern: str, attempts: int = 6) -> str:
    """Run a peer until its output has a line it must have: its log thread sometimes loses the last ones at exit."""
    for _ in range(attempts):
        done = run(command)
        if re.search(pattern, done.stdout + done.stderr):
            return done.stdout + done.stderr
    sys.exit(f"{' '.join(map(str, command))}: no line like {pattern!r} in {attempts} runs")


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians of two measurements taken in turns, so that a busy machine is busy for both."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
