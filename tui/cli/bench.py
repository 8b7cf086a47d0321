"""Speed from the shell: `lathe bench MODEL...` with llama-bench's rows, and the machine's history with its alerts.

GGUF files are timed bare, as llama-bench does; with `--served`, and of every other format, models are timed as they
are served, in the same table. Invariant: rows go to stdout in the format asked for, alerts to stderr.
"""

from __future__ import annotations

import time
from typing import Any

import click
from lathe.engine.errors import ExitCode, revive
from lathe.engine.jobs.values import Figure
from lathe.engine.measure.history import BenchPoint
from lathe.engine.steps import BenchServedStep, BenchStep
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions
from lathe.tui.cli.follow import follow
from lathe.tui.cli.numbers import GPU_LAYERS, KV_TYPE, THREADS
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say
from lathe.tui.cli.work import reference

_STYLES = ["md", "json", "jsonl", "csv", "sql"]


class _Bench(click.Group):
    """A group whose first word may be left out: `lathe bench MODEL` is `lathe bench run MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("bench", cls=_Bench)
def bench() -> None:
    """Prompt and generation speed (`lathe bench MODEL...`), and its history on this machine."""


def _numbers(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(number) for value in values for number in value.split(",") if number)
    except ValueError:
        raise click.BadParameter(f"{','.join(values)!r} is not a list of whole numbers") from None


def _threads(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(THREADS.convert(number, param, ctx) for number in _numbers(ctx, param, values))


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((int(prompt), int(generate)) for prompt, generate in (value.split(",") for value in values))
    except ValueError:
        raise click.BadParameter(f"{' '.join(values)!r} is not PROMPT,GENERATED") from None


@bench.command("run")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "-p", "prompt", multiple=True, default=("512",), callback=_numbers, help="Prompt tokens, comma-separated."
)
@click.option("-n", "generate", multiple=True, default=("128",), callback=_numbers, help="Generated tokens.")
@click.option(
    "-pg", "pairs", multiple=True, callback=_pairs, metavar="P,N", help="Prompt and generation in one timing."
)
@click.option("-d", "depths", multiple=True, default=("0",), callback=_numbers, help="Tokens already in the context.")
@click.option("-b", "batch", type=click.IntRange(min=1), default=2048)
@click.option("-ub", "micro_batch", type=click.IntRange(min=1), default=512)
@click.option("-ctk", "kv_types", multiple=True, type=KV_TYPE, default=("f16",), help="Type of the KV cache.")
@click.option("-t", "threads", multiple=True, default=("0",), callback=_threads, help="0: physical cores.")
@click.option("-r", "repetitions", type=click.IntRange(min=1), default=5)
@click.option("-ngl", "gpu_layers", type=GPU_LAYERS)
@click.option("--served", is_flag=True, help="Through the model's worker, as requests see it.")
@click.option("-npl", "parallel", multiple=True, default=("1",), callback=_numbers, help="Served: requests at once.")
@click.option("-o", "style", type=click.Choice(_STYLES), default="md", show_default=True)
@click.option("--fail-on-slower", is_flag=True, help="Exit 1 where a figure is a regression on this machine.")
@click.pass_obj
def run_(
    shell: Shell, models: tuple[str, ...], prompt: tuple[int, ...], generate: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...], depths: tuple[int, ...], batch: int, micro_batch: int,
    kv_types: tuple[Any, ...], threads: tuple[int, ...], repetitions: int, gpu_layers: int | None, served: bool,
    parallel: tuple[int, ...], style: str, fail_on_slower: bool,
) -> None:  # fmt: skip
    """Speed of MODELS with llama-bench's rows and field names."""
    from lathe.engine.measure.bench_formats import render

    async def work(workbench: Workbench) -> bool:
        rows: list[dict[str, Figure]] = []
        slower: list[BenchPoint] = []
        for model in models:
            named = reference(model)
            gguf = (await workbench.model(named)).entry.format == "gguf"
            if gguf and not served and parallel == (1,):
                step: BenchStep | BenchServedStep = BenchStep(
                    model=named, prompt_tokens=prompt, generate_tokens=generate, pairs=pairs, depths=depths,
                    batch=batch, micro_batch=micro_batch, kv_types=kv_types, threads=threads, repetitions=repetitions,
                    gpu_layers=gpu_layers,
                )  # fmt: skip
            else:
                step = _served(named, prompt, generate, parallel, repetitions, threads[0], kv_types[0], gpu_layers)
            job = await follow(workbench, await workbench.submit(step))
            if job.failure is not None:
                raise revive(job.failure)
            rows += job.outcome.rows if job.outcome else ()
            told = await workbench.bench_history(named, len(job.outcome.rows) if job.outcome else 0)
            slower += [point for point in told if point.job == job.id and point.trend == "slower"]
        put(render(rows, style).rstrip("\n"))
        for point in slower:
            say(f"SLOWER: {point.model} {point.test} {point.rate:.2f} t/s, {_change(point)} against {point.before:.2f}")
        return bool(slower)

    worse = shell.run(work)
    raise SystemExit(int(ExitCode.NEGATIVE) if worse and fail_on_slower else 0)


def _served(
    model: str, prompt: tuple[int, ...], generate: tuple[int, ...], parallel: tuple[int, ...], repetitions: int,
    threads: int, kv_type: Any, gpu_layers: int | None,
) -> BenchServedStep:  # fmt: skip
    # Room for the longest test of as many requests at once as are wanted.
    longest = max([*prompt, *(count + 16 for count in generate), 32]) + 16
    options = LoadOptions(
        context=longest, slots=max(parallel), threads=threads or None, kv_type=kv_type, gpu_layers=gpu_layers
    )
    return BenchServedStep(
        model=model, prompt_tokens=prompt, generate_tokens=generate, parallel=parallel, repetitions=repetitions,
        options=options,
    )  # fmt: skip


@bench.command("history")
@click.argument("model", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def history(shell: Shell, model: str | None, limit: int, as_json: bool) -> None:
    """What was measured on this machine, newest first, and where it became slower."""

    async def work(workbench: Workbench) -> None:
        found = await workbench.bench_history(reference(model) if model else None, limit)
        put_json(found) if as_json else _show(found)

    shell.run(work, as_json=as_json)


def _show(points: list[BenchPoint]) -> None:
    rows = [
        (time.strftime("%Y-%m-%d %H:%M", time.localtime(point.at)), point.model, point.test,
         f"{point.rate:.2f} ± {point.deviation:.2f}", "-" if point.before is None else f"{point.before:.2f}",
         _change(point), "SLOWER" if point.trend == "slower" else point.trend, point.setting)
        for point in points
    ]  # fmt: skip
    put_table(("measured", "model", "test", "t/s", "before", "change", "", "setting"), rows, right=(3, 4, 5))


def _change(point: BenchPoint) -> str:
    return "-" if point.change is None else f"{point.change:+.1%}"
