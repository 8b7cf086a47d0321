"""Perplexity and divergence beside llama-perplexity, importances beside llama-imatrix: the figures and the time.

    python benchmarks/perplexity.py [--text FILE] [--context 256,512] [--chunks N] [--rounds 3] [--threads 1] [MODEL...]

Without models: the embedded one in F16, Q8_0 and Q4_K_M. Divergence is measured against the first model. Where the
peers' kernels for quantized types crash, name files in F16, such as a quantized model written back in F16
(`lathe convert --to safetensors`, then `--outtype f16`).
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from _peers import TEXT, alternate, embedded_model, peer, repack_flags, run, run_for, seconds, table
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import kld
from lathe.engine.measure.imatrix import collect
from lathe.engine.measure.perplexity import Perplexity, measure
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.quantize.imatrix import read_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

_FINAL = r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--context", default="256,512")
    parser.add_argument("--chunks", type=int, default=-1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("perplexity", "divergence", "importances"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models = arguments.models or _variants(Path(name))
        tool, matrix_tool = peer("llama-perplexity"), peer("llama-imatrix")
        if tool:
            common = [
                tool,
                "-f",
                arguments.text,
                "-t",
                arguments.threads,
                "--chunks",
                arguments.chunks,
                *repack_flags(),
            ]
            if arguments.only in (None, "perplexity"):
                _perplexities(models, arguments, common)
            if arguments.only in (None, "divergence") and len(models) > 1:
                _divergences(models, arguments, common, Path(name) / "base")
        if matrix_tool and arguments.only in (None, "importances"):
            _importances(models[0], arguments, matrix_tool, Path(name) / "imatrix.gguf")


def _variants(folder: Path) -> list[Path]:
    source = embedded_model(folder)
    models = [source]
    for kind in ("Q8_0", "Q4_K_M"):
        models.append(folder / f"stdlib-4m-{kind}.gguf")
        quantize_gguf(source, models[-1], QuantizeOptions(type=kind))
    return models


def _perplexities(models: list[Path], arguments: argparse.Namespace, common: list[object]) -> None:
    text = chunked.read_text(arguments.text)
    rows = []
    for model in models:
        for context in map(int, arguments.context.split(",")):
            results: list[Perplexity] = []
            theirs: list[str] = []

            def ours(model: Path = model, context: int = context, results: list[Perplexity] = results) -> None:
                results.append(measure(model, text, n_ctx=context, limit=arguments.chunks, threads=arguments.threads))

            def other(model: Path = model, context: int = context, theirs: list[str] = theirs) -> None:
                theirs.append(run_for([*map(str, common), "-m", model, "-c", str(context)], _FINAL))

            mine, peers = alternate(lambda o=ours: seconds(o), lambda o=other: seconds(o), arguments.rounds)
            result, figure = results[0], re.search(_FINAL, theirs[0])
            assert figure
            difference = abs(result.perplexity - float(figure[1]))
            rows.append(
                (model.stem, context, f"{result.perplexity:.4f} ± {result.error:.5f}", f"{figure[1]} ± {figure[2]}",
                 f"{difference:.4f}", f"{mine:.2f}", f"{peers:.2f}", f"{peers / mine:.2f}")
            )  # fmt: skip
    table(("model", "context", "lathe", "llama-perplexity", "difference", "lathe, s", "theirs, s", "speed"), rows)


def _divergences(models: list[Path], arguments: argparse.Namespace, common: list[object], file: Path) -> None:
    context = int(arguments.context.split(",")[0])
    flags = [*map(str, common), "-c", str(context), "--kl-divergence-base", str(file)]
    run([*flags, "-m", models[0]])
    rows = []
    with LlamaModel(models[0]) as base:
        chunks = chunked.cut(base, chunked.read_text(arguments.text), context, arguments.chunks)
        for model in models[1:]:
            said = run_for([*flags, "-m", model, "--kl-divergence"], "Same top p: ")
            theirs = {
                label: float(re.search(pattern, said)[1])  # type: ignore[index]
                for label, pattern in (
                    ("mean KLD", r"Mean +KLD: +([\d.]+)"), ("99.9 % KLD", r"99.9% +KLD: +([\d.]+)"),
                    ("maximum KLD", r"Maximum KLD: +([\d.]+)"), ("RMS change of p, %", r"RMS .p +: +([\d.]+)"),
                    ("same top token, %", r"Same top p: +([\d.]+)"),
                )
            }  # fmt: skip
            with (
                LlamaModel(model) as other,
                LlamaContext(base, chunks.options(threads=arguments.threads)) as one,
                LlamaContext(other, chunks.options(threads=arguments.threads)) as two,
            ):
                found = kld.statistics(kld.measure(one, two, chunks))
            ours = {
                "mean KLD": found.kld.value, "99.9 % KLD": found.kld_percentiles[99.9],
                "maximum KLD": found.kld_maximum, "RMS change of p, %": 100 * found.delta_p_rms.value,
                "same top token, %": 100 * found.same_top.value,
            }  # fmt: skip
            rows += [
                (model.stem, label, f"{ours[label]:.6g}", f"{figure:.6g}", f"{ours[label] / figure - 1:+.2%}")
                for label, figure in theirs.items()
            ]
    print()
    table(("model", "statistic", "lathe", "llama-perplexity", "difference"), rows)


def _importances(model: Path, arguments: argparse.Namespace, tool: Path, file: Path) -> None:
    context = int(arguments.context.split(",")[0])
    limit = arguments.chunks if arguments.chunks > 0 else 32
    run([tool, "-m", model, "-f", arguments.text, "-c", str(context), "--chunks", str(limit), "-o", file,
         "-t", str(arguments.threads), *repack_flags()])  # fmt: skip
    theirs = read_imatrix(file)
    with LlamaModel(model) as loaded:
        chunks = chunked.cut(loaded, chunked.read_text(arguments.text), context, limit)
        ours = collect(loaded, chunks, arguments.text.name, threads=arguments.threads)
    worst = max(float(np.abs(ours.entries[name].sums / entry.sums - 1).max()) for name, entry in theirs.entries.items())
    same = ours.entries.keys() == theirs.entries.keys()
    print()
    table(
        ("importance matrix", "tensors", "same tensors", "largest relative difference to llama-imatrix"),
        [(model.stem, len(ours.entries), "yes" if same else "NO", f"{worst:.1e}")],
    )


if __name__ == "__main__":
    main()
