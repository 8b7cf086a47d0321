"""The table, the log and the transcript: nothing moves under the reader, and little is painted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
from lathe.tui.glyphs import ASCII, Glyphs
from lathe.tui.themes import DARK, Inks, inks
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from lathe.tui.widgets.logview import KEPT, LogEntry, LogView
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.sheet import Sheet
from lathe.tui.widgets.transcript import MAX_TURNS, Said, Transcript
from support.screens import screen_lines
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widget import Widget

COLUMNS = (Column("name", least=8, most=20, flex=True, sort="name"), Column("size", ">", least=5, sort="size"))


class Stage(App[None]):
    """A widget alone."""

    CSS: ClassVar[str] = "Screen { layout: vertical; }"

    def __init__(self, make: Callable[[], Widget]) -> None:
        super().__init__()
        self.inks: Inks = inks(DARK)
        self.glyphs: Glyphs = ASCII
        self._make = make
        self.heard: list[Any] = []

    def compose(self) -> ComposeResult:
        yield self._make()

    def on_grid_opened(self, message: Grid.Opened) -> None:
        self.heard.append(message.key)


def _rows(*names: str) -> list[Row]:
    return [Row(name, (name, str(len(name))), {"name": name, "size": float(len(name))}) for name in names]


def _lines(app: Any) -> list[str]:
    return screen_lines(app)


def _read(app: Any) -> list[str]:
    """What the reader reads: all but the scroll bar in the last cells."""
    return [line[: app.size.width - 2].rstrip() for line in _lines(app)]


async def _grid(pilot: Pilot[None], names: str) -> Grid:
    grid = pilot.app.query_one(Grid)
    grid.focus()
    grid.show(_rows(*names.split()))
    await pilot.pause()
    return grid


async def test_the_cursor_stays_on_its_row() -> None:
    async with Stage(lambda: Grid(COLUMNS)).run_test(size=(40, 10)) as pilot:
        grid = await _grid(pilot, "a b c d")
        await pilot.press("j", "j")
        assert grid.cursor == "c"
        grid.show(_rows("x", "y", "a", "b", "c", "d"))
        assert grid.cursor == "c"
        grid.show(_rows("a", "b", "d"))
        assert grid.cursor == "d", "where the row is gone the one in its place takes over"
        grid.show([])
        assert grid.cursor is None


async def test_a_list_of_what_comes_and_goes_stays_at_its_top_until_somebody_reads_on() -> None:
    async with Stage(lambda: Grid(COLUMNS, newest=True)).run_test(size=(40, 6)) as pilot:
        grid = await _grid(pilot, "c d")
        for count in (3, 30):
            grid.show(_rows(*(f"new{n:02}" for n in range(count, 0, -1)), "c", "d"))
            await pilot.pause()
            assert (grid.cursor, grid.scroll_offset.y) == (f"new{count:02}", 0)
        await pilot.press("j", "j")
        grid.show(_rows("newest", *(f"new{n:02}" for n in range(30, 0, -1))))
        assert grid.cursor == "new28"
        await pilot.press("g")
        grid.show(_rows("latest", "newest", *(f"new{n:02}" for n in range(30, 0, -1))))
        await pilot.pause()
        assert (grid.cursor, grid.scroll_offset.y) == ("latest", 0)
        grid.show([])
        assert grid.cursor is None


@pytest.mark.parametrize("count", [3, 30])
async def test_a_sheet_breaks_its_lines_beside_the_scroll_bar(count: int) -> None:
    def paint(width: int) -> list[Line]:
        return [[(f"{n % 10}" * (width - 1) + "|", "text")] for n in range(count)]

    async with Stage(lambda: Sheet(paint)).run_test(size=(20, 6)) as pilot:
        await pilot.pause()
        for line in _lines(pilot.app)[: min(count, 6)]:
            assert line[:19] == line[0] * 18 + "|"


async def test_keys_move_and_pages_scroll() -> None:
    async with Stage(lambda: Grid(COLUMNS)).run_test(size=(40, 6)) as pilot:
        grid = await _grid(pilot, " ".join(f"row{n:02}" for n in range(30)))
        await pilot.press("G")
        assert grid.cursor == "row29"
        assert any("row29" in line for line in _lines(pilot.app))
        await pilot.press("g")
        assert grid.cursor == "row00"
        await pilot.press("ctrl+d")
        assert grid.cursor == "row04"
        await pilot.press("k", "up", "j", "down")
        assert grid.cursor == "row04"
        assert _lines(pilot.app)[0].split() == ["name", "size"], "the heading stays"


async def test_filter_sort_and_marks() -> None:
    async with Stage(lambda: Grid(COLUMNS, markable=True)).run_test(size=(40, 10)) as pilot:
        grid = await _grid(pilot, "pear fig banana apple")
        grid.filter("a !fig")
        assert [row.key for row in grid.rows] == ["pear", "banana", "apple"]
        grid.sort("size", True)
        assert [row.key for row in grid.rows] == ["banana", "apple", "pear"]
        grid.select("apple")
        grid.toggle_mark()
        assert grid.chosen() == ["apple"]
        grid.mark_all()
        assert set(grid.chosen()) == {"pear", "banana", "apple"}
        grid.filter("nothing")
        await pilot.pause()
        assert any('No match for "nothing"' in line for line in _lines(pilot.app))
        grid.filter("")
        grid.sort(None)
        assert [row.key for row in grid.rows] == ["pear", "fig", "banana", "apple"]
        assert grid.export()[0] == {"name": "pear", "size": "4"}


async def test_unknown_values_sort_last() -> None:
    rows = [Row(key, (key, ""), {"size": value}) for key, value in (("a", None), ("b", 2.0), ("c", 1.0))]
    async with Stage(lambda: Grid(COLUMNS)).run_test() as pilot:
        grid = pilot.app.query_one(Grid)
        grid.show(rows)
        for down, expected in ((False, ["c", "b", "a"]), (True, ["b", "c", "a"])):
            grid.sort("size", down)
            assert [row.key for row in grid.rows] == expected


async def test_mouse_selects_and_opens() -> None:
    stage = Stage(lambda: Grid(COLUMNS))
    async with stage.run_test(size=(40, 10)) as pilot:
        grid = await _grid(pilot, "a b c")
        await pilot.click(offset=(4, 2))
        assert grid.cursor == "b"
        await pilot.click(offset=(4, 2), times=2)
        assert stage.heard == ["b"]
        await pilot.click(offset=(4, 0))
        assert grid.cursor == "b"


async def test_only_changed_rows_are_painted() -> None:
    async with Stage(lambda: Grid(COLUMNS)).run_test(size=(40, 20)) as pilot:
        grid = await _grid(pilot, " ".join(f"row{n:02}" for n in range(15)))
        painted: list[int] = []
        draw = grid.render_line
        grid.render_line = lambda y: (painted.append(y), draw(y))[1]  # type: ignore[method-assign]
        rows = _rows(*(f"row{n:02}" for n in range(15)))
        rows[3] = Row("row03", ("row03", "new"), rows[3].fields)
        grid.show(rows)
        await pilot.pause()
        assert painted == [4]
        painted.clear()
        grid.show(rows)
        await pilot.pause()
        assert painted == []


async def test_a_wider_cell_moves_every_row() -> None:
    columns = (Column("name", least=4, most=20), Column("size", ">", least=5))
    async with Stage(lambda: Grid(columns)).run_test(size=(40, 6)) as pilot:
        grid = await _grid(pilot, "aa bb")
        short = [line.index("2") for line in _read(pilot.app)[1:3]]
        grid.show([Row("aa", ("a longer name", "2")), Row("bb", ("bb", "2"))])
        await pilot.pause()
        long = [line.index("2") for line in _read(pilot.app)[1:3]]
        assert len(set(short)) == len(set(long)) == 1
        assert long[0] > short[0]


async def test_a_table_may_change_its_columns() -> None:
    async with Stage(lambda: Grid(COLUMNS)).run_test(size=(40, 6)) as pilot:
        grid = await _grid(pilot, "aa bb cc")
        await pilot.press("j")
        grid.head((Column("age", ">", least=3), Column("colour", least=6)))
        grid.show([Row(key, (str(n), "red")) for n, key in enumerate(("bb", "cc"))])
        await pilot.pause()
        assert _read(pilot.app)[0].split() == ["age", "colour"]
        assert grid.cursor == "bb"
        assert "red" in _read(pilot.app)[1]


async def test_a_divider_is_stepped_over() -> None:
    async with Stage(lambda: Grid(COLUMNS)).run_test() as pilot:
        grid = pilot.app.query_one(Grid)
        grid.focus()
        grid.show([*_rows("a"), Row("--", ("-- done", ""), heading=True), *_rows("b")])
        await pilot.press("j")
        assert grid.cursor == "b"
        await pilot.press("k")
        assert grid.cursor == "a"


def _entries(count: int, start: int = 0) -> list[LogEntry]:
    return [
        LogEntry(f"line {n}", "warn" if n % 10 == 0 else "info", "12:00:00", "engine")
        for n in range(start, start + count)
    ]


async def test_a_log_follows_until_the_reader_moves() -> None:
    async with Stage(LogView).run_test(size=(60, 8)) as pilot:
        log = pilot.app.query_one(LogView)
        log.focus()
        log.add(_entries(50))
        await pilot.pause()
        assert "line 49" in _lines(pilot.app)[-1]
        await pilot.press("k", "k", "k")
        before = _read(pilot.app)
        log.add(_entries(20, 50))
        await pilot.pause()
        assert _read(pilot.app) == before, "new lines must not move what is being read"
        assert log.unseen == 20
        assert "20 new" in log.describe()
        await pilot.press("G")
        await pilot.pause()
        assert "line 69" in _lines(pilot.app)[-1]


async def test_levels_filters_and_matches() -> None:
    async with Stage(LogView).run_test(size=(60, 8)) as pilot:
        log = pilot.app.query_one(LogView)
        log.focus()
        log.add(_entries(50))
        await pilot.press("l", "l")
        assert [entry.text for entry in log.visible_entries] == [f"line {n}" for n in range(0, 50, 10)]
        await pilot.press("l", "l")
        log.filter('"line 4"')
        assert len(log.visible_entries) == 11
        log.filter("level=warn")
        assert len(log.visible_entries) == 5
        await pilot.press("h", "n")
        assert len(log.visible_entries) == 50
        assert log.entry is not None
        assert log.entry.text == "line 0"
        await pilot.press("N")
        assert log.entry.text == "line 40"


async def test_long_lines_wrap_and_the_log_is_bounded() -> None:
    async with Stage(LogView).run_test(size=(30, 10)) as pilot:
        log = pilot.app.query_one(LogView)
        log.focus()
        log.add([LogEntry("abcdefghij" * 6)])
        await pilot.press("w")
        await pilot.pause()
        assert "".join(line.strip() for line in _lines(pilot.app)) == "abcdefghij" * 6
        log.add(_entries(KEPT + 100))
        assert len(log.visible_entries) == KEPT


async def test_a_transcript_follows_until_the_reader_scrolls_up() -> None:
    async with Stage(Transcript).run_test(size=(40, 8)) as pilot:
        view = pilot.app.query_one(Transcript)
        view.focus()
        said = Said("assistant", "model")
        view.put(said)
        said.add("\n\n".join(f"paragraph {n}" for n in range(20)))
        view.measure()
        await pilot.pause()
        assert any("paragraph 19" in line for line in _lines(pilot.app))
        await pilot.press("k", "k", "k")
        before = _read(pilot.app)
        said.add("\n\nand more\n\nand more")
        view.measure()
        await pilot.pause()
        assert _read(pilot.app) == before
        await pilot.press("G")
        said.finish("stop, 3 tokens")
        view.measure()
        await pilot.pause()
        assert any("stop, 3 tokens" in line for line in _lines(pilot.app))
        assert view.following


async def test_only_the_lines_that_grew_are_painted() -> None:
    async with Stage(Transcript).run_test(size=(60, 20)) as pilot:
        view = pilot.app.query_one(Transcript)
        said = Said("assistant", "model")
        view.put(said)
        said.add("\n".join(f"line {n}" for n in range(10)))
        view.measure()
        await pilot.pause()
        painted: list[int] = []
        draw = view.render_line
        view.render_line = lambda y: (painted.append(y), draw(y))[1]  # type: ignore[method-assign]
        said.add(" grows")
        view.measure()
        await pilot.pause()
        assert painted
        assert min(painted) == 10


async def test_a_canvas_paints_only_the_lines_that_changed() -> None:
    words = ["one", "two", "three"]
    async with Stage(lambda: Canvas(lambda _width, _height: [[(word, "text")] for word in words])).run_test(
        size=(20, 5)
    ) as pilot:
        canvas = pilot.app.query_one(Canvas)
        canvas.styles.height = 3
        await pilot.pause()
        painted: list[int] = []
        draw = canvas.render_line
        canvas.render_line = lambda y: (painted.append(y), draw(y))[1]  # type: ignore[method-assign]
        canvas.redraw()
        await pilot.pause()
        assert painted == []
        words[1] = "other"
        canvas.redraw()
        await pilot.pause()
        assert painted == [1]
        assert _lines(pilot.app)[:3] == ["one", "other", "three"]
        words.pop()
        canvas.redraw()
        await pilot.pause()
        assert _lines(pilot.app)[:3] == ["one", "other", ""]
        cast(Any, pilot.app).inks = inks(DARK, colour=False)
        painted.clear()
        canvas.redraw()
        await pilot.pause()
        assert painted == [0, 1, 2], "other inks are other lines"


async def test_a_new_footnote_paints_no_content() -> None:
    async with Stage(lambda: Panel(Canvas(lambda _width, _height: [[("content", "text")]]))).run_test(
        size=(30, 6)
    ) as pilot:
        panel, canvas = pilot.app.query_one(Panel), pilot.app.query_one(Canvas)
        panel.styles.border = ("round", "white")
        await pilot.pause()
        painted: list[int] = []
        draw = canvas.render_line
        canvas.render_line = lambda y: (painted.append(y), draw(y))[1]  # type: ignore[method-assign]
        panel.footnote("7 tok/s")
        panel.entitle("Model")
        await pilot.pause()
        assert painted == []
        assert "7 tok/s" in _lines(pilot.app)[-1]
        assert "Model" in _lines(pilot.app)[0]


async def test_turns_are_bounded_and_text_is_selected() -> None:
    async with Stage(Transcript).run_test(size=(40, 20)) as pilot:
        view = pilot.app.query_one(Transcript)
        for number in range(MAX_TURNS + 5):
            view.put(Said("user", "you", f"question {number}"))
        assert len(view.turns) == MAX_TURNS
        view.drop_from(0)
        view.put(Said("user", "you", "hello world"))
        await pilot.pause()
        await pilot.mouse_down(offset=(3, 1))
        await pilot.hover(offset=(8, 1))
        await pilot.mouse_up(offset=(8, 1))
        await pilot.pause()
        assert "hello" in (pilot.app.screen.get_selected_text() or "")
