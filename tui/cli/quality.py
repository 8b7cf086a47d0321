"""Verbs about what quantization costs: importances (collect, merge, show) and divergence from a base model."""

from __future__ import annotations

from pathlib import Path

import click
from lathe.engine.jobs.values import Figure, Job, Outcome
from lathe.engine.steps import ImatrixMergeStep, ImatrixStep, KldStep
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import CHUNKS, GPU_LAYERS, THREADS
from lathe.tui.cli.shell import Shell, anchored, boundary, put, put_json, put_table, refuse_given
from lathe.tui.cli.work import absolute, job_options, reference, show_artefacts

_SHOWN = 12
"""Rows of statistics shown after a collection; `lathe imatrix show` has them all."""

_FILE = click.Path(path_type=Path)


@click.group()
def imatrix() -> None:
    """Importance matrices in llama.cpp's format: which input channels of each weight matter."""


@imatrix.command()
@click.argument("model")
@click.option("--text", type=_FILE, required=True, help="Calibration text.")
@click.option("--ctx", "context", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--chunks", type=CHUNKS, default=-1, help="-1: all.")
@click.option("--process-output", is_flag=True, help="Collect for the output matrix, too.")
@click.option("--merge", multiple=True, type=_FILE, help="Matrix of the same model to add; repeatable.")
@click.option("--threads", type=THREADS, default=0, help="0: all cores.")
@click.option("--gpu-layers", type=GPU_LAYERS)
@click.option("-o", "--output", type=_FILE, help="File to write (default: in the workspace).")
@click.option("--name", help="Name of the result.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@job_options
@click.pass_obj
def collect(
    shell: Shell, model: str, text: Path, context: int, chunks: int, process_output: bool, merge: tuple[Path, ...],
    threads: int, gpu_layers: int | None, output: Path | None, name: str | None, force: bool, detach: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Run MODEL over a text and write how strongly each channel is used; a stopped run goes on."""
    step = ImatrixStep(
        model=reference(model), text=anchored(text), context=context, chunks=chunks,
        process_output=process_output, merge=tuple(anchored(path) for path in merge), threads=threads,
        gpu_layers=gpu_layers, output=absolute(output), name=name, force=force,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_collected, detach=detach, as_json=as_json))


@imatrix.command()
@click.argument("matrices", nargs=-1, required=True, type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@job_options
@click.pass_obj
def merge(shell: Shell, matrices: tuple[Path, ...], output: Path, force: bool, detach: bool, as_json: bool) -> None:
    """Add up MATRICES of one model, as if their texts had been one; files of llama-imatrix may be among them."""
    step = ImatrixMergeStep(matrices=tuple(anchored(path) for path in matrices), output=anchored(output), force=force)
    raise SystemExit(run_step(shell, step, show_artefacts, detach=detach, as_json=as_json))


@imatrix.command()
@click.argument("matrix", type=_FILE)
@click.option("--sort", type=click.Choice(["total", "name", "evenness"]), default="total", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def show(matrix: Path, sort: str, as_json: bool) -> None:
    """Statistics of MATRIX per tensor, as `llama-imatrix --show-statistics` has them."""
    from lathe.engine.jobs.imatrix import described

    with boundary(as_json=as_json):
        facts, rows = described(matrix)
    if sort != "name":
        rows.sort(key=lambda row: -float(row[sort] or 0))
    if as_json:
        put_json({**facts, "tensors": rows})
        return
    for name, value in facts.items():
        put(f"{name:<12} {value}")
    put("")
    _table(rows)


def _show_collected(job: Job) -> None:
    show_artefacts(job)
    rows = sorted(job.outcome.rows if job.outcome else (), key=lambda row: -float(row["total"] or 0))
    put("")
    _table(rows[:_SHOWN])
    if len(rows) > _SHOWN:
        put(f"... {len(rows) - _SHOWN} more tensors: `lathe imatrix show`")


def _table(rows: list[dict[str, Figure]]) -> None:
    columns = ("total", "mean", "maximum", "active", "evenness", "outliers", "similarity")
    cells = ((row["tensor"], *(_number(row[column]) for column in columns)) for row in rows)
    put_table(("tensor", *columns), cells, right=tuple(range(1, len(columns) + 1)))


@click.command()
@click.argument("model")
@click.option("--base", help="The reference model, usually the same at full precision.")
@click.option("--base-file", type=_FILE, help="Its log-probabilities, written by llama-perplexity or --save-base.")
@click.option("--save-base", type=_FILE, help="Also write them, in llama-perplexity's format.")
@click.option("--text", type=_FILE, help="Text file (default: the shipped held-out docstrings).")
@click.option("--ctx", "context", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--chunks", type=CHUNKS, default=-1, help="-1: all.")
@click.option("--threads", type=THREADS, default=0)
@click.option("--gpu-layers", type=GPU_LAYERS)
@click.option("--force", is_flag=True, help="Replace an existing --save-base file.")
@job_options
@click.pass_obj
def kld(
    shell: Shell, model: str, base: str | None, base_file: Path | None, save_base: Path | None, text: Path | None,
    context: int, chunks: int, threads: int, gpu_layers: int | None, force: bool, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """How far MODEL's predictions are from a base model's: llama-perplexity's statistics, with no large files.

    Of embedders: how far the vectors of the same passages are apart, and whether their neighbours stay.
    """
    with boundary(as_json=as_json):
        if base_file:
            refuse_given(("text", "context"), "is told by the base file")
        step = KldStep(
            model=reference(model), base=reference(base) if base else None, base_file=absolute(base_file),
            save_base=absolute(save_base), text=absolute(text), context=context, chunks=chunks, threads=threads,
            gpu_layers=gpu_layers, force=force,
        )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_divergence, detach=detach, as_json=as_json))


_STATISTICS = (
    ("mean KLD", "mean_kld", 1.0),
    ("same top token, %", "same_top_p", 100.0),
    ("RMS change of p, %", "delta_p_rms", 100.0),
    ("mean change of p, %", "delta_p", 100.0),
    ("perplexity", "perplexity", 1.0),
    ("perplexity of the base", "base_perplexity", 1.0),
    ("ratio", "ratio", 1.0),
    ("difference", "difference", 1.0),
)
"""(what is shown, figure, factor)."""


def _show_divergence(job: Job) -> None:
    if job.outcome is None:
        return
    figures = job.outcome.figures
    if "mean_distance" in figures:
        _show_distances(job.outcome)
        return
    for label, name, factor in _STATISTICS:
        value, error = figures[name], figures[f"{name}_error"]
        put(f"{label:<24} {_number(value, factor):>12} ± {_number(error, factor)}")
    put(f"{'correlation':<24} {_number(figures['correlation']):>12}")
    put(f"{'maximum KLD':<24} {_number(figures['max_kld']):>12}")
    put(f"{'tokens':<24} {figures['tokens']:>12}")
    put("")
    put_table(
        ("percentile", "KLD", "change of p, %"),
        ((_number(row["percentile"]), _number(row["kld"]), _number(row["delta_p"], 100.0)) for row in job.outcome.rows),
        right=(0, 1, 2),
    )
    for artefact in job.outcome.artefacts:
        put(f"{artefact.name}  {artefact.path}")


_DISTANCES = (
    ("mean distance (1 - cosine)", "mean_distance", 1.0),
    ("same nearest passage, %", "same_nearest", 100.0),
    ("ten nearest kept, %", "neighbours", 100.0),
)


def _show_distances(outcome: Outcome) -> None:
    """What became of an embedder's vectors."""
    figures = outcome.figures
    for label, name, factor in _DISTANCES:
        put(f"{label:<26} {_number(figures[name], factor):>12} ± {_number(figures[f'{name}_error'], factor)}")
    put(f"{'maximum distance':<26} {_number(figures['max_distance']):>12}")
    put(f"{'passages':<26} {figures['passages']:>12}")
    put("")
    put_table(
        ("percentile", "distance"),
        ((_number(row["percentile"]), _number(row["distance"])) for row in outcome.rows),
        right=(0, 1),
    )


def _number(value: Figure, factor: float = 1.0) -> str:
    return "-" if value is None or isinstance(value, str) else f"{value * factor:.5g}"
