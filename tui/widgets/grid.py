"""`Grid`: the one table of the app, drawn line by line.

Rows are values with a key; `show` replaces them all and repaints only the lines that differ. Columns are dropped by
rank where the terminal is narrow. Measured: Textual's DataTable needs 70 ms for 200 changed cells, this 1 ms.
Invariant: the cursor, the marks and the scroll position belong to keys, so nothing moves under the reader; a list of
what comes and goes (`newest`) stays at its top until somebody reads on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import msgspec
from lathe.tui.filters import compile_filter
from lathe.tui.text import line as one_line
from lathe.tui.widgets.base import Painted, grow
from lathe.tui.widgets.columns import Column, lay_out
from lathe.tui.widgets.paint import Line, Span, cell
from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

Cell = str | Span
LEAD, GAP = 2, 2
"""Cells for cursor and mark, and between columns."""


class Row(msgspec.Struct, frozen=True):
    """One row: `cells` in the order of the columns."""

    key: str
    cells: tuple[Cell, ...]
    fields: dict[str, str | float | None] = {}
    """For filters and sorting."""
    heading: bool = False
    """A divider: the cursor passes over it."""


class Grid(Painted, ScrollView, can_focus=True):
    """A table with a cursor."""

    DEFAULT_CSS = """
    Grid { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; overflow-y: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False, id="grid.down"),
        Binding("up,k", "move(-1)", "Up", show=False, id="grid.up"),
        Binding("g,home", "jump(0)", "First", show=False, id="grid.first"),
        Binding("G,end", "jump(-1)", "Last", show=False, id="grid.last"),
        Binding("ctrl+d,pagedown", "page(1)", "Page down", show=False, id="grid.page_down"),
        Binding("ctrl+u,pageup", "page(-1)", "Page up", show=False, id="grid.page_up"),
        Binding("enter", "open", "Open", show=False, id="grid.open"),
    ]

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, grid: Grid, key: str | None) -> None:
            super().__init__()
            self.grid = grid
            self.key = key

        @property
        def control(self) -> Grid:
            """The table it happened in."""
            return self.grid

    class Opened(Moved):
        """Enter or a second click on a row."""

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        empty: str | Callable[[], str] = "Nothing here yet.",
        markable: bool = False,
        newest: bool = False,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.columns = list(columns)
        self.empty = empty
        self.markable = markable
        self.newest = newest
        self._follows = newest
        """Whether cursor and view stay at the first row, the newest: until the reader moves, and again from there."""
        self.marks: set[str] = set()
        self.filter_text = ""
        self.sort_by: str | None = None
        self.sort_down = False
        self.cursor: str | None = None
        self._all: list[Row] = []
        self._rows: list[Row] = []
        self._natural: list[int] = []
        self._layout: list[tuple[int, int]] = []
        self._laid_out_for = -1
        self._head = 1 if any(column.title for column in columns) else 0
        """Rows of the heading."""

    # -- what is shown ----------------------------------------------------------------------------------------------
    @property
    def rows(self) -> list[Row]:
        """The rows as shown: filtered and sorted."""
        return self._rows

    @property
    def total(self) -> int:
        """Rows before the filter."""
        return sum(not row.heading for row in self._all)

    def show(self, rows: Iterable[Row]) -> None:
        """Replace the rows; the cursor stays on its key."""
        self._all = list(rows)
        self.marks &= {row.key for row in self._all}
        self._arrange()

    def head(self, columns: Sequence[Column]) -> None:
        """Show other columns; the rows given next have their cells."""
        if list(columns) != self.columns:
            self.columns, self._natural, self._laid_out_for = list(columns), [], -1
            self._all, self._rows = [], []
            self.refresh()

    def filter(self, text: str) -> None:
        """Show only the rows that match."""
        self.filter_text = text
        self._arrange()

    def sort(self, field: str | None, down: bool = False) -> None:
        """Order by a field; None keeps the order given."""
        self.sort_by, self.sort_down = field, down
        self._arrange()

    def next_sort(self) -> str:
        """Sort by the next sortable column; returns its title."""
        fields: list[str | None] = [None, *(column.sort for column in self.columns if column.sort)]
        self.sort((fields * 2)[fields.index(self.sort_by) + 1], self.sort_down)
        return next((column.title for column in self.columns if column.sort and column.sort == self.sort_by), "order")

    def select(self, key: str | None) -> None:
        """Put the cursor on a row."""
        keys = [row.key for row in self._rows]
        if key in keys:
            self._place(keys.index(key))

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return next((row for row in self._rows if row.key == self.cursor), None)

    def chosen(self) -> list[str]:
        """The marked rows in order, else the one under the cursor."""
        marked = [row.key for row in self._all if row.key in self.marks]
        return marked or ([self.cursor] if self.cursor is not None else [])

    def _arrange(self) -> None:
        test = compile_filter(self.filter_text)
        rows = [row for row in self._all if test is None or (not row.heading and test(row.fields))]
        if self.sort_by:
            field = self.sort_by
            rows = [row for row in rows if not row.heading]
            known = [row for row in rows if row.fields.get(field) is not None]
            unknown = [row for row in rows if row.fields.get(field) is None]
            known.sort(key=lambda row: _sort_key(row.fields[field]), reverse=self.sort_down)
            rows = known + unknown
        before = self._rows
        position = self._index(before)
        self._rows = rows
        if self.is_mounted:
            grow(self, Size(self.size.width, len(rows) + self._head))
        self._grow(rows)
        keys = [row.key for row in rows if not row.heading]
        if self.cursor not in keys or (self._follows and self.cursor != keys[0]):
            self.cursor = keys[0 if self._follows else min(position, len(keys) - 1)] if keys else None
            self.post_message(self.Moved(self, self.cursor))
            self.refresh()
        elif len(before) != len(rows):
            self.refresh()
        else:
            for index, (old, new) in enumerate(zip(before, rows, strict=True)):
                if old.cells != new.cells or old.key != new.key:
                    self._refresh_row(index)

    def _grow(self, rows: Sequence[Row]) -> None:
        """Widen columns to their content; they never shrink while the screen keeps its size."""
        # A flexible column's least width is for texts that are cut: short ones leave the room to other columns.
        widths = list(self._natural) or [max(cell_len(c.title), 0 if c.flex else c.least) for c in self.columns]
        for row in rows[:500]:
            if row.heading:
                continue
            for index, content in enumerate(row.cells):
                text = content if isinstance(content, str) else content[0]
                if len(text) > widths[index]:
                    widths[index] = min(self.columns[index].most, max(widths[index], cell_len(one_line(text))))
        if widths != self._natural or not self._layout:
            self._natural = widths
            self._laid_out_for = -1
            # Other widths move every row, also those whose cells stayed the same.
            self.refresh()

    def _columns_for(self, width: int) -> list[tuple[int, int]]:
        """(column, width) of what fits, in order."""
        if self._laid_out_for != width:
            natural = self._natural or [max(cell_len(c.title), c.least) for c in self.columns]
            self._layout = lay_out(self.columns, natural, width, LEAD, GAP)
            self._laid_out_for = width
        return self._layout

    # -- drawing ----------------------------------------------------------------------------------------------------
    def render_line(self, y: int) -> Strip:
        """The heading, a row, or the text of an empty table."""
        width = self.scrollable_content_region.width
        if not self._rows:
            return self.strip_of(self._empty_line(y, width), width)
        if y < self._head:
            return self.strip_of(self._heading(width), width)
        index = y - self._head + self.scroll_offset.y
        if index >= len(self._rows):
            return Strip.blank(width, self.base_style)
        row = self._rows[index]
        at_cursor = row.key == self.cursor
        ground = "cursor" if at_cursor and self.has_focus else "row" if at_cursor else None
        return self.strip_of(self._line(row, width), width, ground)

    def _heading(self, width: int) -> Line:
        line: Line = [("  ", "dim")]
        for index, room in self._columns_for(width):
            column = self.columns[index]
            title = column.title
            ink = "dim"
            if column.sort and column.sort == self.sort_by:
                ink = "accent"
                if cell_len(title) < room:
                    title += self.glyphs.down if self.sort_down else self.glyphs.up
            line += [(cell(title, room, column.align, self.glyphs.ellipsis), ink), (" " * GAP, "dim")]
        return line

    def _line(self, row: Row, width: int) -> Line:
        if row.heading:
            text, ink = _span(row.cells[0])
            return [("  ", "dim"), (text, ink)]
        lead = self.glyphs.cursor if row.key == self.cursor else " "
        mark = self.glyphs.marked if row.key in self.marks else " "
        line: Line = [(lead, "accent"), (mark, "mark")]
        for index, room in self._columns_for(width):
            text, ink = _span(row.cells[index])
            column = self.columns[index]
            shown = cell(text, room, column.align, self.glyphs.ellipsis, end=column.end)
            line += [(shown, ink), (" " * GAP, "text")]
        return line

    def _empty_line(self, y: int, width: int) -> Line:
        if self.filter_text and self._all:
            leave = "esc closes" if self.screen.is_modal else "esc clears the filter"
            lines = [f'No match for "{self.filter_text}".', leave]
        else:
            lines = (self.empty() if callable(self.empty) else self.empty).split("\n")
        top = max(0, (self.size.height - len(lines)) // 2 - 1)
        if top <= y < top + len(lines):
            text = one_line(lines[y - top])
            return [(" " * max(0, (width - cell_len(text)) // 2), "dim"), (text, "text" if y == top else "dim")]
        return []

    def _refresh_row(self, index: int) -> None:
        y = index + self._head - self.scroll_offset.y
        if self._head <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    # -- moving -----------------------------------------------------------------------------------------------------
    def _index(self, rows: Sequence[Row]) -> int:
        return next((index for index, row in enumerate(rows) if row.key == self.cursor), 0)

    def _place(self, index: int, step: int = 1) -> None:
        if not self._rows:
            return
        index = min(max(index, 0), len(self._rows) - 1)
        while 0 <= index < len(self._rows) and self._rows[index].heading:
            index += step
        if not 0 <= index < len(self._rows):
            return
        self._follows = False
        self._refresh_row(self._index(self._rows))
        self.cursor = self._rows[index].key
        self._refresh_row(index)
        self._reveal(index)
        self.post_message(self.Moved(self, self.cursor))

    def _reveal(self, index: int) -> None:
        page = self.size.height - self._head
        top = self.scroll_offset.y
        if self._follows:
            self.scroll_to(y=0, animate=False, force=True)
        elif index < top:
            self.scroll_to(y=index, animate=False, force=True)
        elif page > 0 and index >= top + page:
            self.scroll_to(y=index - page + 1, animate=False, force=True)

    def action_move(self, step: int) -> None:
        """Move the cursor by rows."""
        self._place(self._index(self._rows) + step, 1 if step > 0 else -1)

    def action_jump(self, index: int) -> None:
        """Move the cursor to the first or last row."""
        self._place(index if index >= 0 else len(self._rows) - 1, 1 if index >= 0 else -1)
        self._follows = self.newest and index == 0

    def action_page(self, step: int) -> None:
        """Move the cursor by a page."""
        self.action_move(step * max(1, self.size.height - 2))

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.cursor is not None:
            self.post_message(self.Opened(self, self.cursor))

    def toggle_mark(self) -> None:
        """Mark or unmark the row under the cursor and move on."""
        if self.markable and self.cursor is not None:
            self.marks ^= {self.cursor}
            self.action_move(1)
            self.refresh()

    def mark_all(self) -> None:
        """Mark every row shown, or none where all are marked."""
        if self.markable:
            keys = {row.key for row in self._rows if not row.heading}
            self.marks = self.marks - keys if keys <= self.marks else self.marks | keys
            self.refresh()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll without moving the cursor."""
        self._follows = False
        self.scroll_relative(y=3, animate=False)
        event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll without moving the cursor."""
        self.scroll_relative(y=-3, animate=False)
        event.stop()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is; on the cursor, open."""
        index = event.y - self._head + self.scroll_offset.y
        if event.y < self._head or not 0 <= index < len(self._rows) or self._rows[index].heading:
            return
        if self._rows[index].key == self.cursor and event.chain > 1:
            self.action_open()
        else:
            self._place(index)

    def on_focus(self) -> None:
        """Show the cursor as active."""
        self._refresh_row(self._index(self._rows))

    def on_blur(self) -> None:
        """Show the cursor as waiting."""
        self._refresh_row(self._index(self._rows))

    def on_resize(self) -> None:
        """Lay the columns out anew."""
        self._natural = []
        self._grow(self._rows)
        self._laid_out_for = -1
        grow(self, Size(self.size.width, len(self._rows) + self._head))
        self._reveal(self._index(self._rows))

    def notify_style_update(self) -> None:
        """Repaint in the new theme."""
        super().notify_style_update()
        self.refresh()

    def export(self) -> list[dict[str, str]]:
        """What is shown, as text by column title."""
        return [
            {column.title: _span(content)[0] for column, content in zip(self.columns, row.cells, strict=True)}
            for row in self._rows
            if not row.heading
        ]


def _span(content: Cell) -> Span:
    return (content, "text") if isinstance(content, str) else content


def _sort_key(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value).lower())
