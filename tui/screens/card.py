"""The whole card of one model, for terminals where the side panel is too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lathe.engine.workbench import ModelDetails
from lathe.store.models import ModelEntry
from lathe.tui.board import Board
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.screens.reading import Reading
from lathe.tui.views.models import card_lines, card_of
from lathe.tui.widgets.base import Canvas, Panel, Words
from lathe.tui.widgets.paint import Line
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp


class CardView(Dialog[None]):
    """Everything known about a model."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "template", "template", show=False, id="card.template", tooltip="The model's chat template"),
        Binding("enter", "cancel", "close", show=False, id="card.close", tooltip="Back to the list"),
    ]

    def __init__(self, entry: ModelEntry, details: ModelDetails | None, board: Board) -> None:
        super().__init__(entry.name)
        self._entry, self._board = entry, board
        self._details = details if details is not None and details.entry.id == entry.id else None

    def body(self) -> ComposeResult:
        """The card."""
        card = Canvas(self._draw)
        card.styles.height = 18
        yield card
        yield Words("t chat template   esc close", classes="quiet")

    def on_mount(self) -> None:
        """Use the width."""
        self.query_one(Panel).add_class("-broad")

    def _draw(self, width: int, height: int) -> list[Line]:
        names = {entry.id: entry.name for entry in self._board.models}
        fit = self._board.fits.get(self._entry.id)
        glyphs = cast("LatheApp", self.app).glyphs
        aliases = self._board.aliases_of(self._entry)
        return card_lines(self._entry, self._details, fit, names, width, height, glyphs, aliases=aliases)

    def action_template(self) -> None:
        """Read the chat template."""
        card = self._details.card if self._details else card_of(self._entry)
        if card.chat_template:
            facts = f"sha256 {card.template_sha256}" if card.template_sha256 else ""
            self.app.push_screen(Reading(f"Chat template of {self._entry.name}", card.chat_template, facts))
        else:
            self.app.notify("This model has no chat template; chats fall back to plain text.", severity="warning")
