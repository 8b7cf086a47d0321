"""Help: the keys of the open place, and on a second `?` all keys. Generated from the bindings, so never wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from lathe.tui.keys import display, flat
from lathe.tui.places import PLACES
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.widgets.base import Panel, Words
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.logview import LogView
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

NOTE = (
    "Text boxes keep letters and digits: esc leaves the box, ctrl+o and F2..F10 jump from inside it. "
    "Jobs, models and servers belong to the engine and continue when you quit."
)


class Help(Dialog[None]):
    """A generated list of keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "question_mark,f1", "more", "all keys", show=False, id="help.more", tooltip="All keys, or this place's"
        ),
    ]

    def __init__(self, place: PlaceScreen) -> None:
        super().__init__(f"Keys: {place.place.title}")
        self._place = place
        self._all = False

    def body(self) -> ComposeResult:
        """The list, and what keys cannot say."""
        with VerticalScroll(classes="reading help"):
            yield Words(self._text(), id="keys")

    def on_mount(self) -> None:
        """Scroll at once."""
        self.query_one(Panel).add_class("-broad")
        self.query_one(VerticalScroll).focus()
        self.say_footnote("? again: all keys", "esc close")

    def action_more(self) -> None:
        """All keys of the app, or those of the place again."""
        self._all = not self._all
        self.query_one("#keys", Words).say(self._text())
        self.query_one(Panel).entitle("All keys" if self._all else f"Keys: {self._place.place.title}")

    def _text(self) -> Text:
        app = cast("LatheApp", self.app)
        groups: list[tuple[str, Sequence[Binding]]] = []
        kinds = [place.kind() for place in PLACES] if self._all else [type(self._place)]
        for kind in kinds:
            own = flat(kind.__dict__.get("BINDINGS", ()))
            for widget in kind.widgets_with_bindings():
                if widget not in (Grid, LogView):
                    own += flat(widget.__dict__.get("BINDINGS", ()))
            groups.append((kind.MODE.capitalize() if self._all else "Here", own))
        lists: list[type] = [kind for kind in (Grid, LogView) if self._all or self._place.query(kind)]
        groups += [("Lists" if kind is Grid else "Logs", flat(kind.__dict__["BINDINGS"])) for kind in lists]
        groups.append(("Every place", [*flat(PlaceScreen.BINDINGS), *flat(type(app).BINDINGS)]))
        text = Text()
        inks = app.inks
        for title, bindings in groups:
            text.append(f"{title}\n", inks["title"])
            seen: set[str] = set()
            for binding in bindings:
                keys = " ".join(display(key.strip()) for key in binding.key.split(","))
                if (binding.id or keys) in seen or (binding.id or "").endswith(".alias"):
                    continue
                seen.add(binding.id or keys)
                text.append(f"  {keys:<12}", inks["key"])
                text.append(f" {binding.tooltip or binding.description}\n", inks["text"])
            text.append("\n")
        text.append(NOTE, inks["dim"])
        return text
