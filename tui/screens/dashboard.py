"""Dashboard: what the machine and the engine do at this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.text import line as one_line
from lathe.tui.views import machine, rows
from lathe.tui.widgets.base import Canvas, Painter, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line, cell, wrap
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

View = Callable[[Board, int, int, Glyphs], list[Line]]
WINDOW_NAMES = {60: "1m", 300: "5m", 3600: "1h"}


class Dashboard(PlaceScreen):
    """Live panels, and the requests of every front."""

    MODE = "dashboard"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", id="dashboard.filter", tooltip="Show only the requests that match"),
        Binding("space", "pause", "pause", id="dashboard.pause", tooltip="Freeze all figures, or let them run"),
        Binding("w", "window", "window", id="dashboard.window", tooltip="Graphs over 1 minute, 5 minutes, 1 hour"),
        Binding("z", "zoom", "zoom", id="dashboard.zoom", tooltip="Show the focused panel alone"),
        Binding("x", "cancel", "cancel request", id="dashboard.cancel", tooltip="Stop the request under the cursor"),
        Binding("full_stop", "step", "step", show=False, id="dashboard.step", tooltip="One refresh while paused"),
        Binding("enter", "open", "jobs", show=False, id="dashboard.open", tooltip="Open what is under the cursor"),
    ]

    def content(self) -> ComposeResult:
        yield from (
            _panel("Memory", "memory", self._painter(machine.memory_panel)),
            _panel("Throughput", "throughput", self._painter(machine.throughput_panel)),
            _panel("Latency", "latency", self._painter(machine.latency_panel)),
            _panel("Queue and slots", "queue", self._painter(machine.queue_panel)),
            _panel("Jobs", "dash-jobs", self._jobs),
            _panel("Needs attention", "attention", self._attention),
        )
        with Panel(title="Requests", id="requests"):
            yield Grid(rows.REQUESTS, empty=_idle, newest=True)

    def _painter(self, view: View) -> Painter:
        return lambda width, height: view(self.board, width, height, self.lathe.glyphs)

    def show(self, board: Board) -> None:
        """Repaint every panel."""
        for canvas in self.query("#place Canvas").results(Canvas):
            canvas.redraw()
        snapshot = board.snapshot
        if snapshot is None:
            return
        window = WINDOW_NAMES[board.window_s]
        self.query_one("#memory", Panel).entitle(
            "Memory" if snapshot.sample and snapshot.sample.devices else "Memory and CPU"
        )
        self.query_one("#throughput", Panel).entitle("Throughput", window)
        seconds = int(snapshot.traffic.window_s)
        self.query_one("#latency", Panel).entitle(
            f"Latency  {seconds // 60}m" if seconds >= 60 else f"Latency  {seconds}s"
        )
        self.query_one(Grid).show(rows.request_rows(snapshot.traffic.requests, self.lathe.glyphs))
        self.after_filter()

    def after_filter(self) -> None:
        """Count the rows."""
        grid = self.query_one(Grid)
        panel = self.query_one("#requests", Panel)
        shown = sum(not row.heading for row in grid.rows)
        panel.footnote(f"{shown} of {grid.total}", f"filter: {grid.filter_text}" if grid.filter_text else "")

    def _jobs(self, width: int, height: int) -> list[Line]:
        now, glyphs = self.lathe.now(), self.lathe.glyphs
        lines: list[Line] = []
        for job in self.board.jobs:
            state, ink = rows.state_of(job, now, glyphs)
            right = formats.percent(job.progress.fraction) if job.state == "running" else ""
            eta = rows.eta_of(job, now) if job.state == "running" else formats.duration(rows.elapsed_of(job, now))
            lines.append(
                [
                    (cell(job.id, 6), "dim"),
                    (" ", "text"),
                    (cell(job.title, width - 33), "text"),
                    (" ", "text"),
                    (cell(state, 13), ink),
                    (cell(right, 5, ">"), "value"),
                    (cell(eta, 7, ">"), "dim"),
                ]
            )
        return lines[:height] or [[("No jobs yet. Convert or quantize a model on the Models screen.", "dim")]]

    def _attention(self, width: int, height: int) -> list[Line]:
        snapshot = self.board.snapshot
        lines: list[Line] = []
        for what, kind, failure, when in rows.attention(snapshot, self.lathe.now()) if snapshot else ():
            sign = self.lathe.glyphs.warn if kind == "stalled" else self.lathe.glyphs.bad
            lines.append([(f"{sign} ", "bad"), (f"{formats.clock(when)[:5]} ", "dim"), (one_line(what), "value")])
            lines += [[("  ", "text"), *line] for line in wrap(failure.message, width - 2, "text", 2)]
            if failure.hint:
                lines += [[("  ", "text"), *line] for line in wrap(failure.hint, width - 2, "dim", 2)]
        return lines[:height] or [
            [(f"{self.lathe.glyphs.good} ", "good"), ("Nothing. All models and jobs are well.", "dim")]
        ]

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("cancel",)

    def action_pause(self) -> None:
        """Freeze or thaw."""
        self.lathe.pause()

    async def action_step(self) -> None:
        """One refresh."""
        await self.lathe.step()

    def action_window(self) -> None:
        """The next window."""
        self.lathe.next_window()

    def action_cancel(self) -> None:
        """Stop the request under the cursor."""
        row = self.query_one(Grid).current
        if row is not None and not row.heading:
            key = row.key
            self.lathe.do(lambda bench: bench.cancel_request(key), lambda _: self.lathe.tell(f"{key} is being stopped"))

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        snapshot = self.board.snapshot
        row = next((r for r in snapshot.traffic.requests if r.id == message.key), None) if snapshot else None
        if row is None:
            return
        from lathe.tui.screens.reading import Facts

        self.app.push_screen(Facts(f"Request {row.id}", rows.request_facts(row)))

    def action_open(self) -> None:
        """Open the row under the cursor."""
        self.query_one(Grid).action_open()

    def copy_text(self) -> tuple[str, str]:
        key = self.query_one(Grid).cursor
        return key or "", "Request id"


def _panel(title: str, id_: str, painter: Painter) -> Panel:
    return Panel(_Board(painter), title=title, id=id_)


class _Board(Canvas):
    """A canvas that fills its panel and takes the focus, so that it can be zoomed."""

    DEFAULT_CSS = "_Board { height: 1fr; }"
    can_focus = True


def _idle() -> str:
    return "No requests. Talk to a model in the Playground (0), or start the HTTP API (4)."
