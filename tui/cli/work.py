"""Verbs that make or measure files: convert, quantize, perplexity. Each submits the step the screens submit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lathe.engine.jobs.values import Job
from lathe.engine.steps import ConvertStep, PerplexityStep, QuantizeStep
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.shell import Shell, parse_pairs, put
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


@click.command()
@click.argument("source")
@click.option("--to", type=click.Choice(["gguf", "onnx"]), default="gguf", show_default=True)
@click.option("--outtype", type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]), default="auto", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: in the workspace).")
@click.option("--name", help="Name to register the result under.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@job_options
@click.pass_obj
def convert(
    shell: Shell, source: str, to: Any, outtype: Any, output: Path | None, name: str | None, force: bool, detach: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Turn SOURCE (a checkpoint folder or a registered model) into GGUF or ONNX."""
    step = ConvertStep(model=reference(source), to=to, outtype=outtype, output=absolute(output), name=name, force=force)
    raise SystemExit(run_step(shell, step, show_artefacts, detach=detach, as_json=as_json))


@click.command()
@click.argument("model")
@click.option("-t", "--type", "kind", default="Q4_K_M", show_default=True, help="Q8_0, Q5_K_M, IQ3_XS, ...")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (GGUF).")
@click.option("--tensor-type", multiple=True, metavar="REGEX=TYPE", help="Type of the tensors whose name matches.")
@click.option("--output-tensor-type", metavar="TYPE")
@click.option("--token-embedding-type", metavar="TYPE")
@click.option("--pure", is_flag=True, help="One type for every tensor.")
@click.option("--allow-requantize", is_flag=True, help="Accept an already quantized source.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="0: all cores.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
@click.option("--name")
@click.option("--force", is_flag=True)
@job_options
@click.pass_obj
def quantize(
    shell: Shell, model: str, kind: str, imatrix: Path | None, tensor_type: tuple[str, ...],
    output_tensor_type: str | None, token_embedding_type: str | None, pure: bool, allow_requantize: bool,
    threads: int, output: Path | None, name: str | None, force: bool, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL (a registered name or a GGUF file)."""
    step = QuantizeStep(
        model=reference(model), type=kind, imatrix=absolute(imatrix),
        tensor_types=parse_pairs(tensor_type, "--tensor-type"), output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type, pure=pure, allow_requantize=allow_requantize, threads=threads,
        output=absolute(output), name=name, force=force,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, show_artefacts, detach=detach, as_json=as_json))


@click.command()
@click.argument("model")
@click.option("--text", type=click.Path(path_type=Path), help="Text file (default: the shipped held-out docstrings).")
@click.option("--ctx", "context", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--chunks", type=int, default=-1, help="-1: all.")
@click.option("--threads", type=click.IntRange(min=0), default=0)
@click.option("--gpu-layers", type=int)
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
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


def absolute(path: Path | None) -> str | None:
    """A path as the engine needs it."""
    return str(path.absolute()) if path else None
