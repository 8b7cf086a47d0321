"""What a search for mixes found: the frontier as rows and as dots, and the map of layers by kinds of tensor. Pure.

Invariant: a point's figures were measured; the map's are predicted from measurements, and its heading says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lathe.engine.tune.frontier import NOUNS, Measure, Point, Wish, pareto
from lathe.engine.tune.halving import Run
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.views.quantize import closeness
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, cell, crop, fit
from lathe.tui.widgets.plot import Dot

if TYPE_CHECKING:
    from lathe.engine.tune.frontier_file import FrontierFile

_HEAD = (
    Column("", least=1, most=1),
    Column("file", least=10, most=24, flex=True, sort="file"),
    Column("size", ">", least=6, sort="size"),
    Column("bits", ">", rank=2, least=4, sort="bits"),
)
_SPREAD = (
    Column("±", ">", rank=6, least=7),
    Column("99.9 %", ">", rank=3, least=6),
)
_TAIL = (
    Column("load", ">", rank=8, least=6),
    Column("peak", ">", rank=9, least=5, sort="peak"),
)
COLUMNS: dict[Measure, tuple[Column, ...]] = {
    "kld": (
        *_HEAD,
        Column("KLD", ">", least=7, sort="kld"),
        *_SPREAD,
        Column("same top", ">", rank=5, least=6, sort="top"),
        Column("ppl", ">", rank=4, least=6, sort="ppl"),
        Column("tok/s", ">", least=5, sort="speed"),
        Column("prompt/s", ">", rank=7, least=6),
        *_TAIL,
    ),
    "distance": (
        *_HEAD,
        Column("distance", ">", least=7, sort="distance"),
        *_SPREAD,
        Column("same nearest", ">", rank=5, least=6, sort="nearest"),
        Column("neighbours", ">", rank=4, least=6, sort="neighbours"),
        Column("read/s", ">", least=5, sort="speed"),
        *_TAIL,
    ),
}
"""By what was measured: next tokens, or an embedder's vectors, which reads and generates nothing."""
_PLACE = (
    Column("threads", ">", least=2, sort="threads"),
    Column("batch", ">", least=3, sort="batch"),
    Column("on GPU", ">", rank=6, least=3, sort="layers"),
)
_COST = (
    Column("peak", ">", rank=2, least=5, sort="peak"),
    Column("load", ">", rank=3, least=6, sort="load"),
    Column("rounds", ">", rank=8, least=2),
    Column("", rank=4, least=8, most=40, flex=True),
)
WAYS: dict[Measure, tuple[Column, ...]] = {
    "kld": (
        Column("", least=1, most=1),
        Column("KV cache", least=4, most=8, sort="kv"),
        *_PLACE,
        Column("tok/s", ">", least=5, sort="speed"),
        Column("prompt/s", ">", least=5, sort="prompt"),
        Column("KLD", ">", rank=5, least=7, sort="kld"),
        Column("99.9 %", ">", rank=7, least=6),
        *_COST,
    ),
    "distance": (Column("", least=1, most=1), *_PLACE, Column("read/s", ">", least=5, sort="prompt"), *_COST),
}
"""How the chosen file was run: types of the KV cache, threads, batch, layers on the accelerator."""
_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?")
_INKS = ("faint", "dim", "text", "accent", "warn", "bad")
"""Of the map, from harmless to costly."""
SHADES = {"unicode": " ░▒▓█", "blocks": " ░▒▓█", "ascii": " .:*#"}
_NAMES = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "ffn_gate": "gate", "ffn_up": "up",
    "ffn_down": "down", "attn_qkv": "qkv",
}  # fmt: skip


def mebibytes(size: float) -> str:
    """Small files want digits: `2.75M`."""
    return formats.size(size) if size >= 100 * 1024**2 else f"{size / 1024**2:.2f}M"


def rows(points: Sequence[Point], wish: Wish, measure: Measure = "kld", *, frontier_only: bool = False) -> list[Row]:
    """Every point by size; a star marks those that no other beats, those that miss the wish are dim."""
    stars = {id(point) for point in pareto(points)}
    return [
        _row(number, point, measure, id(point) in stars, wish.granted(point))
        for number, point in enumerate(points)
        if not frontier_only or id(point) in stars
    ]


def _row(number: int, point: Point, measure: Measure, star: bool, granted: bool) -> Row:
    ink = "dim" if not granted else "value" if star else "text"
    answers = measure == "kld"
    cells: tuple[Cell, ...] = (
        ("*" if star else " ", "good"),
        (point.label, ink),
        (mebibytes(point.bytes), ink),
        (f"{point.bits_per_weight:.2f}", "dim"),
        (closeness(point.divergence), ink),
        (f"{point.error:.1g}", "dim"),
        (closeness(point.divergence_99_9), ink),
        (f"{point.agreement:.1%}", ink),
        (_perplexity(point, "{:.3f}") if answers else _neighbours(point), ink),
        (formats.rate(point.speed), ink),
        *(((formats.rate(point.prompt_tokens_per_s), "dim"),) if answers else ()),
        (formats.latency(point.load_s), "dim"),
        (formats.size(point.peak_bytes), "dim"),
    )
    fields: dict[str, str | float | None] = {
        "file": point.label, "size": point.bytes / 1024**2, "bits": point.bits_per_weight, measure: point.divergence,
        "top" if answers else "nearest": point.agreement, "ppl": point.perplexity, "neighbours": point.neighbours,
        "speed": point.speed, "peak": point.peak_bytes,
        "mix": "yes" if point.mix else "no", "best": "yes" if star else "no", "fits": "yes" if granted else "no",
    }  # fmt: skip
    return Row(str(number), cells, fields)


def _perplexity(point: Point, pattern: str) -> str:
    return formats.NONE if point.perplexity is None else pattern.format(point.perplexity)


def _neighbours(point: Point) -> str:
    return formats.NONE if point.neighbours is None else f"{point.neighbours:.1%}"


def dots(points: Sequence[Point], chosen: Point | None) -> list[Dot]:
    """The same for the plot."""
    stars = {id(point) for point in pareto(points)}
    return [
        Dot(point.bytes, point.divergence, "mix" if point.mix else point.label, id(point) in stars, point is chosen)
        for point in points
    ]


def facts(point: Point, measure: Measure = "kld") -> list[tuple[str, str]]:
    """Everything about a point, to read."""
    noun, answers = NOUNS[measure], measure == "kld"
    found = [
        ("file", point.label),
        ("size", f"{formats.long_size(point.bytes)}  ({point.bytes:,} bytes)"),
        ("bits per weight", f"{point.bits_per_weight:.3f}"),
        (f"mean {noun}", f"{point.divergence:.6f} ± {point.error:.6f}"),
        (f"predicted {noun}", formats.NONE if point.predicted is None else f"{point.predicted:.6f}"),
        (f"99.9 % {noun}", f"{point.divergence_99_9:.5f}"),
        ("same top token" if answers else "same nearest", f"{point.agreement:.3%}"),
        ("perplexity", _perplexity(point, "{:.4f}")) if answers else ("ten nearest kept", _neighbours(point)),
        *_speeds(point.tokens_per_s, point.prompt_tokens_per_s, answers),
        ("load", formats.latency(point.load_s)),
        ("peak memory", formats.long_size(point.peak_bytes)),
    ]
    if point.mix:
        counts: dict[str, int] = {}
        for kind in point.mix.values():
            counts[kind] = counts.get(kind, 0) + 1
        ranked = sorted(counts.items(), key=lambda item: -item[1])
        found.append(("tensors", "  ".join(f"{count} {kind}" for kind, count in ranked)))
    return found


def _speeds(generated: float | None, read: float | None, answers: bool) -> list[tuple[str, str]]:
    reading = ("prompt" if answers else "reading", f"{formats.rate(read)} tok/s")
    return [("generation", f"{formats.rate(generated)} tok/s"), reading] if answers else [reading]


# -- ways to run ------------------------------------------------------------------------------------------------------
def way_rows(runs: Sequence[Run], measure: Measure = "kld") -> list[Row]:
    """Ways to run the file, the best first; those that were dropped early are dim, those that failed say why."""
    most = max((run.rounds for run in runs), default=0)
    return [_way(number, run, most, measure == "kld") for number, run in enumerate(runs)]


def _way(number: int, run: Run, most: int, answers: bool) -> Row:
    first = number == 0 and not run.problem
    ink = "bad" if run.problem else "value" if first else "text" if run.rounds == most else "dim"
    words = run.problem or ("" if run.rounds == most else f"left after round {run.rounds}")
    cells: tuple[Cell, ...] = (
        ("*" if first else " ", "good"),
        *(((run.kv_type, ink),) if answers else ()),
        (str(run.threads), ink),
        (str(run.batch), ink),
        ("all" if run.gpu_layers < 0 else str(run.gpu_layers), ink),
        *(((formats.rate(run.tokens_per_s), ink),) if answers else ()),
        (formats.rate(run.prompt_tokens_per_s), ink),
        *(((closeness(run.divergence), "dim"), (closeness(run.divergence_99_9), "dim")) if answers else ()),
        (formats.size(run.peak_bytes), ink),
        (formats.latency(run.load_s), "dim"),
        (str(run.rounds), "dim"),
        (words, "bad" if run.problem else "faint"),
    )
    fields: dict[str, str | float | None] = {
        "kv": run.kv_type, "threads": run.threads, "batch": run.batch, "layers": run.gpu_layers,
        "speed": run.tokens_per_s, "prompt": run.prompt_tokens_per_s, "kld": run.divergence, "peak": run.peak_bytes,
        "load": run.load_s, "problem": run.problem,
    }  # fmt: skip
    return Row(str(number), cells, fields)


def way_facts(run: Run) -> list[tuple[str, str]]:
    """Everything about a way, to read."""
    answers = bool(run.kv_type)
    closeness_of = [
        ("mean KLD", formats.NONE if run.divergence is None else f"{run.divergence:.6f}"),
        ("99.9 % KLD", formats.NONE if run.divergence_99_9 is None else f"{run.divergence_99_9:.5f}"),
    ]
    return [
        ("file", run.label),
        *([("KV cache", run.kv_type)] if answers else []),
        ("threads", str(run.threads)),
        ("batch", f"{run.batch} tokens {'of a prompt ' if answers else ''}at once"),
        ("layers on GPU", "all" if run.gpu_layers < 0 else str(run.gpu_layers)),
        *_speeds(run.tokens_per_s, run.prompt_tokens_per_s, answers),
        ("load", formats.latency(run.load_s)),
        ("peak memory", formats.long_size(run.peak_bytes)),
        *(closeness_of if answers else []),  # an embedder's vectors do not depend on the way
        ("trials", str(run.rounds)),
        ("flags", way_flags(run)),
        *([("problem", run.problem)] if run.problem else []),
    ]


def way_flags(run: Run) -> str:
    """A way as the flags of `lathe serve`."""
    cache = f"--kv-type {run.kv_type} " if run.kv_type else ""
    return f"{cache}--threads {run.threads} --gpu-layers {run.gpu_layers}"


def ways_title(file: FrontierFile | None) -> tuple[str, ...]:
    """Of which file, and in which order."""
    return (file.runs[0].label, "best first") if file is not None and file.runs else ()


def left_out(file: FrontierFile) -> str:
    """What there was no time for, in few words."""
    if file.seconds is None:
        return ""
    took = f"took {formats.duration(file.seconds)}"
    return f"{took}, {formats.many(len(file.left_out), 'thing')} left out" if file.left_out else took


def summary(file: FrontierFile) -> tuple[str, ...]:
    """Where the figures come from."""
    source, readings = f"{file.model} on {file.text}", f"{file.readings} readings"
    if file.measure == "distance":
        return (source, f"{file.chunks} passages of {file.context} tokens", readings)
    how = "all tokens" if file.exact else "most probable tokens"
    return (source, f"{file.chunks} x {file.context} tokens", how, readings)


# -- the map ----------------------------------------------------------------------------------------------------------
def heat(
    sensitivity: Mapping[str, Mapping[str, float]],
    kind: str,
    mix: Mapping[str, str] | None,
    width: int,
    glyphs: Glyphs,
) -> list[Line]:
    """Layers by kinds of tensor: what each would cost as `kind`; with `mix`, the type each one gets.

    Shades are logarithmic over all that is shown, so that the costliest tensor is full and a hundredth of it is not.
    """
    costs = {name: by_kind[kind] for name, by_kind in sensitivity.items() if kind in by_kind}
    columns, table = _table(sensitivity)
    if not costs or not columns:
        return [[("Nothing is known of this type.", "dim")]]
    top = max(costs.values())
    label = max((len(row) for row in table), default=6)
    each = max(2, min(12, (width - label - 1) // len(columns) - 1))
    head = [(" " * (label + 1), "dim"), *((cell(_NAMES.get(c, c), each, "<", "") + " ", "dim") for c in columns)]
    lines: list[Line] = [fit(head, width)]
    for row, tensors in table.items():
        line: Line = [(cell(row, label, ">") + " ", "dim")]
        for column in columns:
            name = tensors.get(column)
            line.append(_heat_cell(name, costs, top, mix, each, glyphs))
            line.append((" ", "text"))
        lines.append(fit(line, width))
    return lines


def _heat_cell(
    name: str | None, costs: Mapping[str, float], top: float, mix: Mapping[str, str] | None, each: int, glyphs: Glyphs
) -> tuple[str, str]:
    if name is None or name not in costs:
        return " " * each, "text"
    shades = SHADES[glyphs.name]
    # Four decades from blank to full.
    share = 0.0 if costs[name] <= 0 or top <= 0 else max(0.0, 1 + math.log10(costs[name] / top) / 4)
    shade = shades[min(len(shades) - 1, round(share * (len(shades) - 1)))]
    ink = _INKS[min(len(_INKS) - 1, round(share * (len(_INKS) - 1)))]
    if mix is not None:
        kind = mix.get(name, "as is").lower()
        return cell(f"{shade}{kind}" if each >= 6 else crop(kind.removeprefix("i"), each, ""), each), ink
    cost = 1e5 * costs[name]
    number = (f"{cost:.3g}" if cost < 999.5 else f"{cost:.0f}") if each >= 7 else ""
    return cell(f"{shade * 2}{number}" if number else shade * each, each), ink


def _table(names: Mapping[str, object]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns, and row -> column -> tensor; tensors outside of layers have rows of their own, last."""
    columns: list[str] = []
    table: dict[str, dict[str, str]] = {}
    rest: dict[str, dict[str, str]] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        if found is None:
            rest[name.removesuffix(".weight").removesuffix("_embd")] = {"": name}
            continue
        table.setdefault(found[1], {})[found[2]] = name
        if found[2] not in columns:
            columns.append(found[2])
    order = list(_NAMES)
    columns.sort(key=lambda column: order.index(column) if column in order else len(order))
    ordered = dict(sorted(table.items(), key=lambda item: int(item[0])))
    for row, tensors in rest.items():
        ordered[row] = {columns[0] if columns else "": next(iter(tensors.values()))}
    return columns or [""], ordered
