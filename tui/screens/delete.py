"""The delete dialog of models: what is lost, what is kept, and a typed phrase where there is no way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.dialogs import Dialog, buttons
from lathe.tui.screens.forms import ChoiceBox
from lathe.tui.text import plain
from lathe.tui.widgets.base import Canvas, Words
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.paint import Line, cell
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Button, Input

FORGET, DELETE = "keep the files", "delete the files"
BIG = 1 << 30
"""Bytes from which deleting asks for a typed phrase."""


class DeleteDialog(Dialog[bool]):
    """The result says whether files go too; None does nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "next field", show=False, id="delete.next"),
        Binding("up", "app.focus_previous", "previous field", show=False, id="delete.previous"),
    ]

    def __init__(self, entries: Sequence[ModelEntry], board: Board) -> None:
        self._entries, self._board = entries, board
        what = entries[0].name if len(entries) == 1 else formats.many(len(entries), "model")
        super().__init__(f"Remove {what}?")

    def body(self) -> ComposeResult:
        """The models, the choice, the phrase, the buttons."""
        listing = Canvas(self._listing)
        listing.styles.height = min(6, len(self._entries))
        yield listing
        yield Words("")
        yield Horizontal(Words("files", classes="label"), ChoiceBox((FORGET, DELETE), FORGET, "files"), classes="row")
        yield Words("", id="effect")
        yield Horizontal(
            Words("type to confirm", classes="label"),
            TextBox(id="phrase"),
            classes="row",
            id="phrase-row",
        )
        yield buttons(("cancel", "Cancel", False), ("yes", "Remove", True))

    def on_mount(self) -> None:
        """Cancel is what an accidental enter does."""
        self.query_one("#cancel").focus()
        self._changed()

    def _listing(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = []
        for entry in self._entries[:height]:
            worker = self._board.worker(entry.id)
            state = "loaded: will be unloaded" if worker is not None else "not loaded"
            lines.append(
                [
                    (cell(entry.name, width - 34), "value"),
                    (cell(formats.size(entry.bytes), 8, ">"), "text"),
                    (f"  {state}", "warn" if worker else "dim"),
                ]
            )
        return lines

    @property
    def _files(self) -> bool:
        return self.query_one(ChoiceBox).value == DELETE

    @property
    def phrase(self) -> str:
        """What has to be typed; empty where a plain yes is enough."""
        if not self._files:
            return ""
        foreign = any(entry.origin != "made" for entry in self._entries)
        loaded = any(self._board.worker(entry.id) is not None for entry in self._entries)
        size = sum(entry.bytes for entry in self._entries)
        if not (foreign or loaded or size > BIG or len(self._entries) > 1):
            return ""
        return f"delete {len(self._entries)}" if len(self._entries) > 1 else "delete"

    @on(Input.Changed)
    def _changed(self) -> None:
        size = formats.long_size(sum(entry.bytes for entry in self._entries))
        foreign = [entry for entry in self._entries if entry.origin != "made"]
        inks = self.look.inks
        if not self._files:
            effect = plain("Only the entry goes; a scan finds the files again.", str(inks["dim"]))
        elif foreign:
            text = f"{size} are deleted for good, also {formats.many(len(foreign), 'file')} that Lathe did not make."
            effect = plain(text, str(inks["bad"]))
        else:
            effect = plain(f"{size} are deleted for good. Results measured with them are kept.", str(inks["bad"]))
        self.query_one("#effect", Words).say(effect)
        phrase = self.phrase
        self.query_one("#phrase-row").display = bool(phrase)
        box = self.query_one("#phrase", Input)
        box.placeholder = phrase
        self.query_one("#yes", Button).disabled = bool(phrase) and box.value.strip() != phrase

    @on(Input.Submitted)
    def _entered(self) -> None:
        if not self.query_one("#yes", Button).disabled:
            self.dismiss(self._files)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(self._files if event.button.id == "yes" else None)
