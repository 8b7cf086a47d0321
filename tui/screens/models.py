"""Models: the catalogue as a tree, one model's card, and what can be done with models."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import ClassVar

from lathe.engine.errors import LatheError
from lathe.engine.steps import BenchStep, PerplexityStep, Step, VerifyStep
from lathe.engine.workbench import ModelDetails
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.model_work import load, name_check, remove, submit, unload
from lathe.tui.views import models as view
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

StepMaker = Callable[[ModelEntry], Step]


class Models(PlaceScreen):
    """The catalogue."""

    MODE = "models"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "details", "card", id="models.details", tooltip="The whole card of the model"),
        Binding("l,L", "load", "load", id="models.load", tooltip="Bring the model into memory, after an estimate"),
        Binding("u,U", "unload", "unload", id="models.unload", tooltip="Let the model leave memory"),
        Binding("c", "chat", "chat", id="models.chat", tooltip="Talk to the model in the Playground"),
        Binding("i", "scan", "import", id="models.import", tooltip="Register models from a folder, in place"),
        Binding("n", "quantize", "quantize", id="models.quantize",
                tooltip="Plan a conversion or quantization of the model"),
        Binding("t", "tune", "tune", id="models.tune", tooltip="Search for the best mix of types for the model"),
        Binding("b", "bench", "bench", id="models.bench", tooltip="Measure prompt and generation speed"),
        Binding(
            "p",
            "perplexity",
            "perplexity",
            show=False,
            id="models.perplexity",
            tooltip="Measure perplexity on the held-out text",
        ),
        Binding("v,V", "verify", "verify", show=False, id="models.verify", tooltip="Hash the file again and compare"),
        Binding("a", "aliases", "aliases", id="models.aliases",
                tooltip="Other names for models, and models of other servers: make, move, remove"),
        Binding("e", "rename", "rename", show=False, id="models.rename", tooltip="Give the model another name"),
        Binding(
            "D", "delete", "delete", id="models.delete", tooltip="Forget the model, or delete its file; asks first"
        ),
        Binding("space", "mark", "mark", show=False, id="models.mark", tooltip="Mark, for actions on several models"),
        Binding(
            "A", "mark_all", "mark all", show=False, id="models.mark_all", tooltip="Mark every model shown, or none"
        ),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._details: ModelDetails | None = None
        self._seen: object = None
        self._flat = False

    def content(self) -> ComposeResult:
        with Panel(title="Models", id="catalogue", classes="-bare"):
            yield Grid(view.COLUMNS, empty=self._nothing, markable=True)
        with Panel(id="card"):
            yield _Card(self._card)

    def _nothing(self) -> str:
        if not self.board.attached:
            return "Reading the catalogue..."
        return "No models yet.\ni  registers models from a folder, in place\n:scan  looks in the usual places"

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        workers = {worker.model_id: worker for worker in board.snapshot.workers} if board.snapshot else {}
        self.query_one(Grid).show(view.rows(board.models, workers, board.fits, self.lathe.glyphs, flat=self._flat))
        self.after_filter()
        self._show_card()
        if board.attached and board.lost is None and any(entry.id not in board.fits for entry in board.models):
            self._estimate_all()
        # The catalogue or a worker changed: what the card shows may be old.
        seen = (board.models, board.aliases, tuple((w.model_id, w.phase) for w in workers.values()))
        if seen != self._seen:
            self._seen = seen
            self._look(self.query_one(Grid).cursor)

    def after_filter(self) -> None:
        grid, panel = self.query_one(Grid), self.query_one("#catalogue", Panel)
        total = sum(entry.bytes for entry in self.board.models)
        found = f"filter: {grid.filter_text}" if grid.filter_text else ""
        panel.entitle("Models", str(grid.total), formats.long_size(total), found)
        panel.footnote(f"{len(grid.marks)} marked" if grid.marks else "", f"{len(grid.rows)} of {grid.total}")
        flat = bool(grid.filter_text or grid.sort_by)
        if flat != self._flat:
            self._flat = flat
            self.show(self.board)

    def _card(self, width: int, height: int) -> list[Line]:
        entry = self.entry
        if entry is None:
            return []
        details = self._details if self._details is not None and self._details.entry.id == entry.id else None
        names = {e.id: e.name for e in self.board.models}
        fit, aliases = self.board.fits.get(entry.id), self.board.aliases_of(entry)
        return view.card_lines(entry, details, fit, names, width, height, self.lathe.glyphs, aliases=aliases)

    @property
    def entry(self) -> ModelEntry | None:
        """The model under the cursor."""
        return self.board.model(self.query_one(Grid).cursor)

    @on(Grid.Moved)
    def _moved(self, message: Grid.Moved) -> None:
        self._show_card()
        self._look(message.key)

    def _show_card(self) -> None:
        entry = self.entry
        self.query_one("#card", Panel).entitle(entry.name if entry else "")
        self.query_one(_Card).redraw()

    @work(exclusive=True, group="details", exit_on_error=False)
    async def _look(self, key: str | None) -> None:
        """Read the card of the model under the cursor."""
        if key is None:
            return
        try:
            self._details = await self.lathe.link.bench.model(key)
        except LatheError:
            self._details = None
        self.query_one(_Card).redraw()

    @work(exclusive=True, group="estimates", exit_on_error=False)
    async def _estimate_all(self) -> None:
        """Fill the `fits` column, one model after the other."""
        for entry in self.board.models:
            if entry.id in self.board.fits:
                continue
            try:
                self.board.fits[entry.id] = await self.lathe.link.bench.estimate(entry.id, LoadOptions())
            except LatheError as error:
                self.board.fits[entry.id] = view.unknown_fit(str(error))
        if self.is_current:
            self.redraw()

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("load", "unload", "scan", "bench", "perplexity", "verify", "rename", "delete")

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_details()

    def action_details(self) -> None:
        """The whole card."""
        entry = self.entry
        if entry is not None:
            from lathe.tui.screens.card import CardView

            self.app.push_screen(CardView(entry, self._details, self.board))

    def action_load(self) -> None:
        """Estimate, then load."""
        entry = self.entry
        if entry is None:
            return
        if entry.format == "safetensors":
            self.app.notify(f"{entry.name} is a checkpoint: n plans its conversion to a model that can be loaded.")
            return
        from lathe.tui.screens.load import LoadDialog

        def take(chosen: tuple[LoadOptions, bool] | None) -> None:
            if chosen is not None:
                load(self.lathe, entry, *chosen)

        self.app.push_screen(LoadDialog(entry), take)

    def action_unload(self) -> None:
        """Let the chosen models leave memory."""
        unload(self.lathe, self._chosen())

    async def action_chat(self) -> None:
        """Open the Playground with this model."""
        await self._go_with("chat")

    def action_scan(self) -> None:
        """Register models from a folder."""
        from lathe.tui.screens.welcome import ask_folder

        ask_folder(self.lathe)

    async def action_quantize(self) -> None:
        """Plan with this model."""
        await self._go_with("quantize")

    async def action_tune(self) -> None:
        """Search with this model."""
        await self._go_with("tune")

    async def _go_with(self, mode: str) -> None:
        """Open a place with the model under the cursor."""
        entry = self.entry
        if entry is not None:
            await self.lathe.action_go(mode)
            place = self.lathe.current_place
            if place is not None:
                place.open_key(entry.id)

    def action_bench(self) -> None:
        """Measure speed."""
        self._submit_each(lambda e: BenchStep(model=e.id), "bench")

    def action_perplexity(self) -> None:
        """Measure perplexity."""
        self._submit_each(lambda e: PerplexityStep(model=e.id), "perplexity")

    def action_verify(self) -> None:
        """Hash again."""
        self._submit_each(lambda e: VerifyStep(model=e.id), "models verify")

    def _submit_each(self, step: StepMaker, verb: str) -> None:
        for entry in self._chosen():
            submit(self.lathe, step(entry), f"lathe {verb} {shlex.quote(entry.name)}")

    def action_rename(self) -> None:
        """Another name."""
        entry = self.entry
        if entry is None:
            return

        def take(name: str | None) -> None:
            if name and name != entry.name:
                self.lathe.do(
                    lambda bench: bench.rename(entry.id, name),
                    lambda e: self.lathe.tell(f"{entry.name} is {e.name} now"),
                    command=shlex.join(["lathe", "models", "rename", entry.name, name]),
                    what=entry.name,
                )

        check = name_check({e.name for e in self.board.models if e.id != entry.id})
        self.app.push_screen(Ask(f"Rename {entry.name}", "New name", entry.name, check=check), take)

    def action_aliases(self) -> None:
        """Other names, also for models of other servers."""
        from lathe.tui.screens.aliases import Aliases

        entry = self.entry
        self.app.push_screen(Aliases(entry.name if entry is not None and entry.format != "remote" else ""))

    def action_delete(self) -> None:
        """Forget, or delete the file: dialog, and a typed phrase where it cannot be undone."""
        chosen = self._chosen()
        if not chosen:
            return
        from lathe.tui.screens.delete import DeleteDialog

        def take(files: bool | None) -> None:
            if files is not None:
                remove(self.lathe, chosen, files)
                self.query_one(Grid).marks.clear()

        self.app.push_screen(DeleteDialog(chosen, self.board), take)

    def action_mark(self) -> None:
        """Mark the row."""
        self.query_one(Grid).toggle_mark()
        self.after_filter()

    def action_mark_all(self) -> None:
        """Mark all rows shown."""
        self.query_one(Grid).mark_all()
        self.after_filter()

    def _chosen(self) -> list[ModelEntry]:
        entries = (self.board.model(key) for key in self.query_one(Grid).chosen())
        return [entry for entry in entries if entry is not None]

    def open_key(self, key: str) -> None:
        entry = self.board.model(key)
        self.query_one(Grid).select(entry.id if entry else key)

    def copy_text(self) -> tuple[str, str]:
        entry = self.entry
        return (entry.path, "Path") if entry else ("", "")

    def command(self) -> str:
        entry = self.entry
        return f"lathe models show {shlex.quote(entry.name)}" if entry else self.place.command


class _Card(Canvas):
    """The card in its panel."""

    DEFAULT_CSS = "_Card { height: 1fr; }"
