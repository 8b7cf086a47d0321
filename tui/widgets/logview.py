"""`LogView`: lines of a log, drawn line by line, with filter, search, levels, wrapping and following.

Holds at most `KEPT` lines. Invariant: while the reader has scrolled up nothing on the screen moves; new lines are
counted in the corner instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

import msgspec
from lathe.tui.filters import compile_filter, words
from lathe.tui.text import line as one_line
from lathe.tui.widgets.base import Painted, grow
from lathe.tui.widgets.paint import Line
from rich.cells import cell_len, chop_cells
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

KEPT = 5000
LEVELS = ("debug", "info", "warn", "error")
_INKS = {"debug": "dim", "info": "text", "warn": "warn", "error": "bad"}


class LogEntry(msgspec.Struct, frozen=True):
    """One line as shown; `text` is foreign."""

    text: str
    level: str = "info"
    time: str = ""
    source: str = ""
    ts: float = 0.0


class LogView(Painted, ScrollView, can_focus=True):
    """A log."""

    DEFAULT_CSS = """
    LogView { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; overflow-y: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False, id="log.down"),
        Binding("up,k", "move(-1)", "Up", show=False, id="log.up"),
        Binding("g,home", "jump(0)", "First", show=False, id="log.first"),
        Binding("G,end", "jump(-1)", "Last", show=False, id="log.last"),
        Binding("ctrl+d,pagedown", "page(1)", "Page down", show=False, id="log.page_down"),
        Binding("ctrl+u,pageup", "page(-1)", "Page up", show=False, id="log.page_up"),
        Binding("f", "follow", "follow", show=False, id="log.follow", tooltip="Follow the end of the log, or stop"),
        Binding("w", "wrap", "wrap", show=False, id="log.wrap", tooltip="Wrap long lines"),
        Binding("l", "level", "level", show=False, id="log.level", tooltip="Show only lines of this level and above"),
        Binding("n", "match(1)", "next match", show=False, id="log.next", tooltip="Next line that matches the filter"),
        Binding("N", "match(-1)", "last match", show=False, id="log.previous", tooltip="Previous line that matches"),
        Binding(
            "h",
            "hide",
            "hide",
            show=False,
            id="log.hide",
            tooltip="Hide lines that do not match, or mark those that do",
        ),
    ]

    class Moved(Message):
        """The cursor stands on another line."""

        def __init__(self, view: LogView, entry: LogEntry | None) -> None:
            super().__init__()
            self.view = view
            self.entry = entry

        @property
        def control(self) -> LogView:
            """The log it happened in."""
            return self.view

    class Changed(Message):
        """Follow, level, wrapping or filter changed."""

    def __init__(self, *, empty: str = "No lines yet.", id: str | None = None) -> None:
        super().__init__(id=id)
        self.empty = empty
        self.following = True
        self.wrapping = False
        self.hiding = True
        self.level = 0
        self.filter_text = ""
        self.unseen = 0
        self.cursor: int | None = None
        """Index into the visible entries; None while following."""
        self._entries: deque[LogEntry] = deque(maxlen=KEPT)
        self._visible: list[LogEntry] = []
        self._rows: list[tuple[int, str, bool]] = []
        """(entry, text, first) per screen row."""
        self._width = 0

    # -- content ----------------------------------------------------------------------------------------------------
    @property
    def visible_entries(self) -> list[LogEntry]:
        """The lines shown, oldest first."""
        return self._visible

    @property
    def entry(self) -> LogEntry | None:
        """The line under the cursor, or the newest."""
        if not self._visible:
            return None
        return self._visible[-1 if self.cursor is None else min(self.cursor, len(self._visible) - 1)]

    def clear(self) -> None:
        """Forget all lines."""
        self._entries.clear()
        self.unseen = 0
        self._lay_out()

    def add(self, entries: Iterable[LogEntry]) -> None:
        """Append lines; one repaint for all of them."""
        new = list(entries)
        if not new:
            return
        dropped = max(0, len(self._entries) + len(new) - KEPT)
        self._entries.extend(new)
        if dropped:
            self._lay_out()
        else:
            kept = [entry for entry in new if self._passes(entry)]
            for entry in kept:
                self._visible.append(entry)
                self._append_rows(len(self._visible) - 1)
            self._resize_virtual()
            if not self.following:
                self.unseen += len(kept)
        if self.following:
            self._to_end()
        self.refresh()

    def filter(self, text: str) -> None:
        """Show (or, when not hiding, mark) the lines that match."""
        self.filter_text = text
        self._lay_out()
        self.post_message(self.Changed())

    def export(self) -> list[str]:
        """The lines shown, as text."""
        return [" ".join(part for part in (e.time, e.level, e.source, e.text) if part) for e in self._visible]

    def _passes(self, entry: LogEntry) -> bool:
        if entry.level in LEVELS and LEVELS.index(entry.level) < self.level:
            return False
        return not self.hiding or self._matches(entry)

    def _matches(self, entry: LogEntry) -> bool:
        test = compile_filter(self.filter_text)
        return test is None or test({"text": entry.text, "level": entry.level, "source": entry.source})

    def _lay_out(self) -> None:
        current = self.entry if self.cursor is not None else None
        self._visible = [entry for entry in self._entries if self._passes(entry)]
        self._rows = []
        for index in range(len(self._visible)):
            self._append_rows(index)
        self._resize_virtual()
        if current is not None:
            self.cursor = next((i for i, e in enumerate(self._visible) if e is current), None)
        if self.following:
            self._to_end()
        self.refresh()

    def _append_rows(self, index: int) -> None:
        entry = self._visible[index]
        text = one_line(entry.text, 8_000 if self.wrapping else 1_000)
        room = self._width - self._lead(entry)
        if not self.wrapping or room < 10 or cell_len(text) <= room:
            self._rows.append((index, text, True))
            return
        for number, piece in enumerate(chop_cells(text, room)):
            self._rows.append((index, piece, number == 0))

    def _resize_virtual(self) -> None:
        if self.is_mounted:
            grow(self, Size(self.size.width, len(self._rows)))

    def _to_end(self) -> None:
        if self.is_mounted:
            self.scroll_to(y=max(0, len(self._rows) - self.size.height), animate=False, force=True)
            self.unseen = 0

    # -- drawing ----------------------------------------------------------------------------------------------------
    def _lead(self, entry: LogEntry) -> int:
        lead = 1
        if entry.time:
            lead += 9
        if entry.source:
            lead += 6 + min(18, max(8, cell_len(one_line(entry.source)))) + 1
        return lead

    def render_line(self, y: int) -> Strip:
        """One row of the log."""
        width = self.scrollable_content_region.width
        if not self._rows:
            lines = (
                [f'No line matches "{self.filter_text}".', "esc clears the filter"]
                if self.filter_text
                else self.empty.split("\n")
            )
            top = max(0, (self.size.height - len(lines)) // 2)
            if top <= y < top + len(lines):
                text = one_line(lines[y - top])
                blank = " " * max(0, (width - cell_len(text)) // 2)
                return self.strip_of([(blank + text, "text" if y == top else "dim")], width)
            return Strip.blank(width, self.base_style)
        number = y + self.scroll_offset.y
        if number >= len(self._rows):
            return Strip.blank(width, self.base_style)
        index, text, first = self._rows[number]
        entry = self._visible[index]
        lead: Line = []
        if first:
            if entry.time:
                lead.append((f" {entry.time}", "dim"))
            if entry.source:
                ink = _INKS.get(entry.level, "text")
                lead.append((f" {entry.level:<5}", "dim" if ink == "text" else ink))
                lead.append((f" {one_line(entry.source)[:18]:<8}", "accent"))
            lead.append((" ", "text"))
        else:
            lead.append((" " * self._lead(entry), "text"))
        line = [*lead, *self._marked(text, _INKS.get(entry.level, "text"))]
        ground = "cursor" if index == self.cursor and self.has_focus else "row" if index == self.cursor else None
        return self.strip_of(line, width, ground)

    def _marked(self, text: str, ink: str) -> Line:
        found = words(self.filter_text)
        if not found:
            return [(text, ink)]
        line: Line = []
        low = text.lower()
        at = 0
        while at < len(text):
            hits = [(low.find(word, at), word) for word in found if low.find(word, at) >= 0]
            if not hits or len(low) != len(text):
                break
            start, word = min(hits)
            line += [(text[at:start], ink), (text[start : start + len(word)], "match")]
            at = start + len(word)
        line.append((text[at:], ink))
        return line

    # -- moving -----------------------------------------------------------------------------------------------------
    def action_move(self, step: int) -> None:
        """Move the cursor; the first move stops following."""
        if not self._visible:
            return
        start = len(self._visible) - 1 if self.cursor is None else self.cursor
        if self.cursor is None and step < 0:
            step += 1 if len(self._visible) == 1 else 0
        self._put(start + step)

    def action_page(self, step: int) -> None:
        """Move by a page."""
        self.action_move(step * max(1, self.size.height - 2))

    def action_jump(self, index: int) -> None:
        """First line, or last line and follow."""
        if index < 0:
            self.cursor = None
            self.following = True
            self._to_end()
            self.refresh()
            self.post_message(self.Moved(self, self.entry))
            self.post_message(self.Changed())
        else:
            self._put(index)

    def _put(self, index: int) -> None:
        if not self._visible:
            return
        self.cursor = min(max(index, 0), len(self._visible) - 1)
        if self.following:
            self.following = False
            self.post_message(self.Changed())
        row = next((n for n, (i, _, _) in enumerate(self._rows) if i == self.cursor), 0)
        top = self.scroll_offset.y
        if row < top:
            self.scroll_to(y=row, animate=False, force=True)
        elif row >= top + self.size.height:
            self.scroll_to(y=row - self.size.height + 1, animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved(self, self.entry))

    def action_follow(self) -> None:
        """Follow the end, or stay here."""
        if self.following:
            self.following = False
            self.cursor = len(self._visible) - 1 if self._visible else None
            self.refresh()
        else:
            self.action_jump(-1)
        self.post_message(self.Changed())

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them."""
        self.wrapping = not self.wrapping
        self._lay_out()
        self.post_message(self.Changed())

    def action_level(self) -> None:
        """Raise the least level shown; after `error` all are shown again."""
        self.level = (self.level + 1) % len(LEVELS)
        self._lay_out()
        self.post_message(self.Changed())

    def action_hide(self) -> None:
        """Hide what does not match, or show all and mark what does."""
        self.hiding = not self.hiding
        self._lay_out()
        self.post_message(self.Changed())

    def action_match(self, step: int) -> None:
        """Go to the next line that matches the filter."""
        count = len(self._visible)
        if not self.filter_text or not count:
            return
        # Without a cursor the search begins at the top, or backwards at the end.
        start = self.cursor if self.cursor is not None else -1 if step > 0 else count
        for distance in range(1, count + 1):
            index = (start + step * distance) % count
            if self._matches(self._visible[index]):
                self._put(index)
                return

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scrolling up stops following."""
        event.stop()
        if self.following:
            self.following = False
            self.post_message(self.Changed())
        self.scroll_relative(y=-3, animate=False)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scrolling to the end follows again."""
        event.stop()
        self.scroll_relative(y=3, animate=False)
        if self.scroll_offset.y >= self.max_scroll_y and self.cursor is None and not self.following:
            self.following = True
            self.post_message(self.Changed())

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on a line."""
        number = event.y + self.scroll_offset.y
        if 0 <= number < len(self._rows):
            self._put(self._rows[number][0])

    def on_resize(self, event: events.Resize) -> None:
        """Wrap anew."""
        self._width = self.size.width - 1
        self._lay_out()

    def on_focus(self) -> None:
        """Show the cursor as active."""
        self.refresh()

    def on_blur(self) -> None:
        """Show the cursor as waiting."""
        self.refresh()

    def describe(self) -> str:
        """The state in a footnote: follow, level, wrapping, filter, lines not seen."""
        parts = ["following" if self.following else f"paused, {self.unseen} new" if self.unseen else "paused"]
        if self.level:
            parts.append(f"{LEVELS[self.level]} and above")
        if self.wrapping:
            parts.append("wrapped")
        if self.filter_text:
            parts.append(("filter: " if self.hiding else "marked: ") + self.filter_text)
        return "  ".join(parts)
