"""Making smaller models as lines and rows: what a plan would write, and the variants of one model side by side. Pure.

Quality is the mean divergence from the full-precision model where it was measured, else the rise in perplexity.
Invariant: what was not measured is a dash and never ranked; what is predicted is dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lathe.engine.errors import UsageError
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.sizes import bytes_of
from lathe.engine.states import Fit, Forecast
from lathe.engine.steps import (
    ConvertStep,
    ImatrixStep,
    KldStep,
    OnnxQuantizeStep,
    PerplexityStep,
    QuantizeStep,
    TuneStep,
)
from lathe.quantize.types import FILE_TYPES
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from lathe.tui.views.models import card_of
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, stacked, wrap
from lathe.tui.widgets.plot import Dot

COLUMNS = (
    Column("", least=1, most=1),
    Column("variant", least=14, most=40, flex=True, sort="name"),
    Column("type", least=6, most=9, sort="type"),
    Column("bits", ">", rank=3, least=4, sort="bits"),
    Column("size", ">", least=5, sort="size"),
    Column("needs", ">", rank=6, least=6),
    Column("tok/s", ">", rank=5, least=5, sort="speed"),
    Column("ppl", ">", rank=1, least=5, sort="ppl"),
    Column("+%", ">", rank=4, least=5, sort="rise"),
    Column("KLD", ">", least=7, sort="kld"),
    Column("same top", ">", rank=7, least=6),
    Column("state", rank=2, least=8, most=14),
)
FULL_BITS = 15.9
"""Bits per weight from which a file counts as full precision."""
RISE = "rise of perplexity"
WORK = (ConvertStep, QuantizeStep, OnnxQuantizeStep, ImatrixStep, PerplexityStep, KldStep)
"""Steps whose progress belongs to this place."""
_PARTS = ("part1", "part2", "part3")


def sources(models: Sequence[ModelEntry]) -> list[ModelEntry]:
    """What can be converted or quantized, by name; adapters where they can still become something else."""
    found = [entry for entry in models if entry.format in ("gguf", "safetensors", "ggml", "onnx") and not entry.missing]
    return [
        entry
        for entry in found
        if (entry.format == "safetensors" if card_of(entry).adapter else card_of(entry).kind == "model")
    ]


def checkpoints(models: Sequence[ModelEntry]) -> list[ModelEntry]:
    """What an adapter can have been trained on."""
    return [entry for entry in sources(models) if entry.format == "safetensors" and not card_of(entry).adapter]


def source_notes(models: Sequence[ModelEntry]) -> dict[str, str]:
    """A few words about each, for a list."""
    return {
        entry.name: f"{'adapter' if card_of(entry).adapter else entry.format}  {formats.long_size(entry.bytes)}"
        for entry in models
    }


def type_notes() -> dict[str, str]:
    """A few words about each recipe."""
    needs = {"needed": "  needs an imatrix"}
    return {
        kind.name: f"~{kind.bits:g} bits  {kind.advice}{needs.get(kind.importance, '')}" for kind in FILE_TYPES.values()
    }


def family(source: ModelEntry | None, models: Sequence[ModelEntry]) -> list[ModelEntry]:
    """The source's oldest ancestor and all that was made of it, largest first."""
    if source is None:
        return []
    known = {entry.id: entry for entry in models}
    root, seen = source, {source.id}
    while root.parent in known and root.parent not in seen:
        root = known[root.parent]
        seen.add(root.id)
    kin = {root.id}
    while more := {entry.id for entry in models if entry.parent in kin} - kin:
        kin |= more
    return sorted((known[id_] for id_ in kin if id_ in known), key=lambda entry: (-entry.bytes, entry.name))


def base_of(members: Sequence[ModelEntry]) -> ModelEntry | None:
    """The full-precision GGUF that others are compared with: the widest there is."""
    full = [entry for entry in members if entry.format == "gguf" and (card_of(entry).bits_per_weight or 0) >= FULL_BITS]
    return max(full, key=lambda entry: entry.bytes, default=None)


def figure(entry: ModelEntry, name: str) -> float | None:
    """A measured number."""
    value = entry.measured.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def rise(entry: ModelEntry, base: ModelEntry | None) -> float | None:
    """Perplexity above the base's, as a fraction; None where it was not measured on the same text in the same way."""
    own, other = figure(entry, "perplexity"), figure(base, "perplexity") if base else None
    return own / other - 1 if own and other and not _apart(entry, base) else None


def _apart(entry: ModelEntry, base: ModelEntry | None) -> str:
    """Why the perplexities of two models do not compare, in two words; empty: as far as is known they do."""
    if base is None or figure(entry, "perplexity") is None or figure(base, "perplexity") is None:
        return ""
    for name, word in (("context", "other context"), ("chunks", "other text"), ("text_sha256", "other text")):
        own, other = entry.measured.get(name), base.measured.get(name)
        if own is not None and other is not None and own != other:
            return word
    return ""


def divergence(entry: ModelEntry, base: ModelEntry | None) -> float | None:
    """Mean divergence from the base, of embedders the mean distance of vectors; the base has none from itself."""
    return 0.0 if base is not None and entry.id == base.id else figure(entry, divergence_name(entry))


def embeds(entry: ModelEntry) -> bool:
    """Whether vectors are what a model is for."""
    return card_of(entry).pooling not in (None, "none")


def divergence_name(entry: ModelEntry) -> str:
    """What its distance from a base is called among its figures."""
    return "mean_distance" if embeds(entry) else "mean_kld"


def best(members: Sequence[ModelEntry], base: ModelEntry | None) -> frozenset[str]:
    """Ids of those that no other is both smaller and closer than; of those measured alone."""
    judge = divergence if sum(divergence(entry, base) is not None for entry in members) > 1 else rise
    known = [(entry.bytes, loss, entry.id) for entry in members if (loss := judge(entry, base)) is not None]
    kept: list[tuple[int, float, str]] = []
    for one in sorted(known):
        if not kept or one[1] < kept[-1][1]:
            kept.append(one)
    return frozenset(id_ for *_, id_ in kept) if len(known) > 1 else frozenset()


def rows(
    members: Sequence[ModelEntry],
    fits: Mapping[str, Fit],
    jobs: Sequence[Job],
    planned: Forecast | None,
    glyphs: Glyphs,
) -> list[Row]:
    """The variants, and the one that is planned."""
    base = base_of(members)
    stars = best(members, base)
    found = [_row(entry, base, entry.id in stars, fits.get(entry.id), _busy(entry, jobs), glyphs) for entry in members]
    if planned is not None and planned.bytes is not None and not planned.taken:
        found.append(_planned(planned))
        found.sort(key=lambda row: -(row.fields["size"] or 0))  # type: ignore[operator]
    return found


def _row(
    entry: ModelEntry, base: ModelEntry | None, star: bool, fit: Fit | None, busy: str, glyphs: Glyphs
) -> Row:  # fmt: skip
    card = card_of(entry)
    perplexity, loss, rising = figure(entry, "perplexity"), divergence(entry, base), rise(entry, base)
    noise = (figure(entry, "perplexity_error") or 0.0) / perplexity if perplexity else 0.0
    # A difference inside the noise is no difference.
    rise_ink = "dim" if rising is not None and abs(rising) < noise else "text"
    speed, top = figure(entry, "tokens_per_s"), figure(entry, "same_nearest" if embeds(entry) else "same_top_p")
    kind = card.file_type or formats.NONE
    state = (busy, "accent") if busy else ("base" if base is not None and entry.id == base.id else "", "dim")
    if not state[0] and (apart := _apart(entry, base)):
        state = (apart, "warn")
    cells: tuple[Cell, ...] = (
        ("*" if star else " ", "good"),
        (entry.name, "value" if star else "text"),
        (kind, "text"),
        (f"{card.bits_per_weight:.2f}" if card.bits_per_weight else formats.NONE, "dim"),
        formats.size(entry.bytes),
        (f"~{formats.size(fit.footprint.total)}" if fit and fit.verdict != "unknown" else formats.NONE, "dim"),
        formats.rate(speed),
        f"{perplexity:.3f}" if perplexity else formats.NONE,
        (f"{rising * 100:+.2f}" if rising is not None else formats.NONE, rise_ink),
        (closeness(loss), "text"),
        (f"{top:.2%}" if top is not None else formats.NONE, "dim"),
        state,
    )
    fields: dict[str, str | float | None] = {
        "name": entry.name, "type": kind, "bits": card.bits_per_weight, "size": float(entry.bytes), "speed": speed,
        "ppl": perplexity, "rise": rising, "kld": loss, "format": entry.format, "best": "yes" if star else "no",
    }  # fmt: skip
    return Row(entry.id, cells, fields)


def _planned(planned: Forecast) -> Row:
    name = planned.output.rsplit("/", 1)[-1].removesuffix(".gguf")
    fit = planned.fit
    needs = f"~{formats.size(fit.footprint.total)}" if fit and fit.verdict != "unknown" else formats.NONE
    bits = f"{planned.bits_per_weight:.2f}" if planned.bits_per_weight else formats.NONE
    tilde = "" if planned.exact else "~"
    cells: tuple[Cell, ...] = tuple(
        (text, "dim")
        for text in ("", name, next(iter(planned.mix), formats.NONE), bits, f"{tilde}{formats.size(planned.bytes)}",
                     needs, *(formats.NONE,) * 5, "planned")
    )  # fmt: skip
    return Row("planned", cells, {"name": name, "size": float(planned.bytes or 0), "bits": planned.bits_per_weight})


def closeness(loss: float | None) -> str:
    """A divergence with three significant digits: `0.0132`, `9.1e-05`."""
    if loss is None:
        return formats.NONE
    return "0" if loss == 0 else f"{loss:.3g}"


def _busy(entry: ModelEntry, jobs: Sequence[Job]) -> str:
    """What is being measured of a model."""
    for job in jobs:
        measures = isinstance(job.step, PerplexityStep | KldStep) and job.step.model in (entry.id, entry.name)
        if measures and job.state not in FINAL:
            return "measuring" if job.state == "running" else "waits"
    return ""


def dots(members: Sequence[ModelEntry], chosen: str | None) -> tuple[str, list[Dot]]:
    """(what y is, points of the plot); only what was measured."""
    base = base_of(members)
    stars = best(members, base)
    by_loss = sum(divergence(entry, base) is not None for entry in members) > 1
    found = []
    for entry in members:
        y = divergence(entry, base) if by_loss else rise(entry, base)
        if y is not None:
            name = card_of(entry).file_type or entry.name
            found.append(Dot(entry.bytes, max(0.0, y), name, entry.id in stars, entry.id == chosen))
    loss = "distance of vectors" if any(embeds(entry) for entry in members) else "KLD"
    return loss if by_loss else RISE, found


def shown_job(jobs: Sequence[Job], wanted: str | None, kinds: tuple[type, ...]) -> Job | None:
    """The job to watch: one that runs, else one that waits, else the last one begun here."""
    ours = [job for job in jobs if isinstance(job.step, kinds)]
    for state in ("running", "queued"):
        found = next((job for job in reversed(ours) if job.state == state), None)
        if found is not None:
            return found
    return next((job for job in jobs if job.id == wanted), None)


def tune_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Finished searches, newest first."""
    return [job for job in jobs if isinstance(job.step, TuneStep) and job.state == "done" and job.outcome]


# -- the plan ---------------------------------------------------------------------------------------------------------
def forecast_lines(
    found: Forecast | None, problem: str, waiting: bool, width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    """What would be written, whether it fits, what is wrong; the most important first."""
    if problem:
        return wrap(problem, width, "bad", min(2, height))
    if found is None:
        return [[("Planning...", "dim")]] if waiting else []
    lines: list[Line] = []
    if found.bytes is not None:
        lines.append(_writes(found))
    if found.problem is not None:
        lines += wrap(f"{glyphs.bad} {found.problem.message}", width, "bad", 2)
        lines += wrap(f"{glyphs.arrow} {found.problem.hint}", width, "text", 2) if found.problem.hint else []
    if found.fit is not None and found.fit.verdict != "unknown":
        lines.append(_fits(found.fit))
    lines.append(_output(found, width, glyphs))
    if found.mix and height - len(lines) >= 2:
        lines += _mix(found.mix, width, glyphs)
    if found.free is not None and found.bytes is not None and height > len(lines):
        ink = "bad" if found.free < found.bytes * 1.1 else "text"
        lines.append([("disk   ", "dim"), (f"{formats.long_size(found.free)} free", ink)])
    for warning in found.warnings[: max(0, height - len(lines))]:
        lines += wrap(f"{glyphs.warn} {warning}", width, "warn", 1)
    return lines[:height]


def _writes(found: Forecast) -> Line:
    tilde = "" if found.exact else "~"
    size = found.bytes or 0
    bits = f"   {found.bits_per_weight:.2f} bits/weight" if found.bits_per_weight else ""
    share = f"   {formats.percent(size / found.source_bytes)} of the source" if found.source_bytes else ""
    exact = f"   {size:,} B" if found.exact else ""
    return [("writes ", "dim"), (f"{tilde}{formats.long_size(size)}", "value"), (bits + share, "text"), (exact, "dim")]


def _fits(fit: Fit) -> Line:
    words = {"fits": ("fits", "good"), "tight": ("tight", "warn"), "partial": ("in part", "warn"), "no": ("no", "bad")}
    word, ink = words.get(fit.verdict, (fit.verdict, "dim"))
    context = f" at context {formats.tokens(fit.options.context)}" if fit.options.context else ""
    return [("needs  ", "dim"), (f"~{formats.long_size(fit.footprint.total)}{context}: ", "text"), (word, ink)]


def _output(found: Forecast, width: int, glyphs: Glyphs) -> Line:
    name = one_line(found.output.rsplit("/", 1)[-1], max(8, width - 32))
    if found.taken == "same":
        return [("file   ", "dim"), (name, "text"), ("  made before: it is kept", "good")]
    if found.taken == "other":
        return [("file   ", "dim"), (name, "text"), (f"  {glyphs.warn} exists: another name", "bad")]
    return [("file   ", "dim"), (name, "text"), ("  new", "dim")]


def _mix(mix: Mapping[str, int], width: int, glyphs: Glyphs) -> list[Line]:
    total = sum(mix.values()) or 1
    ranked = sorted(mix.items(), key=lambda item: -item[1])[: len(_PARTS)]
    legend: Line = [("types  ", "dim")]
    for (name, size), ink in zip(ranked, _PARTS, strict=False):
        legend += [(f"{one_line(name, 12)} ", ink), (f"{formats.percent(size / total)}  ", "text")]
    parts = [(size / total, ink) for (_, size), ink in zip(ranked, _PARTS, strict=False)]
    return [legend, stacked(parts, width, glyphs)]


# -- command lines ----------------------------------------------------------------------------------------------------
def words_of(step: ConvertStep | QuantizeStep | OnnxQuantizeStep, name: str, base: str | None = None) -> list[str]:
    """The command that does the same; `name` is the source's, `base` that of an adapter's checkpoint."""
    match step:
        case ConvertStep():
            words = _convert_words(step, name, base)
        case OnnxQuantizeStep():
            words = _onnx_words(step, name)
        case _:
            words = ["lathe", "quantize", name, "--type", step.type]
            words += ["--imatrix", step.imatrix] if step.imatrix else []
            words += [part for item in step.tensor_types.items() for part in ("--tensor-type", "=".join(item))]
            words += ["--output-tensor-type", step.output_tensor_type] if step.output_tensor_type else []
            words += ["--token-embedding-type", step.token_embedding_type] if step.token_embedding_type else []
            words += [part for layer in step.prune_layers for part in ("--prune-layer", str(layer))]
            words += ["--pure"] * step.pure + ["--keep-split"] * step.keep_split
            words += ["--allow-requantize"] * step.allow_requantize
    return words + (["--name", step.name] if step.name else [])


def _convert_words(step: ConvertStep, name: str, base: str | None) -> list[str]:
    defaults = ConvertStep(model="")
    words = ["lathe", "convert", name, "--to", step.to, "--outtype", step.outtype]
    words += ["--base", base or step.base] if step.base else []
    words += ["--split-max-bytes", str(step.split_max_bytes)] if step.split_max_bytes else []
    words += [] if step.parity else ["--no-parity"]
    words += ["--task", step.task] if step.task != defaults.task else []
    words += ["--opset", str(step.opset)] if step.opset else []
    if step.legacy_context != defaults.legacy_context:
        words += ["--legacy-context", str(step.legacy_context)]
    if step.legacy_epsilon != defaults.legacy_epsilon:
        words += ["--legacy-epsilon", f"{step.legacy_epsilon:g}"]
    return words


def _onnx_words(step: OnnxQuantizeStep, name: str) -> list[str]:
    defaults = OnnxQuantizeStep(model="")
    words = ["lathe", "quantize", name, "--type", step.mode]
    words += ["--text", step.text] if step.text else []
    words += [] if step.per_channel else ["--per-tensor"]
    words += ["--reduce-range"] * step.reduce_range + ["--asymmetric"] * (not step.symmetric)
    for flag, value, usual in (
        ("--block-size", step.block_size, defaults.block_size),
        ("--calibration", step.calibration, defaults.calibration),
        ("--samples", step.samples, defaults.samples),
        ("--sample-tokens", step.sample_tokens, defaults.sample_tokens),
    ):
        words += [flag, str(value)] if value != usual else []
    words += [part for operator in step.operators for part in ("--op", operator)]
    return words + [part for pattern in step.exclude for part in ("--exclude", pattern)]


# -- what stands in fields --------------------------------------------------------------------------------------------
def overrides(text: str) -> dict[str, str]:
    """`ffn_down=q6_K, attn_v=q5_K` as tensor types.

    Raises:
        ValueError: a part that is no `REGEX=TYPE`."""
    found: dict[str, str] = {}
    for part in listed(text):
        pattern, equals, kind = part.rpartition("=")
        if not equals or not pattern or not kind:
            raise ValueError(f"{one_line(part, 40)!r} is no REGEX=TYPE")
        found[pattern.strip()] = kind.strip()
    return found


def listed(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def layers(text: str) -> tuple[int, ...]:
    """`12, 13` as numbers.

    Raises:
        ValueError: a part that is none."""
    wrong = next((part for part in listed(text) if not (part.isascii() and part.isdigit())), None)
    if wrong is not None:
        raise ValueError(f"{one_line(wrong, 40)!r} is no layer's number")
    return tuple(int(part) for part in listed(text))


def layers_check(text: str) -> str:
    """What is wrong with a list of layers; empty: nothing."""
    try:
        layers(text)
    except ValueError as error:
        return str(error)
    return ""


def size_check(text: str) -> str:
    """What is wrong with a size that may be left out; empty: nothing."""
    try:
        bytes_of(text or "1")
    except UsageError as error:
        return error.message
    return ""
