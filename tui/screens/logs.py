"""Logs: what needs attention on top, everything the engine and this front said below."""

from __future__ import annotations

from typing import ClassVar

from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.reading import Facts
from lathe.tui.views.loglines import engine_entry, sources
from lathe.tui.views.rows import attention
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from lathe.tui.widgets.logview import LEVELS, LogEntry, LogView
from lathe.tui.widgets.paint import Line, wrap
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget

_COLUMNS = (
    Column("since", least=5, most=8),
    Column("what", least=6, most=30, sort="what"),
    Column("state", least=6, most=12),
    Column("why", least=20, most=90, flex=True),
    Column("what to do", rank=1, least=20, most=90, flex=True),
)


class Logs(PlaceScreen):
    """Attention and log."""

    MODE = "logs"
    SHOWS_LOG = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "slash",
            "filter",
            "filter",
            id="logs.filter",
            tooltip="Show only the lines that match; h marks them instead",
        ),
        Binding("f", "follow", "follow", id="logs.follow", tooltip="Follow the end of the log, or stop"),
        Binding("l", "level", "level", id="logs.level", tooltip="Show only lines of this level and above"),
        Binding("o", "source", "source", id="logs.source", tooltip="Next source: engine, job, worker, http, front"),
        Binding(
            "enter",
            "expand",
            "whole line",
            id="logs.expand",
            tooltip="The line with all it carries, or the job that failed",
        ),
        Binding("y", "copy", "copy", id="logs.copy", tooltip="Copy the line"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._read = 0
        self._source = ""

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, LogView)

    def content(self) -> ComposeResult:
        with Panel(title="Needs attention", id="attention", classes="-bare"):
            yield Grid(_COLUMNS, empty=self._well)
        with Horizontal(id="lower"):
            with Panel(title="Log", id="log", classes="-bare"):
                yield LogView(empty="Nothing was said yet.")
            with Panel(title="Line", id="line"):
                yield _Line(self._line)

    def _well(self) -> str:
        return "All is well." if self.board.attached else "Reading..."

    def home(self) -> Widget | None:
        return self.query_one(LogView)

    def target_list(self) -> Grid | LogView | None:
        return self.focused if isinstance(self.focused, Grid | LogView) else self.query_one(LogView)

    def show(self, board: Board) -> None:
        snapshot = board.snapshot
        found = attention(snapshot, self.lathe.now()) if snapshot else []
        glyphs = self.lathe.glyphs
        self.query_one(Grid).show(
            Row(
                f"{what} {kind}",
                (
                    (formats.clock(when)[:5], "dim"),
                    (what, "value"),
                    (f"{glyphs.warn if kind == 'stalled' else glyphs.bad} {kind}", "bad"),
                    failure.message,
                    (failure.hint, "dim"),
                ),
                {"what": what, "state": kind, "why": failure.message},
            )
            for what, kind, failure, when in found
        )
        self.query_one("#attention", Panel).entitle("Needs attention", str(len(found)) if found else "")
        self.query_one("#attention").styles.height = min(9, max(3, len(found) + 3))
        fresh = min(board.log_count - self._read, len(board.log))
        if fresh > 0:
            lines = list(board.log)[-fresh:]
            self._read = board.log_count
            self.query_one(LogView).add(engine_entry(line) for line in lines if self._wanted(line.source))
        self.after_filter()

    def _wanted(self, source: str) -> bool:
        return not self._source or source.split(" ")[0] == self._source

    def after_filter(self) -> None:
        log = self.query_one(LogView)
        self.query_one("#log", Panel).entitle(
            "Log",
            self._source or "all sources",
            f"{LEVELS[log.level]} and above" if log.level else "",
            f"filter: {log.filter_text}" if log.filter_text else "",
        )
        self.query_one("#log", Panel).footnote(log.describe())

    @on(LogView.Changed)
    def _changed(self) -> None:
        self.after_filter()

    @on(LogView.Moved)
    def _moved(self) -> None:
        self.query_one(_Line).redraw()

    def _line(self, width: int, height: int) -> list[Line]:
        entry = self.query_one(LogView).entry
        if entry is None:
            return []
        lines: list[Line] = [[(f"{name:<8}", "dim"), (value, "text")] for name, value in _facts(entry)]
        return [*lines, [], *wrap(entry.text, width, "text", height - len(lines) - 1)]

    # -- actions ----------------------------------------------------------------------------------------------------
    def action_follow(self) -> None:
        """Follow or stop."""
        self.query_one(LogView).action_follow()

    def action_level(self) -> None:
        """The next least level."""
        self.query_one(LogView).action_level()

    def action_source(self) -> None:
        """Only the next source."""
        known = ["", *sources(self.board.log)]
        self._source = known[(known.index(self._source) + 1) % len(known)] if self._source in known else ""
        log = self.query_one(LogView)
        log.clear()
        log.add(engine_entry(line) for line in self.board.log if self._wanted(line.source))
        self.after_filter()

    @on(Grid.Opened)
    async def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        await self.action_expand()

    async def action_expand(self) -> None:
        """The whole line; on a failed job, the job."""
        if isinstance(self.focused, Grid):
            key = (self.focused.cursor or "").rsplit(" ", 1)[0]
            mode = "jobs" if key.startswith("j-") else "models"
            await self.lathe.action_go(mode)
            place = self.lathe.current_place
            if place is not None:
                place.open_key(key)
            return
        entry = self.query_one(LogView).entry
        if entry is not None:
            self.app.push_screen(Facts("Log line", [*_facts(entry), ("text", entry.text)]))

    def copy_text(self) -> tuple[str, str]:
        entry = self.query_one(LogView).entry
        return (entry.text, "Line") if entry else ("", "")

    def command(self) -> str:
        return "lathe logs --follow"


def _facts(entry: LogEntry) -> list[tuple[str, str]]:
    when = f"{formats.moment(entry.ts)}:{entry.time[-2:]}" if entry.ts else formats.NONE
    return [("time", when), ("level", entry.level), ("source", entry.source or formats.NONE)]


class _Line(Canvas):
    """The line under the cursor, whole."""

    DEFAULT_CSS = "_Line { height: 1fr; }"
