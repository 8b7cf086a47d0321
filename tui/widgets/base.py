"""The foundations of every widget: access to inks and glyphs, and the three ways to show text.

    Canvas   draws lines by itself (render_line), for everything that changes every second
    Words    a Static for text that stays
    Panel    a bordered box with a title

Invariant: none of them reads markup; foreign text passes `lathe.tui.text` here, whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, cast

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
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
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
    """Draws the lines of a painter (or of its own `draw`), cached until `redraw`.

    Only lines that came out differently are painted: a terminal far away gets few bytes, and Textual renders whatever
    lies between two changed regions, so one unchanged row at the edge would cost the whole screen.
    """

    DEFAULT_CSS = "Canvas { height: 1; }"

    def __init__(self, painter: Painter | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._painter = painter
        self._lines: list[Line] = []
        self._strips: list[Strip | None] | None = None
        """One per line, made when it is painted; None: everything is to be drawn anew."""
        self._drawn: tuple[Size, Inks | None] = (Size(0, 0), None)

    def draw(self, width: int, height: int) -> list[Line]:
        """The lines to show; fewer than `height` leave the rest blank."""
        return self._painter(width, height) if self._painter else []

    def redraw(self) -> None:
        """Draw anew, and paint what differs."""
        size = self.size
        if self._strips is None or self._drawn != (size, self.look.inks) or not size:
            self._strips = None
            self.refresh()
            return
        before, strips = self._lines, self._strips
        self._lines = self.draw(size.width, size.height)
        self._strips = [None] * len(self._lines)
        for y in range(max(len(before), len(self._lines))):
            if y < min(len(before), len(self._lines)) and before[y] == self._lines[y]:
                self._strips[y] = strips[y]
            else:
                self.refresh(Region(0, y, size.width, 1))

    def notify_style_update(self) -> None:
        """Forget what was drawn in another theme."""
        self._strips = None
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """One strip of the drawing."""
        size = self.size
        if self._strips is None or self._drawn != (size, self.look.inks):
            self._lines = self.draw(size.width, size.height)
            self._strips = [None] * len(self._lines)
            self._drawn = (size, self.look.inks)
        if y >= len(self._strips):
            return Strip.blank(size.width, self.base_style)
        strip = self._strips[y]
        if strip is None:
            strip = self._strips[y] = self.strip_of(self._lines[y], size.width)
        return strip


def grow(view: ScrollView, size: Size) -> None:
    """Give a view another virtual size; the screen is laid out anew only where a scroll bar comes or goes.

    Assigning the size would lay out everything: 50 ms at 160x50, ten times a second while an answer grows.
    """
    if view.virtual_size != size:
        view.set_reactive(Widget.virtual_size, size)
        view._scroll_update(size)


class Words(Static):
    """Text that stays: a string is shown as it is, never as markup."""

    def __init__(self, text: str | Text = "", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(_safe(text), markup=False, id=id, classes=classes)
        self._said = text

    def say(self, text: str | Text) -> None:
        """Show another text; the same one lays nothing out anew."""
        if text != self._said:
            self._said = text
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
        before, self._lettered = self._lettered, (title, note)
        # Setting the attributes of Textual would paint the whole panel, its content included.
        if title != before[0]:
            self._border_title = Content(title)
            self._paint_row(0)
        if note != before[1]:
            self._border_subtitle = Content(note)
            self._paint_row(self.outer_size.height - 1)

    def _paint_row(self, y: int) -> None:
        across, down = self.content_offset
        self.refresh(Region(-across, y - down, self.outer_size.width, 1))

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
