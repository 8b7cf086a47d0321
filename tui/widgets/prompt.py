"""`Prompt`: the Playground's text box. Enter sends, ctrl+j breaks the line, up and down go through what was sent."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from lathe.tui.chat import complete
from lathe.tui.widgets.boxes import TextPad
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

KEPT = 100
"""Prompts that up and down go through."""


class Prompt(TextPad):
    """What will be sent next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "send", id="prompt.send", tooltip="Send the prompt"),
        Binding("ctrl+j", "newline", "newline", id="prompt.newline", tooltip="Break the line"),
        Binding(
            "tab", "complete", "complete", show=False, id="prompt.complete", tooltip="Complete a /command, or go on"
        ),
    ]

    class Sent(Message):
        """The user pressed enter."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, examples: tuple[str, ...] = (), placeholder: str = "", id: str | None = None) -> None:
        super().__init__(placeholder=placeholder, id=id)
        self.recent: deque[str] = deque(examples, KEPT)
        self._at: int | None = None
        self._draft = ""

    def action_send(self) -> None:
        """Hand the text over and empty the box."""
        text = self.text.strip("\n")
        if not text.strip():
            return
        if not self.recent or self.recent[-1] != text:
            self.recent.append(text)
        self._at = None
        self.text = ""
        self.post_message(self.Sent(text))

    def action_newline(self) -> None:
        """Break the line."""
        self.insert("\n")

    def action_complete(self) -> None:
        """Complete a command, else move the focus on."""
        completed = complete(self.text)
        if completed != self.text:
            self.put(completed)
        else:
            self.screen.focus_next()

    def on_key(self, event: events.Key) -> None:
        """Take the keys that mean something else here than in an editor."""
        row, _ = self.cursor_location
        if event.key == "enter":
            self.action_send()
        elif event.key == "ctrl+j":
            self.action_newline()
        elif event.key == "tab":
            self.action_complete()
        elif event.key == "up" and row == 0 and self.recent:
            self._recall(-1)
        elif event.key == "down" and row == self.document.line_count - 1 and self._at is not None:
            self._recall(1)
        else:
            return
        event.prevent_default()
        event.stop()

    def _recall(self, step: int) -> None:
        if self._at is None:
            self._draft = self.text
            index = len(self.recent) - 1
        else:
            index = self._at + step
        if index >= len(self.recent):
            self._at = None
            self.put(self._draft)
        else:
            self._at = max(0, index)
            self.put(self.recent[self._at])
