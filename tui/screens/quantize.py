"""Quantize: the plan of a conversion or quantization with its exact size, the variants of a model with their quality.

The plan is asked of the engine a moment after each change. Invariant: nothing on this screen waits for an answer, and
what is drawn is always the forecast of what stands in the fields.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable, Sequence
from typing import ClassVar

from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import Job
from lathe.engine.states import Forecast
from lathe.engine.steps import BenchServedStep, BenchStep, ConvertStep, ImatrixStep, KldStep, PerplexityStep, Step
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.types import FILE_TYPES, TENSOR_TYPES
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens import quantize_forms as forms
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.model_work import name_check, submit
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.views import quantize as view
from lathe.tui.views.models import unknown_fit
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.fields import Fields, PickBox
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.jobpanel import JobPanel
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.plot import scatter
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget

DEBOUNCE_S = 0.15
_AS_RECIPE = "as the recipe"
_NAMED = "the one it names"


class Quantize(PlaceScreen):
    """Convert and quantize."""

    MODE = "quantize"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r,ctrl+s", "run", "run", id="quantize.run", tooltip="Start the job that makes what is planned"),
        Binding("m", "measure", "measure", id="quantize.measure",
                tooltip="Perplexity, and divergence from full precision, of the variants marked, else of this one"),
        Binding("t", "tune", "tune", id="quantize.tune", tooltip="Search for the best mix of types, with this model"),
        Binding("i", "imatrix", "imatrix", id="quantize.imatrix",
                tooltip="Collect importances from a text; the plan uses them when they are there"),
        Binding("b", "bench", "bench", show=False, id="quantize.bench", tooltip="Measure the variant's speed"),
        Binding("x", "cancel", "cancel", id="quantize.cancel", tooltip="Stop the job shown; its checkpoint stays"),
        Binding("enter", "use", "as source", show=False, id="quantize.use", tooltip="Plan from this variant"),
        Binding("space", "mark", "mark", show=False, id="quantize.mark", tooltip="Mark the variant, for measuring"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._forecast: Forecast | None = None
        self._problem = ""
        self._asked: tuple[Step, object] | None = None
        """The step and the catalogue that the forecast is of."""
        self._job: str | None = None
        self._imatrix_job: str | None = None
        self._offered: object = None

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, PickBox)

    def content(self) -> ComposeResult:
        with Panel(title="Plan", id="plan"):
            yield Fields(forms.FIELDS, picks=forms.PICKS)
            yield Canvas(self._plan, id="forecast")
        with Vertical(id="right"):
            with Panel(title="Variants", id="variants", classes="-bare"):
                yield Grid(view.COLUMNS, empty=self._nothing, markable=True)
            with Panel(title="Size and quality", id="plot", classes="-bare"):
                yield Canvas(self._plot)
        yield JobPanel(id="job")

    def home(self) -> Widget | None:
        return self.query_one(Fields).pick("source")

    def _nothing(self) -> str:
        return "Reading the catalogue..." if not self.board.attached else "No model to start from.\n2  imports one"

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        self._offer()
        self._ask()
        self._show_variants()
        job = view.shown_job(board.jobs, self._job, view.WORK)
        panel = self.query_one(JobPanel)
        panel.display = job is not None
        panel.show(job)
        self._take_imatrix(board.jobs)
        self.query_one("#plan", Panel).footnote(self.query_one(Fields).explain(self.focused) or self.parts_line())
        unknown = [entry for entry in view.family(self.source, board.models) if entry.id not in board.fits]
        if unknown and board.attached and board.lost is None:
            self._estimate(unknown)

    def _show_variants(self) -> None:
        grid, source = self.query_one(Grid), self.source
        members = view.family(source, self.board.models)
        grid.show(view.rows(members, self.board.fits, self.board.jobs, self._forecast, self.lathe.glyphs))
        self.after_filter()
        self.query_one("#plot Canvas", Canvas).redraw()

    def after_filter(self) -> None:
        grid = self.query_one(Grid)
        found = f"filter: {grid.filter_text}" if grid.filter_text else ""
        panel = self.query_one("#variants", Panel)
        panel.entitle("Variants", "* none is both smaller and closer", found)
        panel.footnote(f"{len(grid.marks)} marked" if grid.marks else "")

    def _plan(self, width: int, height: int) -> list[Line]:
        waiting = self._asked is not None
        return view.forecast_lines(self._forecast, self._problem, waiting, width, height, self.lathe.glyphs)

    def _plot(self, width: int, height: int) -> list[Line]:
        members = view.family(self.source, self.board.models)
        what, dots = view.dots(members, self.query_one(Grid).cursor)
        panel = self.query_one("#plot", Panel)
        if len(dots) < 2:
            panel.entitle("Size and quality")
            told = ("     and its divergence from the full-precision model", "dim")
            return [[], [("  m  measures the variant under the cursor: its perplexity,", "dim")], [told]]
        panel.entitle(what, "against size")
        show_y = view.closeness if what != view.RISE else lambda y: f"{y * 100:.2g}%"
        return scatter(dots, width, height, self.lathe.glyphs, show_x=formats.size, show_y=show_y)

    @work(exclusive=True, group="fits", exit_on_error=False)
    async def _estimate(self, entries: Sequence[ModelEntry]) -> None:
        """What each variant needs, one after the other."""
        for entry in entries:
            try:
                self.board.fits[entry.id] = await self.lathe.link.bench.estimate(entry.id, LoadOptions())
            except LatheError as error:
                self.board.fits[entry.id] = unknown_fit(str(error))

    # -- the plan ---------------------------------------------------------------------------------------------------
    @property
    def source(self) -> ModelEntry | None:
        """The model chosen."""
        return self.board.model(self.query_one(Fields)["source"])

    def _offer(self) -> None:
        """Offer what the catalogue has."""
        if self._offered is self.board.models or not self.board.models:
            return
        self._offered = self.board.models
        fields = self.query_one(Fields)
        entries = view.sources(self.board.models)
        source = fields.pick("source")
        first = not source.key
        source.offer([(entry.id, entry.name) for entry in entries], view.source_notes(entries))
        bases = view.checkpoints(self.board.models)
        fields.pick("base").offer([("", _NAMED), *((e.id, e.name) for e in bases)], view.source_notes(bases))
        if first:
            full = view.base_of(entries)
            source.choose(full.id if full else next((entry.id for entry in entries), ""))
            fields.pick("type").offer([(name, name) for name in FILE_TYPES], view.type_notes())
            fields.pick("type").choose("Q4_K_M")
            fields.pick("mode").offer([(name, name) for name in forms.MODES], forms.MODES)
            for key in ("output", "words"):
                fields.pick(key).offer([("", _AS_RECIPE), *((name, name) for name in TENSOR_TYPES)])
        self._adapt()

    def _adapt(self) -> None:
        """Show the fields that the source and its target need."""
        source, fields = self.source, self.query_one(Fields)
        fields.pick("make").offer(forms.targets(source))
        form = fields["make"]
        fields.reveal(forms.shown(form, fields["mode"], source))
        facts = f"{source.format}, {formats.long_size(source.bytes)}" if source else ""
        self.query_one("#plan", Panel).entitle(forms.title(form), source.name if source else "", facts)

    def step(self) -> forms.Making | None:
        """What stands in the fields; None where it is not in order, and `_problem` says why."""
        source, fields = self.source, self.query_one(Fields)
        self._problem = ""
        if source is None:
            return None
        if name := fields["name"]:
            self._problem = name_check({entry.name for entry in self.board.models})(name)
        self._problem = self._problem or fields.problem()
        if self._problem:
            return None
        try:
            return forms.step_of(fields["make"], source, fields.__getitem__)
        except ValueError as error:
            self._problem = str(error)
            return None

    def words(self) -> list[str]:
        """The command that does the same; empty where the fields are not in order."""
        step, source = self.step(), self.source
        if step is None or source is None:
            return []
        base = self.board.model(step.base) if isinstance(step, ConvertStep) and step.base else None
        return view.words_of(step, source.name, base.name if base else None)

    @on(Fields.Changed)
    def _field_changed(self, message: Fields.Changed) -> None:
        message.stop()
        if message.key in ("source", "make", "mode"):
            self._adapt()
        self._ask()
        self._show_variants()

    def _ask(self) -> None:
        """Ask what the step would make, where it is another one than before."""
        step = self.step()
        if step is None:
            self._asked, self._forecast = None, None
        elif self._asked != (step, self._offered) and self.board.attached and self.board.lost is None:
            self._asked = (step, self._offered)
            self._foresee(step)
        self.query_one("#forecast", Canvas).redraw()

    @work(exclusive=True, group="forecast", exit_on_error=False)
    async def _foresee(self, step: forms.Making) -> None:
        await asyncio.sleep(DEBOUNCE_S)
        try:
            self._forecast = await self.lathe.link.bench.forecast(step)
        except LatheError as error:
            self._forecast, self._problem = None, error.message
        self.query_one("#forecast", Canvas).redraw()
        self._show_variants()

    @on(PickBox.Asked)
    def _list_asked(self, message: PickBox.Asked) -> None:
        message.stop()
        box = message.box

        def take(shown: str | None) -> None:
            if shown is not None:
                box.take(shown)

        choices = [Choice(shown, shown, box.notes.get(shown, "")) for shown in box.choices]
        self.app.push_screen(Choose(box.label.capitalize(), choices, current=box.value), take)

    def on_descendant_focus(self) -> None:
        """Say what the field means."""
        self.query_one("#plan", Panel).footnote(self.query_one(Fields).explain(self.focused) or self.parts_line())

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("run", "measure", "imatrix", "bench", "cancel")

    def action_run(self) -> None:
        """Start the job."""
        step = self.step()
        if step is None:
            self.lathe.notify(self._problem or "There is no source.", severity="warning")
            return
        planned = self._forecast
        if planned is not None and planned.problem is not None:
            self.lathe.notify(f"{planned.problem.message}\n{planned.problem.hint}", severity="warning")
            return
        if planned is not None and planned.taken == "other":
            self.lathe.notify(f"{planned.output} exists: give the result a name.", severity="warning")
            return
        submit(self.lathe, step, shlex.join(self.words()), self._watch)

    def _watch(self, job: Job) -> None:
        self._job = job.id
        self.lathe.redraw()

    def action_measure(self) -> None:
        """Perplexity, and divergence from the base; of embedders, the distance of their vectors from the base's."""
        members = view.family(self.source, self.board.models)
        base, text = view.base_of(members), self.query_one(Fields)["text"] or None
        on = ["--text", text] if text else []
        for entry in self._chosen():
            beside = base if base is not None and base.id != entry.id and entry.format == "gguf" else None
            if not view.embeds(entry):
                words = ["lathe", "perplexity", entry.name, *on]
                submit(self.lathe, PerplexityStep(model=entry.id, text=text), shlex.join(words), self._watch)
            elif beside is None:
                told = f"{entry.name} is an embedder: its quantized GGUFs are measured beside the widest one."
                self.lathe.notify(told, severity="warning")
            if beside is not None:
                words = ["lathe", "kld", entry.name, "--base", beside.name, *on]
                step = KldStep(model=entry.id, base=beside.id, text=text)
                submit(self.lathe, step, shlex.join(words), self._watch)

    def _chosen(self) -> list[ModelEntry]:
        """The variants marked, else the one under the cursor: those that can be measured."""
        found = [self.board.model(key) for key in self.query_one(Grid).chosen()]
        entries = [entry for entry in found if entry is not None and entry.format in ("gguf", "onnx")]
        if not entries:
            self.lathe.notify("Only GGUF and ONNX variants are measured; r makes one.", severity="warning")
        return entries

    def action_bench(self) -> None:
        """Speed."""
        for entry in self._chosen():
            served = entry.format != "gguf"
            step = BenchServedStep(model=entry.id) if served else BenchStep(model=entry.id)
            submit(self.lathe, step, shlex.join(["lathe", "bench", entry.name, *["--served"] * served]), self._watch)

    def action_imatrix(self) -> None:
        """Collect importances of the source, and use them when they are there."""
        source = self.source
        if source is None or source.format != "gguf":
            self.lathe.notify("Importances are collected from a GGUF model.", severity="warning")
            return
        current = self.query_one(Fields)["text"]
        dialog = Ask(
            f"Importance matrix of {source.name}", "Calibration text", current,
            check=lambda text: "" if text.strip() else "type a path",
            hint="A text like the model's use; what is measured later should be measured on another.",
        )  # fmt: skip

        def take(text: str | None) -> None:
            if text:
                words = ["lathe", "imatrix", "collect", source.name, "--text", text]
                submit(self.lathe, ImatrixStep(model=source.id, text=text), shlex.join(words), self._await_imatrix)

        self.app.push_screen(dialog, take)

    def _await_imatrix(self, job: Job) -> None:
        self._imatrix_job = job.id
        self._watch(job)

    def _take_imatrix(self, jobs: Iterable[Job]) -> None:
        """Put the matrix that was collected into the plan."""
        job = next((job for job in jobs if job.id == self._imatrix_job), None)
        if job is not None and job.outcome is not None:
            self._imatrix_job = None
            made = next((artefact for artefact in job.outcome.artefacts if artefact.format == "imatrix"), None)
            if made is not None:
                self.query_one(Fields).put("imatrix", made.path)

    async def action_tune(self) -> None:
        """Open the tuner with this model."""
        source = self.source
        await self.lathe.action_go("tune")
        place = self.lathe.current_place
        if place is not None and source is not None:
            place.open_key(source.id)

    def action_cancel(self) -> None:
        """Stop the job shown."""
        job = self.query_one(JobPanel).job
        if job is not None and job.finished_at is None:
            self.lathe.do(
                lambda bench: bench.cancel(job.id),
                lambda j: self.lathe.tell(f"{j.id} {j.state}; R under Jobs resumes it"),
                command=f"lathe jobs cancel {job.id}",
                what=job.id,
            )

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_use()

    @on(Grid.Moved)
    def _moved(self) -> None:
        self.query_one("#plot Canvas", Canvas).redraw()

    def action_use(self) -> None:
        """Plan from the variant under the cursor."""
        key = self.query_one(Grid).cursor
        if key and key != "planned":
            self.open_key(key)

    def action_mark(self) -> None:
        """Mark the variant."""
        self.query_one(Grid).toggle_mark()
        self.after_filter()

    def open_key(self, key: str) -> None:
        self._offer()
        entry = self.board.model(key)
        if entry is not None and self.query_one(Fields).pick("source").choose(entry.id):
            self._adapt()
            self._ask()
            self._show_variants()

    def copy_text(self) -> tuple[str, str]:
        planned = self._forecast
        entry = self.board.model(self.query_one(Grid).cursor)
        return (entry.path, "Path") if entry else (planned.output, "Path") if planned else ("", "")

    def command(self) -> str:
        return shlex.join(self.words()) or self.place.command
