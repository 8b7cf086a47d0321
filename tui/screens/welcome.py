"""The first run: what was found on this machine, and four things to do first. Nothing needs a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lathe.engine.steps import ConvertStep, ScanStep
from lathe.tui import formats
from lathe.tui.screens.dialogs import Ask, Dialog
from lathe.tui.widgets.base import Panel, Words
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

CHOICES = (
    ("1", "Try the built-in demo model", "4 M parameters, ready in a moment, no download"),
    ("2", "Register models from a folder or USB disk", "in place, nothing is copied"),
    ("3", "Scan this machine for models", "HF cache, Ollama, LM Studio, the workspace"),
    ("4", "See what this machine can do", "processor, accelerators, libraries, what is missing"),
)


class Welcome(Dialog[None]):
    """Shown once, on an empty workspace."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"choose('{key}')", label, show=False, id=f"welcome.{key}", tooltip=label)
        for key, label, _ in CHOICES
    ]

    def __init__(self) -> None:
        super().__init__("Welcome: nothing to download, nothing leaves this machine")

    @property
    def lathe(self) -> LatheApp:
        """The app, with its type."""
        return cast("LatheApp", self.app)

    def body(self) -> ComposeResult:
        """Findings, choices, the same without a screen."""
        inks = self.look.inks
        text = Text()
        for name, value in self._found():
            text.append(f"{name:<9}", inks["dim"])
            text.append(f"{value}\n")
        yield Words(text)
        yield Words("\nWhat would you like to do first?\n")
        yield Grid((Column("", most=1), Column("", most=44), Column("", most=60, rank=1)), id="choices")
        yield Words(
            Text.assemble(
                ("\nThe same without a screen:  ", inks["dim"]),
                "lathe demo",
                ("   or   ", inks["dim"]),
                "lathe doctor && lathe models scan FOLDER",
            )
        )

    def on_mount(self) -> None:
        """List the choices."""
        self.query_one(Panel).add_class("-broad")
        grid = self.query_one(Grid)
        grid.show(Row(key, ((key, "key"), label, (note, "dim"))) for key, label, note in CHOICES)
        grid.styles.height = len(CHOICES)
        grid.focus()
        self.say_footnote("enter choose", "esc look around")

    def _found(self) -> list[tuple[str, str]]:
        snapshot = self.lathe.board.snapshot
        sample = snapshot.sample if snapshot else None
        if snapshot is None or sample is None:
            return []
        devices = [f"{d.name}, {formats.long_size(d.memory_total)}" for d in sample.devices]
        free = (sample.disk_total or 0) - (sample.disk_used or 0)
        network = "offline: no connection leaves this machine" if snapshot.engine.offline else "allowed by the settings"
        return [
            ("CPU", f"{sample.cores or formats.NONE} cores"),
            (
                "RAM",
                f"{formats.long_size(sample.memory_total)}, {formats.long_size(sample.memory_available)} available",
            ),
            ("GPU", "; ".join(devices) or "none that can be used: models run on the processor"),
            ("Disk", f"{formats.long_size(free)} free"),
            ("Network", network),
        ]

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_choose(message.key or "")

    def action_choose(self, key: str) -> None:
        """Do what was chosen."""
        app = self.lathe
        self.dismiss(None)
        if key == "1":
            try_demo(app)
        elif key == "2":
            ask_folder(app)
        elif key == "3":
            submit_scan(app, ())
        elif key == "4":
            app.run_worker(app.action_go("doctor"), exit_on_error=False)


def try_demo(app: LatheApp) -> None:
    """Make the embedded checkpoint usable, load it and open the Playground."""
    source = next((entry for entry in app.board.models if entry.origin == "embedded"), None)
    if source is None:
        app.notify("The embedded model is not registered here; scan finds it.", severity="warning")
        return
    made = next((e for e in app.board.models if e.parent == source.id and e.format == "gguf"), None)

    async def work() -> None:
        bench = app.link.bench
        name = made.name if made else f"{source.name}-f16"
        if made is None:
            app.tell(f"Converting {source.name} to GGUF...")
            job = await bench.submit(ConvertStep(model=source.id, outtype="f16", name=name))
            ended = await bench.wait(job.id)
            if ended.state != "done":
                return
            await app.link.refresh_models()
        await app.action_go("chat")
        place = app.current_place
        if place is not None:
            place.open_key(name)

    app.do(lambda _bench: work(), command="lathe demo", what=source.name)


def ask_folder(app: LatheApp) -> None:
    """Ask for a folder and scan it."""
    dialog = Ask(
        "Register models from a folder",
        "Folder or file; several separated by blanks",
        "",
        check=lambda text: "" if text.strip() else "type a path",
        hint="GGUF, safetensors, ONNX and legacy GGML are found in it and linked in place.",
    )

    def take(text: str | None) -> None:
        if text:
            submit_scan(app, tuple(text.split()))

    app.push_screen(dialog, take)


def submit_scan(app: LatheApp, roots: tuple[str, ...]) -> None:
    """Queue a scan and say so."""
    app.do(
        lambda bench: bench.submit(ScanStep(roots=roots)),
        lambda job: app.tell(f"{job.id} queued: {job.title}. Found models appear under Models (2)."),
        command=" ".join(["lathe models scan", *roots]),
    )
