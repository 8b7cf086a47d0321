"""A passage in its surroundings, as a dialog: what a row of a list opens."""

from __future__ import annotations

from typing import ClassVar, cast

from lathe.engine.rag.requests import PassageView
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.views.answers import passage_lines
from lathe.tui.widgets.base import Look, Words
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.sheet import Sheet
from textual.app import ComposeResult
from textual.binding import Binding, BindingType


class PassageDialog(Dialog[None]):
    """Read a passage; `y` copies it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", "copy", show=False, id="passage.copy", tooltip="Copy the passage"),
    ]

    def __init__(self, found: PassageView) -> None:
        super().__init__(found.passage.path)
        self._found = found

    def body(self) -> ComposeResult:
        """The text, and where it is from."""
        yield Sheet(self._lines)
        yield Words(f"{self._found.source}   y copies, esc closes", classes="quiet")

    def on_mount(self) -> None:
        """Scroll at once."""
        self.query_one(".dialog").add_class("-broad")
        sheet = self.query_one(Sheet)
        sheet.styles.height = min(26, self.app.size.height - 8)
        sheet.focus()

    def _lines(self, width: int) -> list[Line]:
        return passage_lines(self._found, None, width - 1, cast(Look, self.app).glyphs)

    def action_copy(self) -> None:
        """Copy the passage."""
        from lathe.tui.app import LatheApp

        cast(LatheApp, self.app).copy(self._found.passage.text, "Passage")
