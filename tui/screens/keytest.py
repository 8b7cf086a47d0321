"""The key tester: press keys and see what reaches the app in this terminal."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from lathe.tui.keys import FORBIDDEN, display
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.widgets.base import Canvas, Words
from lathe.tui.widgets.paint import Line
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType


class KeyTest(Dialog[None]):
    """The last keys; esc twice closes."""

    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self) -> None:
        super().__init__("Key tester")
        self._seen: deque[tuple[str, str]] = deque(maxlen=8)

    def body(self) -> ComposeResult:
        """The list."""
        yield Words("Press any key. What arrives is what Lathe can use here.\nEsc twice closes.", classes="quiet intro")
        canvas = Canvas(self._draw)
        canvas.styles.height = 8
        yield canvas

    def _draw(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = []
        for key, character in self._seen:
            note = "terminals deliver this one as another key" if FORBIDDEN.fullmatch(key) else ""
            lines.append(
                [(f"{display(key):<14}", "key"), (f"{key:<22}", "text"), (f"{character:<6}", "dim"), (note, "warn")]
            )
        return lines

    def on_key(self, event: events.Key) -> None:
        """Take every key."""
        event.stop()
        event.prevent_default()
        if event.key == "escape" and self._seen and self._seen[-1][0] == "escape":
            self.dismiss(None)
            return
        character = event.character if event.character and event.character.isprintable() else ""
        self._seen.append((event.key, character))
        self.query_one(Canvas).redraw()
