"""Quantization beside llama-quantize: time, whether the files are the same to the byte, peak memory.

    python benchmarks/quantize.py [--model F16.gguf | --size 470m] [--types Q4_K_M,Q8_0,...] [--rounds 5] [--threads 1]

Ours is timed inside one Python process, with the checks before and after, the hash of the result and its way to the
disk; theirs from start to exit, with none of these; what the hash alone takes is a column. Memory is of a process of
its own each, as the kernel counts it: pages of the mapped source are in it.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _peers import TEXT, alternate, embedded_model, peer, run, seconds, table
from _random_model import random_model
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.imatrix import collect
from lathe.engine.native.llama import LlamaModel
from lathe.quantize.artefact import file_sha256
from lathe.quantize.imatrix import write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

_SETTLE_S = 3.0
"""For the system to take back the pages of the file before."""
TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M,Q2_K,IQ4_XS,IQ3_M,IQ2_XS"


def importances(model: Path, folder: Path) -> Path:
    """A small matrix, so that the types that need one take part."""
    with LlamaModel(model) as loaded:
        chunks = chunked.cut(loaded, chunked.read_text(TEXT), 256, 16)
        write_imatrix(folder / "imatrix.gguf", collect(loaded, chunks, TEXT.name))
    return folder / "imatrix.gguf"


OURS = """
import sys
from pathlib import Path
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
model, output, matrix, kind, threads = sys.argv[1:]
quantize_gguf(Path(model), Path(output), QuantizeOptions(type=kind, imatrix=Path(matrix), threads=int(threads)), force=True)
"""  # noqa: E501


def fresh(output: Path, work: Callable[[], object]) -> float:
    """Time a call that writes a new file: an old one's pages would be at hand, which favours who writes over it."""
    output.unlink(missing_ok=True)
    time.sleep(_SETTLE_S)
    return seconds(work)


def peak(command: Sequence[object]) -> str:
    """The most main memory that a process used, in MB."""
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return f"{usage.ru_maxrss / 1024:,.0f}" if child.returncode == 0 else "failed"


def main() -> None:
    """Print one row per type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--size", help="a random model of this size instead: 30m, 70m, 160m, 470m")
    parser.add_argument("--imatrix", type=Path, help="importances made before; else some are collected")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if (tool := peer("llama-quantize")) is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or embedded_model(folder)
        if arguments.size:
            model = random_model(model, folder / f"{arguments.size}.gguf", arguments.size)
        matrix = arguments.imatrix or importances(model, folder)
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        rows = []
        for kind in arguments.types.split(","):
            options = QuantizeOptions(type=kind, imatrix=matrix, threads=arguments.threads)
            # llama-quantize writes the matrix's path into the file, we its name: it is called where they are the same
            command = ["env", "-C", str(matrix.parent), tool, "--imatrix", matrix.name, model, theirs, kind]
            mine, peers = alternate(
                lambda options=options: fresh(ours, lambda: quantize_gguf(model, ours, options)),
                lambda command=command: fresh(theirs, lambda: run([*command, str(arguments.threads)])),
                arguments.rounds,
            )
            hashing = seconds(lambda: file_sha256(ours))
            same = "yes" if filecmp.cmp(ours, theirs, shallow=False) else "NO"
            threads = arguments.threads
            memory = peak([sys.executable, "-c", OURS, model, ours, matrix, kind, threads])
            memory += " / " + peak([*command, threads])
            rows.append(
                (kind, f"{ours.stat().st_size:,}", f"{mine:.3f}", f"{hashing:.3f}", f"{peers:.3f}",
                 f"{peers / mine:.2f}", same, memory)
            )  # fmt: skip
        table(
            ("type", "bytes", "lathe, s", "of it the hash", "llama-quantize, s", "speed, theirs / ours", "same bytes",
             "peak RSS, MB"),
            rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
