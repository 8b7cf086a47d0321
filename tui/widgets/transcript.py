"""`Transcript`: the turns of a conversation, drawn line by line, growing while the model speaks.

Text below the fold costs nothing to draw, so an answer never waits for the reader; the view follows the end until the
reader scrolls up and then stays. Invariant: model output passes the sanitiser here, piece by piece; what is kept for
copying is what came.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import ClassVar

from lathe.tui.glyphs import Glyphs
from lathe.tui.text import Cleaner
from lathe.tui.text import line as one_line
from lathe.tui.widgets.base import Painted, grow
from lathe.tui.widgets.markdown import Document
from lathe.tui.widgets.paint import Line, wrap
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

MAX_TURNS = 200
"""Turns kept on the screen; older ones stay in the conversation."""
MAX_SHOWN = 400_000
"""Characters of one turn that are drawn."""
MAX_STRIPS = 1000
"""Drawn lines kept for scrolling."""
INDENT = 2
_INKS = {"user": "dim", "assistant": "accent", "problem": "bad"}


class Said:
    """One turn: who, what so far, at what cost."""

    def __init__(self, role: str, speaker: str, text: str = "", *, rich: bool = True) -> None:
        self.role = role
        self.text = text
        """As received."""
        self._speaker = one_line(speaker, 80)
        self._cleaner = Cleaner()
        self._document = Document(rich=rich and role == "assistant")
        self._shown = 0
        self._cost = ""
        self._bad = False
        self._lines: list[Line] | None = None
        self._laid_for: tuple[int, str] = (0, "")
        if text:
            self._show(self._cleaner.feed(text) + self._cleaner.close())
            self._document.close()

    def add(self, piece: str) -> None:
        """Take a piece of the answer."""
        self.text += piece
        self._show(self._cleaner.feed(piece))

    def _show(self, text: str) -> None:
        room = MAX_SHOWN - self._shown
        if room > 0 and text:
            self._document.add(text[:room])
            self._lines = None
        self._shown += len(text)

    def finish(self, cost: str, *, bad: bool = False) -> None:
        """No more will come."""
        self._show(self._cleaner.close())
        self._document.close()
        self._cost = f"{cost}  (the rest is not shown; y copies all)" if self._shown > MAX_SHOWN else cost
        self._bad = bad
        self._lines = None

    def lines(self, width: int, glyphs: Glyphs) -> list[Line]:
        """The turn, laid out; ends with an empty line."""
        if self._lines is None or self._laid_for != (width, glyphs.name):
            lead = (" " * INDENT, "text")
            body = [[lead, *line] for line in self._document.lines(max(1, width - INDENT), glyphs)]
            cost = wrap(self._cost, max(1, width - INDENT), "bad" if self._bad else "dim", 3) if self._cost else []
            self._lines = [[(self._speaker, _INKS.get(self.role, "dim"))], *body, *([lead, *line] for line in cost), []]
            self._laid_for = (width, glyphs.name)
        return self._lines


class Transcript(Painted, ScrollView, can_focus=True):
    """The turns."""

    DEFAULT_CSS = """
    Transcript { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; overflow-y: auto; }
    """
    ALLOW_SELECT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "step(1)", "down", show=False, id="transcript.down"),
        Binding("up,k", "step(-1)", "up", show=False, id="transcript.up"),
        Binding("ctrl+d,pagedown", "page(1)", "page down", show=False, id="transcript.page_down"),
        Binding("ctrl+u,pageup", "page(-1)", "page up", show=False, id="transcript.page_up"),
        Binding("g,home", "jump(0)", "first", show=False, id="transcript.first"),
        Binding("G,end", "jump(-1)", "last", show=False, id="transcript.last"),
    ]

    class Followed(Message):
        """The reader left the end, or came back to it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.turns: list[Said] = []
        self.following = True
        self._starts: list[int] = []
        self._height = 0
        self._last: list[Line] = []
        self._strips: dict[int, Strip] = {}

    def put(self, said: Said) -> None:
        """Append a turn and go to the end."""
        self.turns.append(said)
        if len(self.turns) > MAX_TURNS:
            del self.turns[: len(self.turns) - MAX_TURNS]
            self._strips.clear()
        self.following = True
        self.measure()

    def drop_from(self, index: int) -> None:
        """Forget the turns from `index` on."""
        del self.turns[index:]
        self._strips.clear()
        self.measure()

    def measure(self) -> None:
        """Take in what turns have become, and keep the end in sight where it was."""
        if not self.is_mounted:
            return
        width, height = self._room, 0
        starts: list[int] = []
        for said in self.turns:
            starts.append(height)
            height += len(said.lines(width, self.glyphs))
        changed = self._first_change(starts)
        self._starts, self._height = starts, height
        self._last = list(self.turns[-1].lines(width, self.glyphs)) if self.turns else []
        for number in [n for n in self._strips if n >= changed]:
            del self._strips[number]
        top = self.scroll_offset.y
        grow(self, Size(self.size.width, height))
        if self.following:
            self.scroll_to(y=max(0, height - self.size.height), animate=False, force=True, immediate=True)
        if self.scroll_offset.y == top:
            # Nothing moved: only the lines from the first change on are painted.
            y = max(0, changed - top)
            if y < self.size.height:
                self.refresh(Region(0, y, self.size.width, self.size.height - y))
        else:
            self.refresh()

    def _first_change(self, starts: list[int]) -> int:
        """The first line that differs from what was measured last; turns before the last one do not change."""
        if len(starts) != len(self._starts) or starts != self._starts:
            return self._starts[-1] if self._starts and starts[: len(self._starts)] == self._starts else 0
        lines = self.turns[-1].lines(self._room, self.glyphs) if self.turns else []
        same = next((n for n, (a, b) in enumerate(zip(self._last, lines, strict=False)) if a != b), len(self._last))
        return (starts[-1] if starts else 0) + same

    @property
    def _room(self) -> int:
        """Cells of text; one is kept for the scroll bar, so that its coming wraps nothing anew."""
        return max(1, self.size.width - 2)

    def _line(self, number: int) -> Line | None:
        if not 0 <= number < self._height or not self._starts:
            return None
        index = bisect_right(self._starts, number) - 1
        lines = self.turns[index].lines(self._room, self.glyphs) if index < len(self.turns) else []
        offset = number - self._starts[index]
        return lines[offset] if offset < len(lines) else None

    def render_line(self, y: int) -> Strip:
        """One line of the conversation, with what the mouse has selected."""
        number = y + self.scroll_offset.y
        selection = self.text_selection
        if selection is None:
            if number not in self._strips:
                if len(self._strips) > MAX_STRIPS:
                    self._strips.clear()
                self._strips[number] = self._strip(number)
            return self._strips[number]
        span = selection.get_span(number)
        strip = self._strip(number)
        if span is not None:
            start, end = span
            end = self.size.width if end == -1 else end
            chosen = self.screen.get_component_rich_style("screen--selection")
            strip = Strip.join([strip.crop(0, start), strip.crop(start, end).apply_style(chosen), strip.crop(end)])
            strip = strip.apply_offsets(0, number)
        return strip

    def _strip(self, number: int) -> Strip:
        line = self._line(number)
        if line is None:
            return Strip.blank(self.size.width, self.base_style)
        return self.strip_of([(" ", "text"), *line], self.size.width).apply_offsets(0, number)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text the mouse went over."""
        text = "\n".join(" " + "".join(part for part, _ in self._line(n) or []) for n in range(self._height))
        return selection.extract(text), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Show the selection."""
        self.refresh()

    def notify_style_update(self) -> None:
        """Repaint in the new theme."""
        super().notify_style_update()
        self._strips.clear()
        self.refresh()

    def on_resize(self) -> None:
        """Wrap anew."""
        self._strips.clear()
        self._starts = []
        self.measure()

    # -- moving -----------------------------------------------------------------------------------------------------
    def _go(self, y: float) -> None:
        end = max(0, self._height - self.size.height)
        self.scroll_to(y=min(max(0, y), end), animate=False, force=True, immediate=True)
        following = y >= end
        if following != self.following:
            self.following = following
            self.post_message(self.Followed())

    def action_step(self, step: int) -> None:
        """Scroll by a line."""
        self._go(self.scroll_offset.y + step)

    def action_page(self, step: int) -> None:
        """Scroll by a page."""
        self._go(self.scroll_offset.y + step * max(1, self.size.height - 2))

    def action_jump(self, index: int) -> None:
        """The beginning, or the end and follow it."""
        self._go(0 if index >= 0 else self._height)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Leave the end."""
        event.stop()
        self._go(self.scroll_offset.y - 3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Towards the end."""
        event.stop()
        self._go(self.scroll_offset.y + 3)
