"""Dialogs to read and to choose: a list, names with values, a long foreign text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import msgspec
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.text import line as one_line
from lathe.tui.text import paragraphs
from lathe.tui.widgets.base import Words
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Input

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp


class Choice(msgspec.Struct, frozen=True):
    """One line of a `Choose`."""

    key: str
    label: str
    note: str = ""


class Choose(Dialog[str]):
    """Pick one of a list; typing narrows it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move(1)", "down", show=False, id="choose.down"),
        Binding("up", "move(-1)", "up", show=False, id="choose.up"),
    ]

    def __init__(
        self, title: str, choices: Sequence[Choice], *, current: str = "", empty: str = "Nothing to choose."
    ) -> None:
        super().__init__(title)
        self._choices, self._current, self._empty = choices, current, empty

    def body(self) -> ComposeResult:
        """A filter and the list."""
        yield TextBox(placeholder="type to narrow")
        yield Grid((Column("", least=12, most=60, flex=True), Column("", ">", most=40)), empty=self._empty)

    def on_mount(self) -> None:
        """Fill the list."""
        rows = [Row(c.key, (c.label, (c.note, "dim")), {"label": c.label, "note": c.note}) for c in self._choices]
        grid = self.query_one(Grid)
        grid.styles.height = min(14, max(2, len(rows)))
        grid.show(rows)
        grid.select(self._current)
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _narrow(self, event: Input.Changed) -> None:
        self.query_one(Grid).filter(event.value)

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.query_one(Grid).action_open()

    @on(Grid.Opened)
    def _picked(self, message: Grid.Opened) -> None:
        self.dismiss(message.key)

    def action_move(self, step: int) -> None:
        """Move in the list while typing."""
        self.query_one(Grid).action_move(step)


class Facts(Dialog[None]):
    """Names and values to read."""

    def __init__(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        super().__init__(title)
        self._facts = facts

    def body(self) -> ComposeResult:
        """A scrolling list."""
        width = max((len(name) for name, _ in self._facts), default=0)
        text = Text()
        dim = self.look.inks["dim"]
        for name, value in self._facts:
            text.append(f"{one_line(name):<{width}}  ", dim)
            text.append(one_line(value, 500) + "\n")
        with VerticalScroll(classes="reading"):
            yield Words(text)
        yield Words("esc close", classes="quiet")

    def on_mount(self) -> None:
        """Scroll at once."""
        self.query_one(VerticalScroll).focus()


class Reading(Dialog[None]):
    """A long foreign text to scroll through; `y` copies it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", "copy", show=False, id="reading.copy", tooltip="Copy the text"),
        Binding("j", "scroll(1)", "down", show=False, id="reading.down"),
        Binding("k", "scroll(-1)", "up", show=False, id="reading.up"),
    ]

    def __init__(self, title: str, text: str | Text, facts: str = "") -> None:
        super().__init__(title)
        self._text, self._facts = text, facts

    def body(self) -> ComposeResult:
        """Facts and the text."""
        if self._facts:
            yield Words(self._facts, classes="quiet")
        with VerticalScroll(classes="reading"):
            yield Words(paragraphs(self._text) if isinstance(self._text, str) else self._text)
        yield Words("esc close   y copy   j k scroll", classes="quiet")

    def on_mount(self) -> None:
        """Scroll at once."""
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, step: int) -> None:
        """Scroll by a line."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)

    def action_copy(self) -> None:
        """Copy the whole text."""
        text = self._text if isinstance(self._text, str) else self._text.plain
        cast("LatheApp", self.app).copy(text, self._title)
