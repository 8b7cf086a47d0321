"""`Sheet`: painted lines that scroll. Invariant: lines are made once per width, however often they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from lathe.tui.widgets.base import Painted
from lathe.tui.widgets.paint import Line
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip


class Sheet(Painted, ScrollView, can_focus=True):
    """A text of painted lines."""

    DEFAULT_CSS = """
    Sheet { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; overflow-x: hidden; overflow-y: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "scroll_by(1)", "down", show=False, id="sheet.down"),
        Binding("up,k", "scroll_by(-1)", "up", show=False, id="sheet.up"),
        Binding("ctrl+d,pagedown", "page(1)", "page down", show=False, id="sheet.page_down"),
        Binding("ctrl+u,pageup", "page(-1)", "page up", show=False, id="sheet.page_up"),
        Binding("g,home", "scroll_home", "top", show=False, id="sheet.first"),
        Binding("G,end", "scroll_end", "bottom", show=False, id="sheet.last"),
    ]

    def __init__(self, painter: Callable[[int], list[Line]], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._painter = painter
        self._lines: list[Line] = []
        self._made_for = -1

    def remake(self) -> None:
        """Make the lines anew."""
        width = self.scrollable_content_region.width
        self._lines, self._made_for = self._painter(width), width
        self.virtual_size = Size(width, len(self._lines))
        self.refresh()

    def on_resize(self) -> None:
        """Break the lines anew."""
        self.remake()

    def render_line(self, y: int) -> Strip:
        """One line of the text."""
        width, row = self.scrollable_content_region.width, y + self.scroll_offset.y
        if row >= len(self._lines):
            return Strip.blank(self.size.width, self.base_style)
        return self.strip_of(self._lines[row], width)

    def notify_style_update(self) -> None:
        """Repaint in the new theme."""
        super().notify_style_update()
        self.refresh()

    def action_scroll_by(self, step: int) -> None:
        """Scroll by a line."""
        self.scroll_relative(y=step, animate=False)

    def action_page(self, step: int) -> None:
        """Scroll by a page."""
        self.scroll_relative(y=step * max(1, self.size.height - 2), animate=False)
