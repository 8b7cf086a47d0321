"""Quantization beside llama-quantize: time, and whether the files are the same to the byte.

    python benchmarks/quantize.py [--model F16.gguf] [--types Q4_K_M,Q8_0,...] [--rounds 5] [--threads 1]

Both sides are timed as processes of their own would be used: ours inside one Python process (checks before and after
included, hashing left out of neither), theirs from start to exit.
"""

from __future__ import annotations

import argparse
import filecmp
import tempfile
from pathlib import Path

from _peers import TEXT, alternate, embedded_model, peer, run, seconds, table
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.imatrix import collect
from lathe.engine.native.llama import LlamaModel
from lathe.quantize.imatrix import write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M,Q2_K,IQ4_XS,IQ3_M,IQ2_XS"


def importances(model: Path, folder: Path) -> Path:
    """A small matrix, so that the types that need one take part."""
    with LlamaModel(model) as loaded:
        chunks = chunked.cut(loaded, chunked.read_text(TEXT), 256, 16)
        write_imatrix(folder / "imatrix.gguf", collect(loaded, chunks, TEXT.name))
    return folder / "imatrix.gguf"


def main() -> None:
    """Print one row per type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if (tool := peer("llama-quantize")) is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or embedded_model(folder)
        matrix = importances(model, folder)
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        rows = []
        for kind in arguments.types.split(","):
            options = QuantizeOptions(type=kind, imatrix=matrix, threads=arguments.threads)
            # llama-quantize writes the matrix's path into the file, we its name: it is called where they are the same
            command = ["env", "-C", str(folder), tool, "--imatrix", matrix.name, model, theirs.name, kind]
            mine, peers = alternate(
                lambda options=options: seconds(lambda: quantize_gguf(model, ours, options, force=True)),
                lambda command=command: seconds(lambda: run([*command, str(arguments.threads)])),
                arguments.rounds,
            )
            same = "yes" if filecmp.cmp(ours, theirs, shallow=False) else "NO"
            rows.append((kind, f"{ours.stat().st_size:,}", f"{mine:.3f}", f"{peers:.3f}", f"{peers / mine:.2f}", same))
        table(("type", "bytes", "lathe, s", "llama-quantize, s", "speed, theirs / ours", "same bytes"), rows)


if __name__ == "__main__":
    main()
