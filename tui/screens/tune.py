"""Tune: wishes for a file, the frontier of size and divergence that a search found, which tensors matter, how to run.

Reads the JSON document of a finished tune job. Invariant: "make this one" makes the very point under the cursor, from
what was measured, without another search.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import msgspec
from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import Job
from lathe.engine.steps import QuantizeStep, TuneStep
from lathe.engine.tune.frontier import NOUNS, UNITS, Measure, Point, Wish, kinds_of, telling_kind
from lathe.engine.tune.frontier_file import FrontierFile
from lathe.engine.tune.halving import Run
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.model_work import submit
from lathe.tui.screens.reading import Choice, Choose, Facts
from lathe.tui.text import line as one_line
from lathe.tui.views import quantize as plans
from lathe.tui.views import tune as view
from lathe.tui.views.models import card_of
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.fields import Field, Fields, PickBox, number
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.jobpanel import JobPanel
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.plot import scatter
from lathe.tui.widgets.sheet import Sheet
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget

_SPEED = 1e9
_CLOSE: dict[Measure, str] = {"kld": "max_kld", "distance": "max_distance"}
"""The field and the step's wish for closeness."""
_VIEWS = ("-table", "-plot", "-map", "-ways")
"""What fills the lower half of a narrow terminal; wide ones show all."""
FIELDS = (
    Field("source", "model", hint="a full-precision GGUF; enter lists them"),
    Field("text", "text", hint="path of a calibration text, like the model's use"),
    Field("max_size", "max size", hint="4GB, 2.5GiB, bytes, or as large as a type: Q4_K_M"),
    Field("max_kld", "max KLD", hint="mean divergence, such as 0.02", check=number(1e-9, 100, optional=True)),
    Field(
        "max_distance",
        "max dist.",
        hint="mean distance of vectors, such as 0.001",
        check=number(1e-12, 2, optional=True),
    ),
    Field(
        "min_speed",
        "min tok/s",
        hint="generated or read, here",
        check=number(1e-3, _SPEED, optional=True),
    ),
    Field("minutes", "minutes", "10", hint="after this nothing optional is begun", check=number(0.01, 10_000)),
    Field("name", "name", hint="of the file made; empty: the model's with MIX"),
    Field("found", "results", hint="finished searches; enter lists them"),
)


class Tune(PlaceScreen):
    """The tuner."""

    MODE = "tune"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r,ctrl+s", "run", "search", id="tune.run", tooltip="Start the search; wishes name the file it makes"),
        Binding("m", "make", "make this one", id="tune.make", tooltip="Make the file of the point under the cursor"),
        Binding("f", "frontier", "frontier only", id="tune.frontier", tooltip="Hide what another point beats, or show"),
        Binding("c", "kind", "type", id="tune.kind", tooltip="The map's next tensor type"),
        Binding("v", "types", "types", id="tune.types", tooltip="The map: what each tensor costs, or the type it gets"),
        Binding(
            "w", "view", "view", id="tune.view", tooltip="Table, plot, map or ways to run, where only one has room"
        ),
        Binding("x", "cancel", "cancel", id="tune.cancel", tooltip="Stop the search; what it measured is kept"),
        Binding(
            "enter",
            "details",
            "details",
            show=False,
            id="tune.details",
            tooltip="Every figure of the point, or of the way to run",
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._offered: object = None
        self._runs: tuple[str, ...] = ()
        self._read: str = ""
        self._file: FrontierFile | None = None
        self._problem = ""
        self._job: str | None = None
        self._frontier_only = False
        self._types = False
        self._kind = ""
        self._view = 0

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, PickBox, Sheet)

    def content(self) -> ComposeResult:
        with Panel(title="Wishes", id="wishes"):
            yield Fields(FIELDS, picks=("source", "found"))
            yield Canvas(self._advice, id="advice")
        with Panel(title="Frontier", id="frontier", classes="-bare"):
            yield Grid(view.COLUMNS["kld"], empty=self._nothing, id="points")
        with Vertical(id="pictures"):
            with Panel(title="KLD against size", id="plot", classes="-bare"):
                yield Canvas(self._plot)
            with Vertical(id="details"):
                with Panel(title="Map", id="map", classes="-bare"):
                    yield Sheet(self._map)
                with Panel(title="Ways to run", id="ways", classes="-bare"):
                    yield Grid(view.WAYS["kld"], empty=self._no_ways, id="way-list")
        yield JobPanel(id="job")

    def home(self) -> Widget | None:
        return self.query_one(Fields).pick("source")

    def _nothing(self) -> str:
        if self._problem:
            return self._problem
        if self._read and self._file is None:
            return "Reading the result..."
        return "No search has ended yet.\nr  starts one: choose a model and a text first"

    def _no_ways(self) -> str:
        return "This search timed nothing." if self._file else ""

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        self._offer(board)
        job = plans.shown_job(board.jobs, self._job, (TuneStep,))
        panel = self.query_one(JobPanel)
        panel.display = job is not None and (job.finished_at is None or job.state != "done")
        panel.show(job)
        self._explain()

    def _offer(self, board: Board) -> None:
        fields = self.query_one(Fields)
        if self._offered is None:
            self._reveal()
        if self._offered is not board.models and board.models:
            first, self._offered = self._offered is None, board.models
            entries = [entry for entry in plans.sources(board.models) if entry.format == "gguf"]
            full = plans.base_of(entries)
            fields.pick("source").offer([(e.id, e.name) for e in entries], plans.source_notes(entries))
            if first and full is not None:
                fields.pick("source").choose(full.id)
            self._reveal()
            self.query_one("#advice", Canvas).redraw()
        ended = plans.tune_jobs(board.jobs)
        runs = tuple(job.id for job in ended)
        if runs != self._runs:
            fresh = next((run for run in runs if run not in self._runs), None)
            self._runs = runs
            box = fields.pick("found")
            names = {job.id: f"{job.id} {one_line(job.title, 60)}" for job in ended}
            box.offer(list(names.items()), {names[job.id]: formats.moment(job.finished_at) for job in ended})
            if fresh is not None:
                box.choose(fresh)
        if fields["found"] != self._read and board.lost is None:
            self._read = fields["found"]
            self._open(next((job for job in ended if job.id == self._read), None))

    @work(exclusive=True, group="frontier", exit_on_error=False)
    async def _open(self, job: Job | None) -> None:
        """Read what a search found."""
        self._file, self._problem = None, ""
        made = next((a for a in job.outcome.artefacts if a.format == "json"), None) if job and job.outcome else None
        if job is not None and made is not None:
            try:
                text = await self.lathe.link.bench.artefact_text(job.id, made.name)
                self._file = msgspec.json.decode(text, type=FrontierFile)
            except (LatheError, msgspec.MsgspecError) as error:
                self._problem = f"The result cannot be read: {error}"
        if self._file is not None:
            kinds = kinds_of(self._file.sensitivity)
            if self._kind not in kinds:
                self._kind = telling_kind(self._file.sensitivity) or ""
        self._draw()

    def _draw(self) -> None:
        """Table and pictures."""
        points = self._file.points if self._file else ()
        measure = self._measure
        self._points.head(view.COLUMNS[measure])
        self._points.show(view.rows(points, self.wish(), measure, frontier_only=self._frontier_only))
        runs = self._file.runs if self._file else ()
        ways = self.query_one("#way-list", Grid)
        ways.head(view.WAYS[measure])
        ways.show(view.way_rows(runs, measure))
        self.query_one("#plot", Panel).entitle(f"{NOUNS[measure]} against size")
        self.set_class(not runs, "-untimed")
        self.query_one("#ways", Panel).entitle("Ways to run", *view.ways_title(self._file))
        self.after_filter()
        self._draw_pictures()

    def _draw_pictures(self) -> None:
        self.query_one("#plot Canvas", Canvas).redraw()
        self.query_one(Sheet).remake()
        point = self.point
        what = (
            f"types of {point.label}" if self._types and point and point.mix else f"cost of each tensor as {self._kind}"
        )
        self.query_one("#map", Panel).entitle(what, f"{UNITS[self._measure]}, predicted")

    def after_filter(self) -> None:
        grid, panel = self._points, self.query_one("#frontier", Panel)
        found = f"filter: {grid.filter_text}" if grid.filter_text else ""
        panel.entitle("Frontier", *(view.summary(self._file) if self._file else ()), found)
        note = view.left_out(self._file) if self._file else ""
        panel.footnote("frontier only" if self._frontier_only else "* none is both smaller and closer", note)

    def _plot(self, width: int, height: int) -> list[Line]:
        if self._file is None:
            return []
        dots = view.dots(self._file.points, self.point)
        return scatter(
            dots, width, height, self.lathe.glyphs, show_x=view.mebibytes, show_y=plans.closeness,
            floor=self.wish().max_divergence,
        )  # fmt: skip

    def _map(self, width: int) -> list[Line]:
        if self._file is None:
            return []
        point = self.point
        mix = point.mix if self._types and point else None
        return view.heat(self._file.sensitivity, self._kind, mix, width, self.lathe.glyphs)

    def _advice(self, width: int, height: int) -> list[Line]:
        fields = self.query_one(Fields)
        problem = fields.problem() or self._text_problem(fields["text"])
        if problem:
            return [[(problem, "warn")]]
        entry = self.source
        if entry is not None and (card_of(entry).bits_per_weight or 16) < plans.FULL_BITS:
            return [[(f"{self.lathe.glyphs.warn} {entry.name} is quantized: the search starts from its loss", "warn")]]
        wished = any(fields[key] for key in ("max_size", *_CLOSE.values(), "min_speed"))
        return [[("r searches and makes the file" if wished else "r searches; wishes make a file", "dim")]]

    @staticmethod
    def _text_problem(text: str) -> str:
        if not text:
            return "text: which text shall it be close on?"
        return "" if Path(text).expanduser().is_file() else f"text: there is no file {one_line(text, 200)}"

    def _explain(self) -> None:
        self.query_one("#wishes", Panel).footnote(self.query_one(Fields).explain(self.focused) or self.parts_line())

    def on_descendant_focus(self) -> None:
        """Say what the field means."""
        self._explain()

    # -- what is chosen ---------------------------------------------------------------------------------------------
    @property
    def source(self) -> ModelEntry | None:
        """The model chosen."""
        return self.board.model(self.query_one(Fields)["source"])

    @property
    def _measure(self) -> Measure:
        """Of the search that is shown."""
        return self._file.measure if self._file else "kld"

    def _reveal(self) -> None:
        """Ask for closeness as the model has it."""
        source = self.source
        mine = _CLOSE[_measured_by(source) if source else "kld"]
        keys = (field.key for field in FIELDS)
        self.query_one(Fields).reveal(key for key in keys if key == mine or key not in _CLOSE.values())

    @property
    def _points(self) -> Grid:
        return self.query_one("#points", Grid)

    @property
    def way(self) -> Run | None:
        """The way to run under the cursor, where the keys go there."""
        grid = self.query_one("#way-list", Grid)
        runs = self._file.runs if self._file else ()
        key = grid.cursor if self.focused is grid else None
        return runs[int(key)] if key is not None and int(key) < len(runs) else None

    @property
    def point(self) -> Point | None:
        """The point under the cursor."""
        key = self._points.cursor
        points = self._file.points if self._file else ()
        return points[int(key)] if key is not None and key.isdigit() and int(key) < len(points) else None

    def wish(self) -> Wish:
        """What the fields ask of the search that is shown, as far as it can be read."""
        fields = self.query_one(Fields)
        close = _positive(fields[_CLOSE[self._measure]])
        return Wish(max_divergence=close, min_tokens_per_s=_positive(fields["min_speed"]))

    @on(Fields.Changed)
    def _field_changed(self, message: Fields.Changed) -> None:
        message.stop()
        self.query_one("#advice", Canvas).redraw()
        if message.key == "found":
            self._offer(self.board)
        elif message.key == "source":
            self._reveal()
        elif message.key in (*_CLOSE.values(), "min_speed"):
            self._draw()

    @on(PickBox.Asked)
    def _list_asked(self, message: PickBox.Asked) -> None:
        message.stop()
        box = message.box

        def take(shown: str | None) -> None:
            if shown is not None:
                box.take(shown)

        choices = [Choice(shown, shown, box.notes.get(shown, "")) for shown in box.choices if shown]
        self.app.push_screen(Choose(box.label.capitalize(), choices, current=box.value), take)

    @on(Grid.Moved, "#points")
    def _moved(self) -> None:
        self._draw_pictures()

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("run", "make", "cancel")

    def action_run(self) -> None:
        """Start the search."""
        fields, source = self.query_one(Fields), self.source
        problem = fields.problem() or self._text_problem(fields["text"]) or ("" if source else "there is no GGUF model")
        if problem or source is None:
            self.lathe.notify(problem, severity="warning")
            return
        close = _CLOSE[_measured_by(source)]
        step = TuneStep(
            model=source.id, text=str(Path(fields["text"]).expanduser()), max_size=fields["max_size"] or None,
            min_tokens_per_s=_positive(fields["min_speed"]), minutes=float(fields["minutes"]),
            name=fields["name"] or None,
            max_kld=_positive(fields[close]) if close == "max_kld" else None,
            max_distance=_positive(fields[close]) if close == "max_distance" else None,
        )  # fmt: skip
        words = ["lathe", "tune", source.name, "--text", step.text, "--minutes", fields["minutes"]]
        for flag, key in (
            ("--max-size", "max_size"), ("--" + close.replace("_", "-"), close), ("--min-tps", "min_speed")
        ):  # fmt: skip
            words += [flag, fields[key]] if fields[key] else []
        submit(self.lathe, step, shlex.join(words), self._watch)

    def _watch(self, job: Job) -> None:
        self._job = job.id
        self.lathe.redraw()

    def action_make(self) -> None:
        """Make the point's file."""
        point, file = self.point, self._file
        job = next((job for job in self.board.jobs if job.id == self._read), None)
        if point is None or file is None or job is None or not isinstance(job.step, TuneStep):
            self.lathe.notify("There is no point to make yet; r searches.", severity="warning")
            return
        label = point.label.replace(" ", "-").removesuffix("-MB")
        name = self.query_one(Fields)["name"] or f"{file.model.removesuffix('-f16').removesuffix('-F16')}-{label}"
        if point.mix is None:
            step = QuantizeStep(model=job.step.model, type=point.label, imatrix=file.imatrix or None, name=name)
            words = ["lathe", "quantize", file.model, "--type", point.label]
            words += ["--imatrix", file.imatrix] if file.imatrix else []
            submit(self.lathe, step, shlex.join(words), self._watch)
        else:
            again = msgspec.structs.replace(
                job.step,
                mix=point.mix,
                name=name,
                max_size=None,
                max_kld=None,
                max_distance=None,
                min_tokens_per_s=None,
                output=None,
            )
            words = ["lathe", "tune", file.model, "--text", job.step.text, "--max-size", str(point.bytes)]
            submit(self.lathe, again, shlex.join(words), self._watch)

    def action_frontier(self) -> None:
        """Only what nothing beats."""
        self._frontier_only = not self._frontier_only
        self._draw()

    def action_kind(self) -> None:
        """The next tensor type of the map."""
        if self._file is not None:
            kinds = kinds_of(self._file.sensitivity)
            self._kind = kinds[(kinds.index(self._kind) + 1) % len(kinds)] if kinds else ""
            self._draw_pictures()

    def action_types(self) -> None:
        """Costs, or types."""
        self._types = not self._types
        point = self.point
        if self._types and point is not None and point.mix is None:
            self.lathe.notify("A recipe has no mix to show: choose a point that is a mix.", severity="warning")
        self._draw_pictures()

    def action_view(self) -> None:
        """Table, plot, map or ways to run."""
        self._view = (self._view + 1) % len(_VIEWS)
        for name in _VIEWS:
            self.set_class(name == _VIEWS[self._view], name)
        self._draw_pictures()

    def action_cancel(self) -> None:
        """Stop the search."""
        job = self.query_one(JobPanel).job
        if job is not None and job.finished_at is None:
            self.lathe.do(
                lambda bench: bench.cancel(job.id),
                lambda j: self.lathe.tell(f"{j.id} {j.state}; another search goes on from what it measured"),
                command=f"lathe jobs cancel {job.id}",
                what=job.id,
            )

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_details()

    def action_details(self) -> None:
        """Every figure of what the cursor is on."""
        point, way = self.point, self.way
        if way is not None:
            self.app.push_screen(Facts(f"A way to run {way.label}", view.way_facts(way)))
        elif point is not None:
            self.app.push_screen(Facts(point.label, view.facts(point, self._measure)))

    def open_key(self, key: str) -> None:
        self._offer(self.board)
        entry, fields = self.board.model(key), self.query_one(Fields)
        if entry is not None:
            fields.pick("source").choose(entry.id)
            self._reveal()
            self.query_one("#advice", Canvas).redraw()
        elif key in self._runs:
            fields.pick("found").choose(key)
            self._offer(self.board)

    def copy_text(self) -> tuple[str, str]:
        point, way = self.point, self.way
        if way is not None:
            return view.way_flags(way), "Flags"
        if point is None:
            return "", ""
        lines = [f"^{name}$={kind.lower()}" for name, kind in (point.mix or {}).items()]
        return ("\n".join(lines), "Tensor types") if lines else (point.label, "Type")

    def command(self) -> str:
        source, text = self.source, self.query_one(Fields)["text"]
        return shlex.join(["lathe", "tune", source.name, "--text", text or "TEXT"]) if source else self.place.command


def _measured_by(entry: ModelEntry) -> Measure:
    return "distance" if plans.embeds(entry) else "kld"


def _positive(text: str) -> float | None:
    """A wish's number; None where there is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 else None
