"""Bench: speeds measured on this machine, slower ones first, each test's history; start a bench.

Invariant: a figure is called slower or faster by the engine alone, beyond noise; the screen only shows it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import ClassVar

from lathe.engine.errors import LatheError, describe
from lathe.engine.measure.history import BenchPoint
from lathe.engine.steps import BenchServedStep, BenchStep
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.eval_work import runnable
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.model_work import submit
from lathe.tui.screens.reading import Choice, Choose, Facts
from lathe.tui.views import bench as view
from lathe.tui.views.models import card_of
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

MOST_POINTS = 1000
KV_TYPES = ("f16", "q8_0", "q4_0")


class Bench(PlaceScreen):
    """Speeds and their history."""

    MODE = "bench"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "run", "bench", id="bench.run", tooltip="Measure the speed of a model"),
        Binding("R", "again", "again", id="bench.again", tooltip="Measure the model under the cursor as usual"),
        Binding("enter", "open", "open", id="bench.open", tooltip="Into the history; there: all of one figure"),
        Binding("x", "cancel", "cancel", id="bench.cancel", tooltip="Stop the bench under the cursor"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._series: list[view.Series] | None = None
        self._read_at: object = None
        self._problem = ""

    def content(self) -> ComposeResult:
        with Panel(title="Bench", id="tests", classes="-bare"):
            yield Grid(view.TESTS, empty=self._nothing, id="test-list")
        with Panel(title="History", id="history", classes="-bare"):
            yield Canvas(self._graph, id="graph")
            yield Grid(view.POINTS, empty="Figures of one test stand here.", id="point-list")

    # -- reading ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        if not board.attached or board.lost is not None:
            return
        benches = [job for job in board.jobs if isinstance(job.step, BenchStep | BenchServedStep)]
        signature = tuple((job.id, job.state) for job in benches)
        if signature != self._read_at:
            self._read_at = signature
            self._read()
        self._arrange()

    def on_screen_resume(self) -> None:
        """A shell may have measured meanwhile."""
        self._read_at = None

    @work(exclusive=True, group="history", exit_on_error=False)
    async def _read(self) -> None:
        first = self._series is None
        try:
            self._series = view.series_of(await self.lathe.link.bench.bench_history(None, MOST_POINTS))
            self._problem = ""
        except LatheError as error:
            self._problem = error.message
            self.lathe.report(describe(error), what="bench history")
            self._arrange()
            return
        self._arrange()
        if first and self._series:
            self.query_one("#test-list", Grid).select(self._series[0].key)
        self._show_history()

    # -- drawing ----------------------------------------------------------------------------------------------------
    def _arrange(self) -> None:
        names = {key: entry.name for entry in self.board.models for key in (entry.id, entry.name, entry.path)}
        series = self._series or []
        grid = self.query_one("#test-list", Grid)
        grid.show(view.rows(series, self.board.jobs, names, self.lathe.now(), self.lathe.glyphs))
        self.after_filter()

    def after_filter(self) -> None:
        grid, panel = self.query_one("#test-list", Grid), self.query_one("#tests", Panel)
        slower = sum(one.newest.trend == "slower" for one in self._series or ())
        machines = {one.newest.machine for one in self._series or ()}
        where = next(iter(machines)) if len(machines) == 1 else f"{len(machines)} machines" if machines else ""
        panel.entitle("Bench", f"{slower} slower" if slower else "", where,
                      f"filter: {grid.filter_text}" if grid.filter_text else "")  # fmt: skip
        panel.footnote("slower and faster: beyond noise and 5 %", self.parts_line())

    def _show_history(self) -> None:
        one, panel = self.series, self.query_one("#history", Panel)
        self.query_one("#point-list", Grid).show(view.point_rows(one) if one else [])
        self.query_one("#graph", Canvas).redraw()
        point = one.newest if one else None
        panel.entitle(*((f"History {point.model}", point.test, point.setting) if point else ("History",)))

    def _nothing(self) -> str:
        return (
            "Nothing was measured yet.\nr  measures a model" if self._series is not None else "Reading the history..."
        )

    def _graph(self, width: int, height: int) -> list[Line]:
        return view.history_lines(self.series, width, height, self.lathe.glyphs) if self.series else []

    @property
    def series(self) -> view.Series | None:
        """The test under the cursor."""
        key = self.query_one("#test-list", Grid).cursor
        return next((one for one in self._series or () if one.key == key), None)

    @property
    def point(self) -> BenchPoint | None:
        """The figure under the cursor of the history."""
        key = self.query_one("#point-list", Grid).cursor
        return next((point for point in (self.series.points if self.series else ()) if str(point.number) == key), None)

    @on(Grid.Moved, "#test-list")
    def _moved(self) -> None:
        self._show_history()

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("run", "again", "cancel")

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_open()

    def action_open(self) -> None:
        """From a test into its history; from there, everything about one figure."""
        history = self.query_one("#point-list", Grid)
        if self.focused is history and self.point is not None:
            self.app.push_screen(Facts(f"{self.point.model} {self.point.test}", view.facts(self.point)))
        else:
            history.focus()

    def action_run(self) -> None:
        """Which model, then what to measure."""
        entries = runnable(self.board.models)
        choices = [Choice(e.id, e.name, card_of(e).file_type or e.format) for e in entries]
        current = next((e.id for e in entries if self.series and e.name == self.series.newest.model), "")

        def take(key: str | None) -> None:
            entry = self.board.model(key)
            if entry is not None:
                self._ask(entry)

        self.app.push_screen(Choose("Measure which model?", choices, current=current, empty="No model."), take)

    def _ask(self, entry: ModelEntry) -> None:
        form = Form(
            f"Measure {entry.name}",
            (
                Field("prompt", "prompt tokens", "512", hint="one test each, separated by blanks", check=_counts),
                Field("generate", "generated tokens", "128", hint="one test each", check=_counts),
                Field("depths", "tokens before", "0", hint="depth of the context", check=_counts),
                Field("kv", "KV cache", "f16", KV_TYPES),
                Field("threads", "threads", "0", hint="0: the physical cores", check=number(0, 4096, whole=True)),
                Field("repetitions", "repetitions", "5", check=number(1, 1000, whole=True)),
                Field("way", "measured", "llama-bench", ("llama-bench", "as served"), "as served: by a worker"),
            ),
            yes="Measure", watch=_planned,
        )  # fmt: skip

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._start(entry, values)

        self.app.push_screen(form, take)

    def _start(self, entry: ModelEntry, values: dict[str, str]) -> None:
        prompt, generate, depths = (tuple(map(int, values[name].split())) for name in ("prompt", "generate", "depths"))
        threads, repetitions, kind = int(values["threads"]), int(values["repetitions"]), values["kv"]
        words = ["lathe", "bench", "run", entry.name, "-p", ",".join(map(str, prompt))]
        words += ["-n", ",".join(map(str, generate)), "-t", str(threads), "-ctk", kind, "-r", str(repetitions)]
        if entry.format == "gguf" and values["way"] == "llama-bench":
            step: BenchStep | BenchServedStep = BenchStep(
                model=entry.id, prompt_tokens=prompt, generate_tokens=generate, depths=depths, kv_types=(kind,),
                threads=(threads,), repetitions=repetitions,
            )  # fmt: skip
            words += ["-d", ",".join(map(str, depths))]
        else:
            room = max([*prompt, *(count + 16 for count in generate), 32]) + 16
            options = LoadOptions(context=room, threads=threads or None)
            step = BenchServedStep(model=entry.id, prompt_tokens=prompt, generate_tokens=generate,
                                   repetitions=repetitions, options=options)  # fmt: skip
            words += ["--served"]
        submit(self.lathe, step, shlex.join(words))

    def action_again(self) -> None:
        """The usual tests for the model under the cursor."""
        entry = self.board.model(self.series.newest.model) if self.series else None
        if entry is None:
            self.lathe.notify("That model is no longer in the catalogue.", severity="warning")
        elif entry.format == "gguf":
            submit(self.lathe, BenchStep(model=entry.id), f"lathe bench run {shlex.quote(entry.name)}")
        else:
            submit(self.lathe, BenchServedStep(model=entry.id), f"lathe bench run {shlex.quote(entry.name)} --served")

    def action_cancel(self) -> None:
        """Stop a bench."""
        key = self.query_one("#test-list", Grid).cursor
        job = next((job for job in view.open_jobs(self.board.jobs) if job.id == key), None)
        if job is None:
            self.lathe.notify("No bench runs under the cursor.", severity="warning")
            return
        self.lathe.do(
            lambda bench: bench.cancel(job.id), lambda j: self.lathe.tell(f"{j.id} {j.state}"),
            command=f"lathe jobs cancel {job.id}", what=job.id,
        )  # fmt: skip

    def copy_text(self) -> tuple[str, str]:
        return (f"{self.series.newest.rate:.2f}", "Tokens/s") if self.series else ("", "")

    def command(self) -> str:
        return f"lathe bench history {shlex.quote(self.series.newest.model)}" if self.series else self.place.command


def _counts(text: str) -> str:
    check = number(0, 10_000_000, whole=True)
    return next((problem for problem in map(check, text.split()) if problem), "" if text.split() else "give a number")


def _planned(values: dict[str, str]) -> str:
    tests = (len(values["prompt"].split()) + len(values["generate"].split())) * max(1, len(values["depths"].split()))
    return f"{tests} tests, {values['repetitions']} repetitions each"
