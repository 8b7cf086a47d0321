"""The jump overlay: every place and every panel with the key that goes there; works from inside text boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lathe.tui.places import PLACES
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.widgets.base import Look, Words
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widget import Widget

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

LETTERS = "asdfghjklqwertyuiop"
"""Labels of panels; places without a digit have other letters."""


class Jump(ModalScreen[None]):
    """Labels over the panels, and the list of places."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "cancel", "cancel", show=False, id="jump.cancel", tooltip="Stay here"),
    ]

    def __init__(self, place: PlaceScreen) -> None:
        super().__init__()
        self._place = place
        self._targets: dict[str, Widget] = {}

    def compose(self) -> ComposeResult:
        """A label per focusable widget, the places in the middle."""
        look = cast(Look, self.app)
        inks = look.inks
        text = Text()
        for place in PLACES:
            text.append(f" {place.key or place.letter} ", inks["place"])
            text.append(f"  {place.title:<12}", inks["value"])
            text.append(f"{place.about}\n", inks["dim"])
        text.append("\n a b c  a panel of this place      esc  stay", inks["dim"])
        yield Words(text, id="places")
        shown = [w for w in self._place.query("#place *") if w.focusable and w.region.width > 0]
        for letter, widget in zip(LETTERS, shown, strict=False):
            self._targets[letter] = widget
            label = Words(Text(f" {letter} ", inks["alarm"]), classes="label")
            label.styles.offset = (widget.region.x + 1, widget.region.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        """Go where the key says."""
        key = event.character or ""
        app = cast("LatheApp", self.app)
        place = next((p for p in PLACES if (p.key or p.letter) == key), None)
        if place is not None:
            event.stop()
            app.run_worker(app.action_go(place.mode), exit_on_error=False)
        elif key in self._targets:
            event.stop()
            widget = self._targets[key]
            self.dismiss(None)
            self._place.set_focus(widget)

    def on_click(self) -> None:
        """Anywhere else: stay."""
        self.dismiss(None)

    def action_cancel(self) -> None:
        """Stay."""
        self.dismiss(None)
