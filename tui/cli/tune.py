"""`lathe tune`: the frontier of size, divergence and speed for a model, and the file that answers a wish.

The table and the map are drawn from the job's outcome and its JSON artefact. Invariant: every figure shown was
measured, but for the map's, which says that it is predicted.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
from lathe.engine.jobs.values import Figure, Job
from lathe.engine.steps import TuneStep
from lathe.engine.tune.frontier import NOUNS, UNITS, Measure, telling_kind
from lathe.engine.tune.frontier_file import FrontierFile, read_frontier
from lathe.engine.tune.halving import Run
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import GPU_LAYERS, KV_TYPE, SOME_THREADS, THREADS, Finite
from lathe.tui.cli.shell import Shell, anchored, put, put_table
from lathe.tui.cli.work import absolute, job_options, reference
from lathe.tui.formats import long_size

_FILE = click.Path(path_type=Path)
_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?")
_SHADES = " .:-=+*#%@"
_AGREEMENT: dict[Measure, tuple[tuple[str, str, str], ...]] = {
    "kld": (("same top", "same_top", "{:.2%}"), ("perplexity", "perplexity", "{:.4f}"),
            ("prompt/s", "prompt_tokens_per_s", "{:.1f}"), ("gen/s", "tokens_per_s", "{:.1f}")),
    "distance": (("same nearest", "same_nearest", "{:.2%}"), ("neighbours", "neighbours", "{:.2%}"),
                 ("read/s", "prompt_tokens_per_s", "{:.1f}")),
}  # fmt: skip
"""Columns that differ by what is measured: title, name in a row, pattern."""


@click.command()
@click.argument("model")
@click.option("--text", type=_FILE, required=True, help="Calibration text; judge the result on another.")
@click.option("--max-size", metavar="SIZE", help="4GB, 2.5GiB, a number of bytes, or a file type's size: Q4_K_M.")
@click.option("--max-kld", type=Finite(min=0, min_open=True), help="Mean divergence in nats.")
@click.option("--max-distance", type=Finite(min=0, min_open=True), help="Mean distance of an embedder's vectors.")
@click.option("--min-tps", type=Finite(min=0, min_open=True), help="Tokens per second here, generated or embedded.")
@click.option("--size", "sizes", multiple=True, metavar="SIZE", help="Another size to find a mix for; repeatable.")
@click.option("--compare", multiple=True, metavar="TYPE", help="llama.cpp's recipes to measure beside; repeatable.")
@click.option("--kind", "kinds", multiple=True, metavar="TYPE", help="Tensor types to choose from; repeatable.")
@click.option("--imatrix", type=_FILE, help="Importance matrix (default: collected from the text).")
@click.option("--no-feedback", is_flag=True, help="Round as llama-quantize does.")
@click.option("--ctx", "context", type=click.IntRange(min=8), default=256, show_default=True)
@click.option("--chunks", type=click.IntRange(min=1), default=48, show_default=True, help="Of the text, per reading.")
@click.option("--minutes", type=Finite(min=0, min_open=True), default=30, show_default=True)
@click.option("--no-speed", is_flag=True, help="Time nothing.")
@click.option("--kv-type", "kv_types", multiple=True, type=KV_TYPE, help="KV cache types to try; repeatable.")
@click.option("--try-threads", multiple=True, type=SOME_THREADS, help="Numbers of threads to try.")
@click.option("--try-batch", multiple=True, type=click.IntRange(min=1), help="Batch sizes to try.")
@click.option("--try-gpu-layers", multiple=True, type=GPU_LAYERS, help="Layers on the GPU to try.")
@click.option("--threads", type=THREADS, default=0, help="Of the search itself; 0: all cores.")
@click.option("--gpu-layers", type=GPU_LAYERS)
@click.option("-o", "--output", type=_FILE, help="File to write (default: in the workspace).")
@click.option("--name", help="Name to register the result under.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@job_options
@click.pass_obj
def tune(
    shell: Shell, model: str, text: Path, max_size: str | None, max_kld: float | None, max_distance: float | None,
    min_tps: float | None, sizes: tuple[str, ...], compare: tuple[str, ...], kinds: tuple[str, ...],
    imatrix: Path | None,
    no_feedback: bool, context: int, chunks: int, minutes: float, no_speed: bool, kv_types: tuple[str, ...],
    try_threads: tuple[int, ...], try_batch: tuple[int, ...], try_gpu_layers: tuple[int, ...], threads: int,
    gpu_layers: int | None, output: Path | None, name: str | None, force: bool, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find the best file of MODEL for a size, a divergence or a speed; exit 1 where nothing answers."""
    defaults = TuneStep(model=model, text="")
    step = TuneStep(
        model=reference(model), text=anchored(text), max_size=max_size, max_kld=max_kld,
        max_distance=max_distance, min_tokens_per_s=min_tps, sizes=sizes,
        compare=_upper(compare) or defaults.compare, kinds=_upper(kinds),
        imatrix=absolute(imatrix), feedback=not no_feedback, context=context, chunks=chunks, minutes=minutes,
        speed=not no_speed, kv_types=kv_types or defaults.kv_types, try_threads=try_threads, try_batch=try_batch,
        try_gpu_layers=try_gpu_layers, threads=threads, gpu_layers=gpu_layers, output=absolute(output), name=name,
        force=force,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show, detach=detach, as_json=as_json))


def _upper(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind.upper() for kind in kinds)


def _show(job: Job) -> None:
    if job.outcome is None:
        return
    _frontier(job.outcome.rows)
    document = next((one for one in job.outcome.artefacts if one.format == "json"), None)
    if document is not None:
        frontier = read_frontier(Path(document.path))
        _runs(frontier)
        chosen = job.outcome.figures.get("chosen")
        mix = next((point.mix for point in frontier.points if point.label == chosen), None)
        for line in heat_map(frontier.sensitivity, mix, frontier.measure):
            put(line)
        _time(frontier)
    put("")
    for artefact in job.outcome.artefacts:
        put(f"{artefact.name}  {long_size(artefact.bytes)}  {artefact.path}")


def _frontier(rows: tuple[dict[str, Figure], ...]) -> None:
    """Every point by size; a star marks those that no other beats."""
    measure: Measure = "distance" if any("distance" in row for row in rows) else "kld"
    columns = [
        ("bits", "bits_per_weight", "{:.2f}"), (f"mean {NOUNS[measure]}", measure, "{:.5f}"),
        ("±", f"{measure}_error", "{:.5f}"), ("99.9 %", f"{measure}_99_9", "{:.4f}"), *_AGREEMENT[measure],
        ("load s", "load_s", "{:.2f}"),
    ]  # fmt: skip
    put_table(
        ("", "file", "bytes", *(title for title, _, _ in columns), "peak"),
        (
            ("*" if row["frontier"] else "", row["label"], f"{row['bytes']:,}",
             *(_number(row[name], pattern) for _, name, pattern in columns), _size(row["peak_bytes"]))
            for row in rows
        ),
        right=tuple(range(2, len(columns) + 4)),
    )  # fmt: skip


def _runs(frontier: FrontierFile) -> None:
    """How the chosen file runs best: the survivors of every round, the fastest first."""
    if not frontier.runs:
        return
    answers = frontier.measure == "kld"
    put("")
    put(f"ways to run {frontier.runs[0].label}, best first")
    titles = ("KV cache", "mean KLD", "prompt/s", "gen/s") if answers else ("read/s",)
    put_table(
        ("threads", "batch", "GPU layers", *titles, "load s", "peak", "rounds", ""),
        (
            (run.threads, run.batch, run.gpu_layers, *_speeds(run, answers), _number(run.load_s, "{:.2f}"),
             _size(run.peak_bytes), run.rounds, run.problem)
            for run in frontier.runs
        ),
        right=tuple(range(len(titles) + 6)),
    )  # fmt: skip


def _speeds(run: Run, answers: bool) -> tuple[str, ...]:
    prompt = _number(run.prompt_tokens_per_s, "{:.1f}")
    if not answers:
        return (prompt,)
    return (run.kv_type, _number(run.divergence, "{:.5f}"), prompt, _number(run.tokens_per_s, "{:.1f}"))


def _time(frontier: FrontierFile) -> None:
    """What the search took, by its parts; what there was no time for is among the job's warnings."""
    if frontier.seconds is None or frontier.seconds_asked is None:
        return
    put("")
    parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in frontier.spent.items() if seconds >= 0.5)
    put(f"took {frontier.seconds:.0f} s of {frontier.seconds_asked:.0f} given{f': {parts}' if parts else ''}")


def heat_map(
    sensitivity: dict[str, dict[str, float]], mix: dict[str, str] | None, measure: Measure = "kld"
) -> list[str]:
    """Layers by kinds of tensor: what each costs as a middling type (darker is dearer), and its chosen type."""
    kind = telling_kind(sensitivity)
    if kind is None:
        return []
    costs = {name: by_kind[kind] for name, by_kind in sensitivity.items() if kind in by_kind}
    columns: list[str] = []
    rows: dict[str, dict[str, str]] = {}
    for name in costs:
        found = _LAYER.fullmatch(name)
        row, column = (f"layer {found[1]}", found[2]) if found else ("model", name.removesuffix(".weight"))
        rows.setdefault(row, {})[column] = name
        if column not in columns:
            columns.append(column)
    most = max(costs.values()) or 1.0
    lines = [
        "",
        f"predicted divergence of each tensor as {kind}, in {UNITS[measure]}" + (", and its type" if mix else ""),
    ]
    for part in (["model"], [row for row in rows if row != "model"]):
        here = [column for column in columns if any(column in rows.get(row, {}) for row in part)]
        if not here:
            continue
        table = [["", *here]]
        table += [[row, *(_cell(rows[row].get(column), costs, most, mix) for column in here)] for row in part]
        widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return [line.rstrip() for line in lines]


def _cell(name: str | None, costs: dict[str, float], most: float, mix: dict[str, str] | None) -> str:
    if name is None:
        return ""
    # The fourth root spreads what spans four orders of magnitude.
    shade = _SHADES[min(len(_SHADES) - 1, int(len(_SHADES) * (costs[name] / most) ** 0.25))]
    kind = f" {mix[name].lower()}" if mix and name in mix else ""
    return f"{shade * 3} {1e5 * costs[name]:.1f}{kind}"


def _size(value: Figure) -> str:
    return long_size(value) if isinstance(value, int) else "-"


def _number(value: Figure, pattern: str) -> str:
    return "-" if value is None or isinstance(value, str) else pattern.format(value)
