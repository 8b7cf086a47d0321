"""How long the GGUF preflight takes on a large vocabulary, beside gguf-py's reader, and what memory it needs.

    python benchmarks/gguf_header.py [--tokens 150000] [FILE...]

Without files it writes one of its own: so many tokens, as many merges, their types and scores. Each reader runs in a
process of its own; the figure is the best of three reads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf

MEASURE = """
import resource, sys, time
from pathlib import Path
{load}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, times = peak(), []
for _ in range(3):
    began = time.perf_counter()
    read(Path(sys.argv[1]))
    times.append(time.perf_counter() - began)
print(min(times), (peak() - before) / 1024)
"""
READERS = {
    "structure": "from lathe.quantize.gguf.parser import parse as read",
    "with checks": "from lathe.quantize.gguf.header import read_header as read",
    "gguf-py": "from gguf import GGUFReader as read",
}


def write_vocabulary(path: Path, tokens: int) -> None:
    """Write a vocabulary-only file in the shape of a large byte-level BPE."""
    writer = gguf.GGUFWriter(path, "llama")
    words = [f"\u0120token{index}" for index in range(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([1] * tokens)
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_merges([f"\u0120token {index}" for index in range(tokens)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main() -> None:
    """Print one table row per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=150_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files
        if not files:
            files = [Path(folder) / f"{arguments.tokens}-tokens.gguf"]
            write_vocabulary(files[0], arguments.tokens)
        print("| file | reader | ms | peak RSS grows by, MiB | times faster |\n|---|---|---|---|---|")
        for file in files:
            figures = {}
            for name, load in READERS.items():
                program = [sys.executable, "-c", MEASURE.format(load=load), str(file)]
                result = subprocess.run(program, capture_output=True, text=True, check=True)
                figures[name] = [float(number) for number in result.stdout.split()]
            slowest = figures["gguf-py"][0]
            for name, (seconds, memory) in figures.items():
                print(f"| {file.name} | {name} | {seconds * 1e3:.0f} | {memory:.0f} | {slowest / seconds:.0f} |")


if __name__ == "__main__":
    main()
