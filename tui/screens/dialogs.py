"""Dialogs: the box in the middle, and the three small ones: confirm, ask for a line, write a text.

Each is a modal screen with one result; the words in it are foreign text and never markup. Forms are in `forms`, lists
and long texts in `reading`.
Invariant: in a confirmation Cancel has the focus, and a typed phrase is asked where data would be lost for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar, cast

from lathe.tui.text import line as one_line
from lathe.tui.text import plain
from lathe.tui.widgets.base import Look, Panel, Words
from lathe.tui.widgets.boxes import TextBox, TextPad
from lathe.tui.widgets.fields import Check
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import ModalScreen
from textual.widgets import Button, Input, TextArea

Result = TypeVar("Result")


class Dialog(ModalScreen[Result], Generic[Result]):
    """A box in the middle; esc closes it without a result."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel", show=False, id="dialog.cancel", tooltip="Close without doing anything"),
    ]
    AUTO_FOCUS = ""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    @property
    def look(self) -> Look:
        """Inks and glyphs."""
        return cast(Look, self.app)

    def compose(self) -> ComposeResult:
        """The box."""
        self.set_class(self.look.glyphs.name == "ascii", "-ascii")
        with Panel(title=self._title, classes="dialog"):
            yield from self.body()

    def body(self) -> ComposeResult:
        """What is in the box."""
        yield from ()

    def action_cancel(self) -> None:
        """Close."""
        self.dismiss(None)

    def say_footnote(self, *parts: str) -> None:
        """Text in the lower border."""
        self.query_one(Panel).footnote(*parts)


def buttons(*labels: tuple[str, str, bool]) -> Horizontal:
    """A row of buttons: (id, label, dangerous)."""
    row = [
        Button(Text(label), id=id_, compact=True, classes="danger" if danger else "") for id_, label, danger in labels
    ]
    return Horizontal(*row, classes="buttons")


class Confirm(Dialog[bool]):
    """Yes or no, with what will happen; `phrase` has to be typed where it cannot be undone."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "yes", show=False, id="confirm.yes", tooltip="Do it"),
        Binding("n", "cancel", "no", show=False, id="confirm.no", tooltip="Do nothing"),
        Binding("left,right", "other", "other button", show=False, id="confirm.other", tooltip="The other button"),
    ]

    def __init__(self, title: str, lines: Sequence[str], yes: str, *, phrase: str = "") -> None:
        super().__init__(title)
        self._lines, self._yes, self._phrase = lines, yes, phrase

    def body(self) -> ComposeResult:
        """The consequences, the phrase, the buttons."""
        yield Words("\n".join(one_line(text, 300) for text in self._lines))
        if self._phrase:
            yield Words(Text.assemble("\nType ", (self._phrase, self.look.inks["accent"]), " to confirm:"))
            yield TextBox(id="phrase")
        yield buttons(("cancel", "Cancel", False), ("yes", self._yes, True))

    def on_mount(self) -> None:
        """Nothing happens by an accidental enter."""
        self.query_one("#cancel").focus()
        self._arm("")
        if self._phrase:
            self.query_one("#phrase").focus()

    def _arm(self, typed: str) -> None:
        self.query_one("#yes", Button).disabled = bool(self._phrase) and typed.strip() != self._phrase

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._arm(event.value)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._phrase:
            self.dismiss(True)
        else:
            self.say_footnote("that is not the phrase")

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_yes(self) -> None:
        """Do it, unless a phrase is asked."""
        if not self._phrase:
            self.dismiss(True)

    def action_other(self) -> None:
        """Move between the buttons."""
        self.focus_next(Button)

    def action_cancel(self) -> None:
        """Do nothing."""
        self.dismiss(False)


class Ask(Dialog[str]):
    """One line of text; `check` returns why it cannot be taken."""

    def __init__(self, title: str, label: str, value: str = "", *, check: Check | None = None, hint: str = "") -> None:
        super().__init__(title)
        self._label, self._value, self._check, self._hint = label, value, check, hint

    def body(self) -> ComposeResult:
        """Label, text box, what is wrong."""
        yield Words(self._label, classes="label")
        yield TextBox(self._value)
        yield Words(self._hint, id="problem", classes="quiet")
        yield Words("enter take it   esc cancel", classes="quiet")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        problem = self._check(event.value) if self._check else ""
        if problem:
            self.query_one("#problem", Words).say(plain(problem, str(self.look.inks["bad"])))
        else:
            self.dismiss(event.value)


class Write(Dialog[str]):
    """Several lines of text; ctrl+s takes them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "take", "take it", show=False, id="write.take", tooltip="Take the text"),
    ]

    def __init__(self, title: str, value: str = "", hint: str = "") -> None:
        super().__init__(title)
        self._value, self._hint = value, hint

    def body(self) -> ComposeResult:
        """The text box."""
        yield Words(self._hint, classes="quiet")
        yield TextPad(self._value, classes="field tall")
        yield Words("ctrl+s take it   esc cancel", classes="quiet")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(TextArea).focus()

    def action_take(self) -> None:
        """Close with the text."""
        self.dismiss(self.query_one(TextArea).text)
