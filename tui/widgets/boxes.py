"""Text boxes: Textual's, with what is put or pasted into them cleaned, for they draw control characters as they are."""

from __future__ import annotations

from typing import ClassVar

from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import Input, TextArea

MAX_PASTE = 400_000
"""Characters taken from one paste."""


class TextBox(Input):
    """One line."""

    def __init__(
        self, value: str = "", *, placeholder: str = "", id: str | None = None, classes: str = "field"
    ) -> None:
        super().__init__(one_line(value), placeholder=one_line(placeholder), compact=True, id=id, classes=classes)

    def on_paste(self, event: events.Paste) -> None:
        """Clean before the base class takes it."""
        event.text = one_line(event.text, MAX_PASTE)


class TextPad(TextArea, inherit_bindings=False):
    """Several lines."""

    # F6 and F7 go to places from inside text boxes, too; here they would select a line and everything.
    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in TextArea.BINDINGS if isinstance(binding, Binding) and binding.key not in ("f6", "f7")
    ]

    def __init__(
        self, text: str = "", *, placeholder: str = "", id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(
            clean(text, MAX_PASTE), soft_wrap=True, show_line_numbers=False, compact=True, tab_behavior="focus",
            placeholder=placeholder, id=id, classes=classes,
        )  # fmt: skip

    def on_paste(self, event: events.Paste) -> None:
        """Clean before the base class takes it."""
        event.text = clean(event.text, MAX_PASTE)

    def put(self, text: str) -> None:
        """Replace the text, cursor at the end."""
        self.text = clean(text, MAX_PASTE)
        self.move_cursor(self.document.end)
