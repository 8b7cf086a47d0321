"""Models as rows of a tree (variants under their base) and as a card. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from lathe.engine.states import Fit, Footprint, WorkerState
from lathe.engine.workbench import ModelDetails
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, stacked, width_of, wrap

COLUMNS = (
    Column("name", least=20, most=48, flex=True, sort="name"),
    Column("params", ">", rank=2, least=6, sort="params"),
    Column("arch", rank=8, least=5, most=12, sort="arch"),
    Column("format", rank=4, least=6, most=11, sort="format"),
    Column("quant", rank=1, least=6, most=9, sort="quant"),
    Column("bits", ">", rank=9, least=4, sort="bits"),
    Column("size", ">", least=5, sort="size"),
    Column("ctx", ">", rank=3, least=4, sort="ctx"),
    Column("needs", ">", rank=7, least=6),
    Column("fits", least=7, most=8, sort="fits"),
    Column("tok/s", ">", rank=5, least=5, sort="speed"),
    Column("ppl", ">", rank=6, least=5, sort="ppl"),
    Column("state", least=8, most=14, sort="state"),
)
_VERDICTS = {
    "fits": ("yes", "good"),
    "tight": ("tight", "warn"),
    "partial": ("part gpu", "warn"),
    "no": ("no", "bad"),
    "unknown": ("?", "dim"),
}
FORMATS = {"safetensors": "safetens."}
_UNMEASURED = {
    "gguf": "nothing yet: b bench, p perplexity",
    "onnx": "nothing yet: p perplexity",
    "safetensors": "nothing yet: n converts it first",
    "ggml": "nothing yet: n converts it first",
    "remote": "nothing: it computes elsewhere",
}
"""What can be measured of a model that lies in a format."""


def card_of(entry: ModelEntry) -> ModelCard:
    """The cached header of an entry; all unknown where it could not be read."""
    try:
        return msgspec.convert(entry.card, ModelCard)
    except msgspec.ValidationError:
        return ModelCard(format=entry.format)


def able_to_answer(board: Board) -> list[ModelEntry]:
    """Models that write text; loaded ones first, then those with a chat template."""
    able = [
        entry
        for entry in board.models
        if entry.format in ("gguf", "onnx", "remote")
        and not entry.missing
        and not card_of(entry).pooling
        and card_of(entry).kind == "model"
    ]
    able.sort(key=lambda entry: (board.worker(entry.id) is None, not card_of(entry).chat_template, entry.name))
    return able


def unknown_fit(reason: str) -> Fit:
    """The verdict where no estimate could be made."""
    nothing = Footprint(weights=0, kv_cache=0, compute=0, overhead=0)
    return Fit(footprint=nothing, options=LoadOptions(), verdict="unknown", reason=reason)


def tree(models: Sequence[ModelEntry]) -> list[tuple[ModelEntry, int, bool]]:
    """(entry, depth, last of its siblings): roots by name, variants under them by size, largest first."""
    known = {entry.id: entry for entry in models}
    children: dict[str | None, list[ModelEntry]] = {}
    for entry in models:
        parent = entry.parent if entry.parent in known and entry.parent != entry.id else None
        children.setdefault(parent, []).append(entry)
    result: list[tuple[ModelEntry, int, bool]] = []
    seen: set[str] = set()

    def walk(parent: str | None, depth: int) -> None:
        group = children.get(parent, [])
        group.sort(key=lambda e: (e.name.lower(),) if parent is None else (-e.bytes, e.name.lower()))
        for number, entry in enumerate(group):
            if entry.id not in seen:
                seen.add(entry.id)
                result.append((entry, depth, number == len(group) - 1))
                walk(entry.id, depth + 1)

    walk(None, 0)
    # Parents that form a circle would otherwise be lost.
    result += [(entry, 0, True) for entry in models if entry.id not in seen]
    return result


def state_of(entry: ModelEntry, worker: WorkerState | None, glyphs: Glyphs) -> tuple[str, str]:
    """What a model is doing, as a sign, a word and an ink."""
    if worker is not None and worker.phase != "stopped":
        if worker.phase == "starting":
            done = "" if worker.progress is None else f" {formats.percent(worker.progress)}"
            return f"{glyphs.busy} loading{done}", "accent"
        if worker.phase in ("failed", "quarantined"):
            return f"{glyphs.bad} {worker.phase}", "bad"
        if worker.phase in ("draining", "stopping"):
            return f"{glyphs.busy} {worker.phase}", "warn"
        info = worker.info
        if info is not None and info.layers and 0 < info.gpu_layers < info.layers:
            return f"{glyphs.warn} up {info.gpu_layers}/{info.layers}", "warn"
        return f"{glyphs.good} loaded", "good"
    if entry.missing:
        return f"{glyphs.bad} missing", "bad"
    if not entry.card:
        return f"{glyphs.warn} unreadable", "warn"
    if entry.format == "ggml":
        return f"{glyphs.idle} legacy", "dim"
    return f"{glyphs.idle} idle", "dim"


def rows(
    models: Sequence[ModelEntry],
    workers: Mapping[str, WorkerState],
    fits: Mapping[str, Fit],
    glyphs: Glyphs,
    *,
    flat: bool = False,
) -> list[Row]:
    """The tree as rows; `flat` leaves the branches out, for lists that are sorted or filtered."""
    nodes = ((entry, 0 if flat else depth, last) for entry, depth, last in tree(models))
    return [_row(*node, workers, fits, glyphs) for node in nodes]


def _row(
    entry: ModelEntry,
    depth: int,
    last: bool,
    workers: Mapping[str, WorkerState],
    fits: Mapping[str, Fit],
    glyphs: Glyphs,
) -> Row:
    card, fit, worker = card_of(entry), fits.get(entry.id), workers.get(entry.id)
    branch = "  " * (depth - 1) + (glyphs.last_branch if last else glyphs.branch) if depth else ""
    state, ink = state_of(entry, worker, glyphs)
    verdict, fit_ink = _VERDICTS[fit.verdict] if fit else ("...", "faint")
    if verdict == "part gpu" and not any(device != "cpu" for device in (fit.available if fit else {})):
        verdict = "part"
    speed, perplexity = entry.measured.get("tokens_per_s"), entry.measured.get("perplexity")
    lit = "value" if worker is not None else "text"
    cells: tuple[Cell, ...] = (
        (branch + entry.name, lit),
        formats.count(card.parameters),
        (card.architecture or formats.NONE, "dim"),
        (FORMATS.get(entry.format, entry.format), "dim"),
        card.file_type or formats.NONE,
        (f"{card.bits_per_weight:.1f}" if card.bits_per_weight else formats.NONE, "dim"),
        formats.size(entry.bytes),
        formats.tokens(card.context_length),
        ("~" + formats.size(fit.footprint.total) if fit and fit.verdict != "unknown" else formats.NONE, "dim"),
        (verdict, fit_ink),
        formats.rate(float(speed)) if isinstance(speed, int | float) else formats.NONE,
        f"{perplexity:.2f}" if isinstance(perplexity, int | float) else formats.NONE,
        (state, ink),
    )
    fields: dict[str, str | float | None] = {
        "name": entry.name,
        "params": card.parameters,
        "arch": card.architecture,
        "format": entry.format,
        "quant": card.file_type,
        "bits": card.bits_per_weight,
        "size": entry.bytes / (1 << 30),
        "ctx": card.context_length,
        "fits": fit.verdict if fit else None,
        "state": state.split(" ", 1)[-1],
        "origin": entry.origin,
        "speed": float(speed) if isinstance(speed, int | float) else None,
        "ppl": float(perplexity) if isinstance(perplexity, int | float) else None,
    }
    return Row(entry.id, cells, fields)


def card_lines(
    entry: ModelEntry,
    details: ModelDetails | None,
    fit: Fit | None,
    names: Mapping[str, str],
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    aliases: Sequence[str] = (),
) -> list[Line]:
    """The card: most important first, so that a short panel shows what matters."""
    card = details.card if details else card_of(entry)
    worker = details.worker if details else None
    lines: list[Line] = []
    if details is not None and details.problem is not None:
        lines += wrap(details.problem.message, width, "bad", 2)
        lines += wrap(details.problem.hint, width, "dim", 2)
    verified = f"verified {formats.moment(entry.verified_at)}" if entry.verified_at else "not verified yet"
    digest = f"{entry.sha256[:8]}..{entry.sha256[-4:]}" if entry.sha256 else "not hashed yet"
    origin = entry.origin if not entry.parent else f"{entry.origin} from {names.get(entry.parent, entry.parent)}"
    lines += _flow(
        [
            ("sha256", f"{digest} {verified}"),
            ("licence", card.licence or "not stated"),
            ("origin", origin),
            *([("also called", ", ".join(aliases))] if aliases else []),
        ],
        width,
    )
    if fit is not None and fit.verdict != "unknown":
        print_ = fit.footprint
        lines += _flow(
            [
                ("needs", f"~{formats.long_size(print_.total)}"),
                ("context", formats.tokens(fit.options.context)),
                ("layers on GPU", f"{print_.gpu_layers}/{card.layers}" if card.layers else formats.NONE),
                ("verdict", fit.verdict),
            ],
            width,
        )
    measured = [(name, formats.figure(value)) for name, value in entry.measured.items()]
    lines += _flow([("measured", "here" if measured else _UNMEASURED[entry.format]), *measured], width)
    if worker is not None and worker.info is not None:
        info = worker.info
        lines += _flow(
            [
                ("loaded", f"pid {info.pid}"),
                ("backend", info.backend),
                ("slots", str(info.slots)),
                ("context", formats.tokens(info.context)),
                ("in", f"{info.load_s:.1f} s"),
            ],
            width,
        )
    if worker is not None and worker.failure is not None:
        lines += wrap(f"{worker.phase}: {worker.failure.message}", width, "bad", 2)
    lines += _flow([("path", entry.path)], width)
    if height - len(lines) > 3:
        lines += _shape(card, width)
    if height - len(lines) > 4 and card.tensor_types:
        lines += _mix(card, width, glyphs)
    if height - len(lines) > 3 and fit is not None and fit.verdict != "unknown":
        lines += _needs(fit, width, glyphs)
    if height - len(lines) > 3 and details is not None and details.children:
        lines += [
            [],
            *_flow([("made from it", ", ".join(names.get(child, child) for child in details.children))], width),
        ]
    if height - len(lines) > 2 and entry.recipe:
        lines += [
            [],
            *_flow(
                [("recipe", "  ".join(f"{key}={formats.figure(value)}" for key, value in entry.recipe.items()))], width
            ),
        ]
    for warning in card.warnings:
        lines += wrap(f"{glyphs.warn} {warning}", width, "warn", 2, 2)
    return lines[:height]


def _shape(card: ModelCard, width: int) -> list[Line]:
    pairs = [
        ("layers", card.layers),
        ("heads", card.heads),
        ("kv heads", card.kv_heads),
        ("embedding", card.embedding_length),
        ("feed forward", card.feed_forward_length),
        ("vocabulary", card.vocabulary),
        ("experts", card.experts),
        ("window", card.sliding_window),
        ("tensors", card.tensors or None),
        ("shards", card.shards if card.shards > 1 else None),
    ]
    known = [(name, str(value)) for name, value in pairs if value is not None]
    template = (
        card.template_sha256[:8]
        if card.template_sha256
        else "present"
        if card.chat_template
        else "none: plain text only"
    )
    known += [("tokenizer", f"{card.tokenizer} {card.pre_tokenizer or ''}".strip())] if card.tokenizer else []
    return [[], *_flow([*known, ("chat template", template)], width)]


def _mix(card: ModelCard, width: int, glyphs: Glyphs) -> list[Line]:
    total = sum(card.tensor_types.values()) or 1
    ranked = sorted(card.tensor_types.items(), key=lambda item: -item[1])[:3]
    inks = ("part1", "part2", "part3")
    bar = stacked([(size / total, ink) for (_, size), ink in zip(ranked, inks, strict=False)], width, glyphs)
    legend: Line = [("quant mix  ", "dim")]
    for (name, size), ink in zip(ranked, inks, strict=False):
        legend += [(f"{one_line(name, 12)} ", ink), (f"{formats.percent(size / total)}  ", "text")]
    return [[], legend, bar]


def _needs(fit: Fit, width: int, glyphs: Glyphs) -> list[Line]:
    parts = fit.footprint
    inks = ("part1", "part2", "part3")
    named = (("weights", parts.weights), ("KV", parts.kv_cache), ("compute", parts.compute + parts.overhead))
    legend: Line = [("predicted  ", "dim")]
    for (name, size), ink in zip(named, inks, strict=True):
        legend += [(f"{name} ", ink), (f"~{formats.size(size)}  ", "text")]
    bar = stacked([(size / parts.total, ink) for (_, size), ink in zip(named, inks, strict=True)], width, glyphs)
    lines: list[Line] = [[], legend, bar]
    if fit.reason:
        lines += wrap(fit.reason, width, "bad" if fit.verdict == "no" else "dim", 2)
    free = "  ".join(f"{device} {formats.long_size(size)}" for device, size in fit.available.items())
    if free:
        lines += _flow([("free now", free)], width)
    return lines


def _flow(pairs: Sequence[tuple[str, str]], width: int) -> list[Line]:
    """Name-value pairs side by side, on as many lines as they need."""
    lines: list[Line] = [[]]
    for name, value in pairs:
        piece: Line = [(f"{name} ", "dim"), (one_line(value), "text")]
        if lines[-1] and width_of(lines[-1]) + 3 + width_of(piece) > width:
            lines.append([])
        if lines[-1]:
            lines[-1].append(("   ", "text"))
        lines[-1] += piece
    # A single value longer than the line goes on below.
    if len(pairs) == 1 and width_of(lines[0]) > width:
        name, value = pairs[0]
        rest = wrap(value, width - len(name) - 1, "text", 2)
        return [[(f"{name} ", "dim"), *rest[0]], *([(" " * (len(name) + 1), "dim"), *line] for line in rest[1:])]
    return lines
