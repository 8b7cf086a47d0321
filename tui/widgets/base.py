"""The foundations of every widget: access to inks and glyphs, and the three ways to show text.

    Canvas   draws lines by itself (render_line), for everything that changes every second
    Words    a Static for text that stays
    Panel    a bordered box with a title

Invariant: none of them reads markup; foreign text passes `lathe.tui.text` here, whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, cast

from lathe.tui.glyphs import Glyphs
from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from lathe.tui.themes import Inks
from lathe.tui.widgets.paint import Line, crop, fit
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.scrollbar import ScrollBar, ScrollBarRender
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

    _base: Style | None = None

    @property
    def base_style(self) -> Style:
        """The widget's colours; Textual works them out anew at each call, which was half of a repaint."""
        if self._base is None:
            self._base = self.rich_style
        return self._base

    def notify_style_update(self) -> None:
        """Styles or theme changed: work them out again."""
        self._base = None
        super().notify_style_update()

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
        base = self.base_style
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
        return self._strips[y] if y < len(self._strips) else Strip.blank(size.width, self.base_style)


class Words(Static):
    """Text that stays: a string is shown as it is, never as markup."""

    def __init__(self, text: str | Text = "", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(_safe(text), markup=False, id=id, classes=classes)

    def say(self, text: str | Text) -> None:
        """Show another text."""
        self.update(_safe(text))


class Panel(Vertical):
    """A bordered box whose title and footnote are plain text, cut with our own ellipsis."""

    ALLOW_MAXIMIZE = True

    def __init__(self, *children: Widget, title: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(*children, id=id, classes=classes)
        self._title_parts: tuple[str, ...] = (title,)
        self._note_parts: tuple[str, ...] = ()
        self._lettered: tuple[str, str] = ("", "")

    def on_mount(self) -> None:
        """Show the title given at the start."""
        self._letter()

    def on_resize(self) -> None:
        """Cut the texts anew."""
        self._letter()

    def entitle(self, *parts: str) -> None:
        """Set the text in the upper border: the name, then facts; empty parts are left out."""
        self._title_parts = parts
        self._letter()

    def footnote(self, *parts: str) -> None:
        """Set the text in the lower border."""
        self._note_parts = parts
        self._letter()

    def _letter(self) -> None:
        if not self.is_attached:
            return
        title, note = self._joined(self._title_parts), self._joined(self._note_parts)
        if (title, note) != self._lettered:
            self._lettered = (title, note)
            self.border_title, self.border_subtitle = cast(Any, Content(title)), cast(Any, Content(note))

    def _joined(self, parts: tuple[str, ...]) -> str:
        glyphs = look_of(self).glyphs
        text = f" {glyphs.separator} ".join(one_line(part) for part in parts if part)
        return crop(text, self.outer_size.width - 6, glyphs.ellipsis) if self.outer_size.width else text


class PlainScrollBar(ScrollBarRender):
    """A scroll bar of blanks, for terminals without block characters."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "] * 8


def use_glyphs(glyphs: Glyphs) -> None:
    """Draw scroll bars, too, with characters of the set; Textual keeps their renderer in the class."""
    ScrollBar.renderer = ScrollBarRender if glyphs.name == "unicode" else PlainScrollBar


def _safe(text: str | Text) -> str | Text:
    if isinstance(text, str):
        return clean(text)
    if clean(text.plain) == text.plain:
        return text
    # A built text with something unsafe in it: keep the words, drop the styling.
    return Text(clean(text.plain))
