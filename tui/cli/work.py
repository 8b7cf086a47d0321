"""Verbs that make or measure files: convert, quantize, perplexity. Each submits the step the screens submit."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import DataError
from lathe.engine.jobs.values import Job
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, PerplexityStep, QuantizeStep
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import CHUNKS, GPU_LAYERS, LAYER, THREADS, Finite
from lathe.tui.cli.shell import Shell, anchored, boundary, parse_pairs, put, put_table, refuse_given
from lathe.tui.formats import long_size


def job_options(command: Any) -> Any:
    """Options of every verb that runs a job."""
    command = click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")(command)
    return click.option("--detach", is_flag=True, help="Leave the job to the engine; print its id.")(command)


def show_artefacts(job: Job) -> None:
    """What was made, then the figures."""
    for artefact in job.outcome.artefacts if job.outcome else ():
        put(f"{artefact.name}  {long_size(artefact.bytes)}  {artefact.path}")
    show_figures(job)


def show_figures(job: Job) -> None:
    """One figure per line."""
    for name, value in (job.outcome.figures if job.outcome else {}).items():
        if value is not None:
            put(f"  {name:<24} {value:.6g}" if isinstance(value, float) else f"  {name:<24} {value}")


_ONLY_TO = {
    "gguf": ("base", "split_max_bytes", "no_parity", "legacy_context", "legacy_epsilon"),
    "onnx": ("task", "opset"),
}
"""Target -> parameters that mean nothing for the others."""


@click.command()
@click.argument("source")
@click.option("--to", type=click.Choice(["gguf", "onnx", "safetensors"]), default="gguf", show_default=True)
@click.option("--outtype", type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]), default="auto", show_default=True)
@click.option("--base", help="LoRA adapter: the checkpoint it was trained on.")
@click.option("--split-max-bytes", type=click.IntRange(min=1), help="GGUF: largest file; more become shards.")
@click.option("--no-parity", is_flag=True, help="GGUF: do not compare outputs with the checkpoint's.")
@click.option(
    "--task",
    type=click.Choice(["auto", "text-generation-with-past", "feature-extraction", "text-classification"]),
    default="auto",
    help="ONNX: what the graph gives.",
)
@click.option("--opset", type=click.IntRange(14, 23), help="ONNX: version of the operators.")
@click.option("--legacy-context", type=click.IntRange(min=1), default=2048, help="Files from before GGUF: context.")
@click.option(
    "--legacy-epsilon",
    type=Finite(min=0, min_open=True),
    default=5e-6,
    help="Files from before GGUF: epsilon of the norms.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: in the workspace).")
@click.option("--name", help="Name to register the result under.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@job_options
@click.pass_obj
def convert(
    shell: Shell, source: str, to: Any, outtype: Any, base: str | None, split_max_bytes: int | None, no_parity: bool,
    task: Any, opset: int | None, legacy_context: int, legacy_epsilon: float, output: Path | None, name: str | None,
    force: bool, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn SOURCE into GGUF (checkpoint, LoRA adapter, old GGML file), ONNX (checkpoint) or safetensors (GGUF)."""
    with boundary(as_json=as_json):
        for target, names in _ONLY_TO.items():
            if target != to:
                refuse_given(names, f"is for --to {target}")
        step = ConvertStep(
            model=reference(source), to=to, outtype=outtype, base=reference(base) if base else None,
            split_max_bytes=split_max_bytes, parity=not no_parity, task=task, opset=opset,
            legacy_context=legacy_context, legacy_epsilon=legacy_epsilon, output=absolute(output), name=name,
            force=force,
        )  # fmt: skip
    raise SystemExit(run_step(shell, step, show_artefacts, detach=detach, as_json=as_json))


_ONNX_MODES = ("int8", "int8-static", "int4", "float16")
_ONLY_GGUF = ("imatrix", "imatrix_only", "imatrix_except", "tensor_type", "tensor_types_file", "output_tensor_type",
              "token_embedding_type", "keep_output", "pure", "prune_layers", "keep_split", "allow_requantize",
              "errors")  # fmt: skip
_ONLY_ONNX = ("text", "operators", "exclude", "per_tensor", "block_size", "asymmetric", "calibration", "samples",
              "sample_tokens", "reduce_range")  # fmt: skip


@click.command()
@click.argument("model")
@click.option(
    "-t",
    "--type",
    "kind",
    default="Q4_K_M",
    show_default=True,
    help="GGUF: Q8_0, Q5_K_M, IQ3_XS, ... ONNX: int8, int8-static, int4, float16.",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (GGUF).")
@click.option(
    "--imatrix-only", multiple=True, metavar="PART", help="Importances only for tensors with this in the name."
)
@click.option("--imatrix-except", multiple=True, metavar="PART", help="No importances for those.")
@click.option("--tensor-type", multiple=True, metavar="REGEX=TYPE", help="Type of the tensors whose name matches.")
@click.option(
    "--tensor-types-file", type=click.Path(path_type=Path), help="Such lines in a file, as `lathe tune` writes."
)
@click.option("--output-tensor-type", metavar="TYPE")
@click.option("--token-embedding-type", metavar="TYPE")
@click.option("--keep-output", is_flag=True, help="Leave output.weight as it is.")
@click.option("--pure", is_flag=True, help="One type for every tensor.")
@click.option("--prune-layer", "prune_layers", multiple=True, type=LAYER, help="Leave a layer out.")
@click.option("--keep-split", is_flag=True, help="As many shards as the source has.")
@click.option("--allow-requantize", is_flag=True, help="Accept an already quantized source.")
@click.option("--text", type=click.Path(path_type=Path), help="int8-static: calibration text.")
@click.option("--op", "operators", multiple=True, metavar="NAME", help="ONNX: operators to quantize, such as MatMul.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="ONNX: nodes that stay as they are.")
@click.option("--per-tensor", is_flag=True, help="ONNX int8: one scale per weight instead of one per column.")
@click.option("--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), default="32", help="ONNX int4.")
@click.option("--asymmetric", is_flag=True, help="ONNX int4: with zero points.")
@click.option(
    "--calibration",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    help="ONNX int8-static: how ranges are found.",
)
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True, help="int8-static: pieces.")
@click.option(
    "--sample-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="int8-static: length."
)
@click.option("--reduce-range", is_flag=True, help="ONNX int8: seven bits, for processors without VNNI.")
@click.option("--errors", is_flag=True, help="Show what the weights of each tensor lost.")
@click.option("--threads", type=THREADS, default=0, help="0: all cores.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
@click.option("--name")
@click.option("--force", is_flag=True)
@job_options
@click.pass_obj
def quantize(
    shell: Shell, model: str, kind: str, imatrix: Path | None, imatrix_only: tuple[str, ...],
    imatrix_except: tuple[str, ...], tensor_type: tuple[str, ...], tensor_types_file: Path | None,
    output_tensor_type: str | None, token_embedding_type: str | None, keep_output: bool, pure: bool,
    prune_layers: tuple[int, ...], keep_split: bool, allow_requantize: bool, text: Path | None,
    operators: tuple[str, ...], exclude: tuple[str, ...], per_tensor: bool, block_size: str, asymmetric: bool,
    calibration: Any, samples: int, sample_tokens: int, reduce_range: bool, errors: bool, threads: int,
    output: Path | None, name: str | None, force: bool, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL (a registered name, a GGUF file or an ONNX folder)."""
    step: QuantizeStep | OnnxQuantizeStep
    with boundary(as_json=as_json):
        if kind.lower() in _ONNX_MODES:
            refuse_given(_ONLY_GGUF, f"is for GGUF, and {kind} is for ONNX")
            step = OnnxQuantizeStep(
                model=reference(model), mode=kind.lower(), text=absolute(text), per_channel=not per_tensor,  # type: ignore[arg-type]
                symmetric=not asymmetric, block_size=int(block_size), operators=operators, exclude=exclude,  # type: ignore[arg-type]
                calibration=calibration, samples=samples, sample_tokens=sample_tokens, reduce_range=reduce_range,
                threads=threads, output=absolute(output), name=name, force=force,
            )  # fmt: skip
        else:
            refuse_given(_ONLY_ONNX, f"is for ONNX, and {kind} is for GGUF")
            step = QuantizeStep(
                model=reference(model), type=kind, imatrix=absolute(imatrix), imatrix_only=imatrix_only,
                imatrix_except=imatrix_except, tensor_types=_tensor_types(tensor_type, tensor_types_file),
                output_tensor_type=output_tensor_type, token_embedding_type=token_embedding_type,
                keep_output=keep_output, pure=pure, prune_layers=prune_layers, keep_split=keep_split,
                allow_requantize=allow_requantize, threads=threads, output=absolute(output), name=name, force=force,
            )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_errors if errors else show_artefacts, detach=detach, as_json=as_json))


def _tensor_types(given: tuple[str, ...], file: Path | None) -> dict[str, str]:
    """Those given, then the words of the file; `#` begins a comment."""
    types = parse_pairs(given, "--tensor-type")
    if file is None:
        return types
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}", hint="one REGEX=TYPE a line") from error
    words = (word for line in lines for word in takewhile(lambda word: not word.startswith("#"), line.split()))
    return types | parse_pairs(words, str(file))


def _show_errors(job: Job) -> None:
    """The file, its figures, and what each tensor lost, the worst first."""
    show_artefacts(job)
    rows = [row for row in (job.outcome.rows if job.outcome else ()) if isinstance(row.get("error"), float)]
    if rows:
        put("")
        put_table(
            ("tensor", "type", "error", "largest", "weighted"),
            (
                (row["tensor"], row["to"], *(
                    f"{value:.3%}" if isinstance(value := row[name], float) else "-"
                    for name in ("error", "max_error", "weighted_error")
                ))
                for row in sorted(rows, key=lambda row: -float(row["error"] or 0))
            ),
            right=(2, 3, 4),
        )  # fmt: skip


@click.command()
@click.argument("model")
@click.option("--text", type=click.Path(path_type=Path), help="Text file (default: the shipped held-out docstrings).")
@click.option("--ctx", "context", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--chunks", type=CHUNKS, default=-1, help="-1: all.")
@click.option("--threads", type=THREADS, default=0)
@click.option("--gpu-layers", type=GPU_LAYERS)
@job_options
@click.pass_obj
def perplexity(
    shell: Shell, model: str, text: Path | None, context: int, chunks: int, threads: int, gpu_layers: int | None,
    detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Perplexity of MODEL over a text."""
    step = PerplexityStep(
        model=reference(model), text=absolute(text), context=context, chunks=chunks, threads=threads,
        gpu_layers=gpu_layers,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, show_figures, detach=detach, as_json=as_json))


def reference(name: str) -> str:
    """A path as seen from here, else a registered name: the engine has another working directory."""
    path = anchored(Path(name))
    return path if os.path.exists(path) else name  # noqa: PTH110 - what can be no path at all may be a name


def absolute(path: Path | None) -> str | None:
    """A path, where there is one, as the engine needs it."""
    return anchored(path) if path else None
