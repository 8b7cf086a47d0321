"""The foundations of every widget: access to inks and glyphs, and the three ways to show text.

    Canvas   draws lines by itself (render_line), for everything that changes every second
    Words    a Static for text that stays
    Panel    a bordered box with a title

Invariant: none of them reads markup; foreign text passes `lathe.tui.text` here, whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from lathe.tui.glyphs import Glyphs
from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from lathe.tui.themes import Inks
from lathe.tui.widgets.paint import Line, fit
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

Painter = Callable[[int, int], list[Line]]


class Look(Protocol):
    """What widgets need of the app."""

    inks: Inks
    glyphs: Glyphs


def look_of(widget: Widget) -> Look:
    """Inks and glyphs of the app a widget lives in."""
    return cast(Look, widget.app)


class Painted(Widget):
    """A widget that draws its own lines with inks."""

    @property
    def look(self) -> Look:
        """Inks and glyphs of the running app."""
        return look_of(self)

    @property
    def glyphs(self) -> Glyphs:
        """The active glyph set."""
        return self.look.glyphs

    def strip_of(self, line: Line, width: int, ground: str | None = None) -> Strip:
        """Turn a line into a strip of exactly `width` cells; `ground` names an ink laid under all of it."""
        base = self.rich_style
        inks = self.look.inks
        under = inks[ground] if ground else None
        segments = []
        for text, ink in fit(line, width):
            style: Style = base + inks[ink]
            if under is not None:
                style = style + Style(bgcolor=under.bgcolor, reverse=under.reverse, underline=under.underline)
            segments.append(Segment(clean(text), style))
        return Strip(segments).adjust_cell_length(width, base)


class Canvas(Painted):
    """Draws the lines of a painter (or of its own `draw`), cached until `redraw`."""

    DEFAULT_CSS = "Canvas { height: 1; }"

    def __init__(self, painter: Painter | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._painter = painter
        self._strips: list[Strip] | None = None
        self._drawn = Size(0, 0)

    def draw(self, width: int, height: int) -> list[Line]:
        """The lines to show; fewer than `height` leave the rest blank."""
        return self._painter(width, height) if self._painter else []

    def redraw(self) -> None:
        """Draw anew at the next repaint."""
        self._strips = None
        self.refresh()

    def notify_style_update(self) -> None:
        """Forget what was drawn in another theme."""
        self._strips = None
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """One strip of the drawing."""
        size = self.size
        if self._strips is None or self._drawn != size:
            self._strips = [self.strip_of(line, size.width) for line in self.draw(size.width, size.height)]
            self._drawn = size
        return self._strips[y] if y < len(self._strips) else Strip.blank(size.width, self.rich_style)


class Words(Static):
    """Text that stays: a string is shown as it is, never as markup."""

    def __init__(self, text: str | Text = "", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(_safe(text), markup=False, id=id, classes=classes)

    def say(self, text: str | Text) -> None:
        """Show another text."""
        self.update(_safe(text))


class Panel(Vertical):
    """A bordered box whose title and footnote are plain text."""

    def __init__(self, *children: Widget, title: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(*children, id=id, classes=classes)
        self.title_text = ""
        self.footnote_text = ""
        if title:
            self.entitle(title)

    def entitle(self, *parts: str) -> None:
        """Set the text in the upper border: the name, then facts; empty parts are left out."""
        title = self._joined(parts)
        if title != self.title_text:
            self.title_text = title
            self.border_title = cast(Any, Content(title))

    def footnote(self, *parts: str) -> None:
        """Set the text in the lower border."""
        text = self._joined(parts)
        if text != self.footnote_text:
            self.footnote_text = text
            self.border_subtitle = cast(Any, Content(text))

    def _joined(self, parts: tuple[str, ...]) -> str:
        glyphs: Glyphs | None = getattr(self.app, "glyphs", None) if self.is_attached else None
        return f" {glyphs.separator if glyphs else '-'} ".join(one_line(part) for part in parts if part)


def _safe(text: str | Text) -> str | Text:
    if isinstance(text, str):
        return clean(text)
    if clean(text.plain) == text.plain:
        return text
    # A built text with something unsafe in it: keep the words, drop the styling.
    return Text(clean(text.plain))
