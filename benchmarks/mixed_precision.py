"""Mixed precision beside llama-quantize's recipes: divergence (distance) on held-out text, at no more bytes.

    python benchmarks/mixed_precision.py [--text CALIBRATION] [--held-out FILE] [--sizes Q5_K_M,Q4_K_M] [--minutes 5]

Both sides have the same importance matrix, collected from 100 chunks of the calibration text; without one the first
half of the held-out text calibrates and the second judges. The default model is the embedded one, whose training text
`engine/embedded/training/corpus.py` makes, and the held-out text its `valid.txt`. `--model` takes any GGUF, embedders
included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _peers import TEXT, embedded_model, peer, run, table
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import kld, vectors
from lathe.engine.measure.imatrix import collect
from lathe.engine.measure.kld import Estimate
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.tune.frontier import NOUNS
from lathe.engine.tune.laboratory import Laboratory
from lathe.engine.tune.settings import Settings
from lathe.quantize.imatrix import write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

CONTEXT = 256


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--held-out", type=Path, default=TEXT)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", default="Q5_K_M,Q4_K_M,Q3_K_M")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--chunks", type=int, default=24, help="of the calibration text, per reading")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-feedback", action="store_true", help="round as llama-quantize does")
    arguments = parser.parse_args()
    held_out = chunked.read_text(arguments.held_out)
    middle = len(held_out) // 2
    text, held_out = (
        (chunked.read_text(arguments.text), held_out) if arguments.text else (held_out[:middle], held_out[middle:])
    )
    label = arguments.text.name if arguments.text else "first half of the held-out text"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or embedded_model(folder)
        matrix = folder / "imatrix.gguf"
        with LlamaModel(model) as loaded:
            write_imatrix(matrix, collect(loaded, chunked.cut(loaded, text, CONTEXT, 100, embedders=True), label))
        began = time.monotonic()
        settings = Settings(
            imatrix=matrix, feedback=not arguments.no_feedback, n_ctx=CONTEXT, n_chunks=arguments.chunks,
            seconds=60 * arguments.minutes, threads=arguments.threads,
        )  # fmt: skip
        laboratory = Laboratory(model, text, label, folder / "tune", settings, lambda *_: None)
        for part in ("mixes", "comparison", "ways", "speed"):
            laboratory.clock.drop(part)
        laboratory.search.sensitivities()
        print(f"sensitivities: {laboratory.search.readings} readings, {time.monotonic() - began:.0f} s\n")
        rows = []
        for size in arguments.sizes.split(","):
            theirs, ours = folder / f"{size}.gguf", folder / f"mix-{size}.gguf"
            _recipe(model, theirs, size, matrix)
            began = time.monotonic()
            point = laboratory.mix(theirs.stat().st_size)
            assert point.mix is not None
            laboratory.write(ours, point.mix, {})
            seconds = time.monotonic() - began
            assert ours.stat().st_size <= theirs.stat().st_size
            judge = _distance if laboratory.measure == "distance" else _divergence
            (before, same), (after, still) = (
                judge(model, path, held_out, arguments.threads) for path in (theirs, ours)
            )
            rows.append(
                (size, f"{theirs.stat().st_size:,}", f"{ours.stat().st_size:,}",
                 f"{before.value:.5f} ± {before.error:.5f}", f"{after.value:.5f} ± {after.error:.5f}",
                 f"{after.value / before.value:.3f}x", f"{same.value:.1%} / {still.value:.1%}", f"{seconds:.0f}")
            )  # fmt: skip
        noun = f"mean {NOUNS[laboratory.measure]}"
        same_what = "same nearest passage" if laboratory.measure == "distance" else "same top token"
        table(
            ("size of", "llama-quantize, bytes", "mix, bytes", noun, f"{noun} of the mix", "ratio", same_what,
             "search, s"),
            rows,
        )  # fmt: skip
        print(f"\n{laboratory.search.readings} readings in all; calibration {label}, at most "
              f"{arguments.chunks} chunks of {CONTEXT} tokens per reading")  # fmt: skip
        for what in laboratory.clock.left_out:
            print(f"no time for {what}")


def _recipe(model: Path, output: Path, kind: str, matrix: Path) -> None:
    tool = peer("llama-quantize")
    if tool is None:
        quantize_gguf(model, output, QuantizeOptions(type=kind, imatrix=matrix))
    else:
        run(["env", "-C", str(matrix.parent), tool, "--imatrix", matrix.name, model, output.name, kind])


def _distance(model: Path, path: Path, text: bytes, threads: int) -> tuple[Estimate, Estimate]:
    """Mean distance of the vectors, and the share of passages with the same nearest one."""
    pieces = vectors.passages(text, CONTEXT)
    with LlamaModel(model) as base, LlamaModel(path) as other:
        one, two = (vectors.embed(each, pieces, CONTEXT, threads=threads) for each in (base, other))
    found = vectors.compare(one, two)
    return found.distance, found.same_nearest


def _divergence(model: Path, path: Path, text: bytes, threads: int) -> tuple[Estimate, Estimate]:
    """Mean divergence of next tokens, and the share of tokens with the same most probable one."""
    with LlamaModel(model) as base, LlamaModel(path) as other:
        chunks = chunked.cut(base, text, CONTEXT)
        options = chunks.options(threads=threads)
        with LlamaContext(base, options) as one, LlamaContext(other, options) as two:
            found = kld.statistics(kld.measure(one, two, chunks))
            return found.kld, found.same_top


if __name__ == "__main__":
    main()
