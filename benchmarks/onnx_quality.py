"""The embedded model as GGUF and as ONNX, quantized: size, perplexity and speed in one table.

    python benchmarks/onnx_quality.py [--text FILE] [--context 256] [--chunks N] [--threads 1] [--calibration FILE]

Needs the extra `onnx`. Speeds: a prompt of 128 random tokens, then 64 generated ones, no sampling, medians of 5, both
libraries with the same number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _peers import TEXT, embedded_model, table
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.bench import BenchOptions, bench
from lathe.engine.measure.perplexity import measure
from lathe.engine.onnx.export import export
from lathe.engine.onnx.folder import folder_bytes
from lathe.engine.onnx.quantizing import OnnxQuantizeOptions, quantize
from lathe.engine.onnx.scoring import Scorer
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

PROMPT, GENERATED, ROUNDS = 128, 64, 5
Row = tuple[str, str, str, str, str]


def main() -> None:
    """Print one row per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--calibration", type=Path, default=TEXT, help="for int8-static")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=-1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    missing = [library for library in ("onnx", "onnxruntime", "optimum") if find_spec(library) is None]
    if missing:
        print(f"{', '.join(missing)} not installed: left out (the extra `onnx` has it)")
        return
    text = chunked.read_text(arguments.text)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [_gguf(path, text, arguments) for path in _ggufs(folder)]
        rows += [_onnx(path, text, arguments) for path in _onnxs(folder, arguments)]
        table(("file", "bytes", "perplexity", "prompt tokens/s", "generated tokens/s"), rows)


def _ggufs(folder: Path) -> list[Path]:
    paths = [embedded_model(folder)]
    for kind in ("Q8_0", "Q4_K_M", "Q4_0"):
        paths.append(folder / f"GGUF {kind}.gguf")
        quantize_gguf(paths[0], paths[-1], QuantizeOptions(type=kind))
    return paths


def _onnxs(folder: Path, arguments: argparse.Namespace) -> list[Path]:
    paths = [folder / "ONNX float32"]
    export(CHECKPOINT, paths[0])
    for mode in ("float16", "int8", "int8-static", "int4"):
        paths.append(folder / f"ONNX {mode}")
        calibration = chunked.read_text(arguments.calibration)
        quantize(paths[0], paths[-1], OnnxQuantizeOptions(mode=mode), text=calibration)
    return paths


def _gguf(path: Path, text: bytes, arguments: argparse.Namespace) -> Row:
    quality = measure(path, text, n_ctx=arguments.context, limit=arguments.chunks, threads=arguments.threads)
    options = BenchOptions(
        prompt_tokens=(PROMPT,), generate_tokens=(GENERATED,), repetitions=ROUNDS, threads=(arguments.threads,),
        gpu_layers=0,
    )  # fmt: skip
    prompt, generated = (
        statistics.median(count / (sample / 1e9) for sample in row.samples_ns)
        for count, row in zip((PROMPT, GENERATED), bench(path, options).rows, strict=True)
    )
    return _row(path.stem if " " in path.stem else "GGUF F16", path.stat().st_size, quality.perplexity, quality.error,
                prompt, generated)  # fmt: skip


def _onnx(path: Path, text: bytes, arguments: argparse.Namespace) -> Row:
    scorer = Scorer(path, arguments.threads)
    quality = scorer.perplexity(scorer.cut(text, arguments.context, arguments.chunks))
    tokens = np.random.default_rng(1).integers(0, scorer.decoder.vocabulary, PROMPT + GENERATED).tolist()
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        past, _ = scorer.decoder.compute(scorer.decoder.start(), [tokens[:PROMPT]])
        middle = time.perf_counter()
        for token in tokens[PROMPT:]:
            past, _ = scorer.decoder.compute(past, [[token]])
        rates.append((PROMPT / (middle - began), GENERATED / (time.perf_counter() - middle)))
    prompt, generated = (statistics.median(rate[at] for rate in rates[1:]) for at in (0, 1))
    return _row(path.name, folder_bytes(path), quality.perplexity, quality.error, prompt, generated)


def _row(name: str, size: int, perplexity: float, error: float, prompt: float, generated: float) -> Row:
    return name, f"{size:,}", f"{perplexity:.3f} ± {error:.3f}", f"{prompt:,.0f}", f"{generated:,.0f}"


if __name__ == "__main__":
    main()
