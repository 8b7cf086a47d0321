"""What can be done with a model: the forms of convert and quantize, loading and removing.

Each function asks, then calls the engine through the app. Figures in the forms are predictions and carry `~`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args, get_type_hints

import msgspec
from lathe.engine.steps import ConvertStep, QuantizeStep, Step
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.screens.forms import Field, Form
from lathe.tui.views.models import card_of

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

OUTTYPES: tuple[str, ...] = get_args(get_type_hints(ConvertStep)["outtype"])
QUANTS: dict[str, float] = {
    "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.69, "Q5_K_S": 5.54, "Q4_K_M": 4.85, "Q4_K_S": 4.58, "IQ4_NL": 4.5,
    "IQ4_XS": 4.25, "Q3_K_L": 4.27, "Q3_K_M": 3.91, "Q3_K_S": 3.5, "Q2_K": 3.35, "F16": 16.0,
}  # fmt: skip
"""llama.cpp's mixes with their bits per weight on a large Llama: for predicted sizes only."""
_OUT_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
MAX_NAME = 120


def submit(app: LatheApp, step: Step, command: str) -> None:
    """Queue a job and say where to watch it."""
    app.do(
        lambda bench: bench.submit(step),
        lambda job: app.tell(f"{job.id} queued: {job.title} (7 shows it)"),
        command=command,
    )


def ask_convert(app: LatheApp, entry: ModelEntry) -> None:
    """Turn a checkpoint into GGUF."""
    if entry.format == "gguf":
        app.notify(f"{entry.name} is GGUF already: n quantizes it.", severity="warning")
        return

    def predicted(values: dict[str, str]) -> str:
        parameters, bits = card_of(entry).parameters, _OUT_BITS.get(values["outtype"])
        size = parameters * bits / 8 if parameters and bits else entry.bytes
        return f"writes ~{formats.long_size(size)}"

    form = Form(
        f"Convert {entry.name} to GGUF",
        (
            Field("outtype", "weights as", "auto", OUTTYPES, "auto keeps the checkpoint's own type"),
            Field("name", "name", f"{entry.name}-f16", hint="name of the result"),
        ),
        yes="Convert",
        intro="A job writes a new file beside the other models; the source is not touched.",
        watch=predicted,
    )

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            fields = {"model": entry.id, "outtype": values["outtype"], "name": values["name"] or None, "run": "convert"}
            step = msgspec.convert(fields, ConvertStep)
            submit(app, step, f"lathe convert {shlex.quote(entry.name)} --to gguf --outtype {step.outtype}")

    app.push_screen(form, take)


def ask_quantize(app: LatheApp, entry: ModelEntry) -> None:
    """Make a smaller GGUF of a GGUF."""
    if entry.format != "gguf":
        app.notify(f"{entry.name} is {entry.format}: convert it to GGUF first (t).", severity="warning")
        return
    parameters = card_of(entry).parameters
    base = entry.name.removesuffix("-f16").removesuffix("-bf16").removesuffix("-f32")

    def predicted(values: dict[str, str]) -> str:
        now = formats.long_size(entry.bytes)
        return f"writes ~{formats.long_size(parameters * QUANTS[values['type']] / 8)}, now {now}" if parameters else ""

    form = Form(
        f"Quantize {entry.name}",
        (
            Field("type", "type", "Q4_K_M", tuple(QUANTS), "Q4_K_M: a good start; Q8_0: nearly lossless"),
            Field("name", "name", "", hint=f"empty: {base}-TYPE"),
            Field("again", "source is quantized", "no", ("no", "yes"), "yes allows losing quality twice"),
        ),
        yes="Quantize",
        watch=predicted,
    )

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            kind, again = values["type"], values["again"] == "yes"
            name = values["name"] or f"{base}-{kind.lower()}"
            step = QuantizeStep(model=entry.id, type=kind, name=name, allow_requantize=again)
            words = ["lathe", "quantize", entry.name, "--type", kind, *(["--allow-requantize"] if again else [])]
            submit(app, step, shlex.join(words))

    app.push_screen(form, take)


def load(app: LatheApp, entry: ModelEntry, options: LoadOptions, force: bool) -> None:
    """Load a model and say how it went."""
    words = ["lathe", "models", "load", entry.name]
    words += ["--ctx", str(options.context)] if options.context else []
    words += ["--gpu-layers", str(options.gpu_layers)] if options.gpu_layers is not None else []
    words += ["--force"] if force else []
    app.tell(f"Loading {entry.name}...")
    app.do(
        lambda bench: bench.load(entry.id, options, force),
        lambda worker: app.tell(f"{worker.name} is ready{f' after {worker.info.load_s:.1f} s' if worker.info else ''}"),
        command=shlex.join(words),
        what=entry.name,
    )


def unload(app: LatheApp, entries: Sequence[ModelEntry]) -> None:
    """Let models leave memory."""

    def one(name: str) -> None:
        app.do(
            lambda bench: bench.unload(name),
            lambda _: app.tell(f"{name} left memory; l loads it again"),
            command=shlex.join(["lathe", "models", "unload", name]),
            what=name,
        )

    for entry in entries:
        if app.board.worker(entry.id) is not None:
            one(entry.name)


def remove(app: LatheApp, entries: Sequence[ModelEntry], files: bool) -> None:
    """Unload where needed, then forget or delete each model."""

    def one(entry: ModelEntry) -> None:
        foreign = files and entry.origin != "made"

        async def work() -> list[str]:
            bench = app.link.bench
            if app.board.worker(entry.id) is not None:
                await bench.unload(entry.id)
            return await bench.remove(entry.id, delete_files=files, force=foreign)

        words = ["lathe", "models", "rm", entry.name, *["--files"] * files, *["--foreign"] * foreign, "--yes"]
        app.do(
            lambda _bench: work(),
            lambda paths: app.tell(f"{entry.name}: {'deleted' if paths else 'forgotten, its file stays'}"),
            command=shlex.join(words),
            what=entry.name,
        )

    for entry in entries:
        one(entry)


def name_check(taken: set[str]) -> Callable[[str], str]:
    """A check for a model's new name."""

    def check(name: str) -> str:
        if not name.strip():
            return "type a name"
        if name in taken:
            return f"{name} is taken"
        if len(name) > MAX_NAME or any(not c.isprintable() or c in "/\\" for c in name):
            return f"no slash, and at most {MAX_NAME} characters"
        return ""

    return check
