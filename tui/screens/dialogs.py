"""Dialogs: confirm, ask for a text, choose from a list, fill a form, read facts or a text.

Each is a modal screen with one result; the words in it are foreign text and never markup.
Invariant: in a confirmation Cancel has the focus, and a typed phrase is asked where data would be lost for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar, cast

import msgspec
from lathe.tui.text import line as one_line
from lathe.tui.text import paragraphs, plain
from lathe.tui.widgets.base import Look, Panel, Words
from lathe.tui.widgets.grid import Column, Grid, Row
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, TextArea

Result = TypeVar("Result")
Check = Callable[[str], str]
"""A text to the reason why it cannot be taken; empty: it can."""


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

    def say_footnote(self, text: str) -> None:
        """Text in the lower border."""
        self.query_one(Panel).footnote(text)


def buttons(*labels: tuple[str, str, bool]) -> Horizontal:
    """A row of buttons: (id, label, dangerous)."""
    return Horizontal(
        *(
            Button(Text(label), id=id_, compact=True, classes="danger" if danger else "")
            for id_, label, danger in labels
        ),  # type: ignore[arg-type]
        classes="buttons",
    )


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
            yield Input(compact=True, id="phrase", classes="field")
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
        yield Input(self._value, compact=True, classes="field")
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
        yield TextArea(self._value, soft_wrap=True, show_line_numbers=False, compact=True, classes="field tall")
        yield Words("ctrl+s take it   esc cancel", classes="quiet")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(TextArea).focus()

    def action_take(self) -> None:
        """Close with the text."""
        self.dismiss(self.query_one(TextArea).text)


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
        yield Input(placeholder="type to narrow", compact=True, classes="field")
        yield Grid((Column("", least=12, most=60, flex=True), Column("", ">", most=40)), empty=self._empty)

    def on_mount(self) -> None:
        """Fill the list."""
        rows = [Row(c.key, (c.label, (c.note, "dim")), {"label": c.label, "note": c.note}) for c in self._choices]
        grid = self.query_one(Grid)
        grid.styles.height = min(14, len(rows) + 2)
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
        from lathe.tui.app import LatheApp

        text = self._text if isinstance(self._text, str) else self._text.plain
        cast(LatheApp, self.app).copy(text, self._title)


class Field(msgspec.Struct, frozen=True):
    """One line of a form."""

    key: str
    label: str
    value: str = ""
    choices: tuple[str, ...] = ()
    """Left and right go through them; empty: free text."""
    hint: str = ""
    check: Check | None = None


class ChoiceBox(Words, can_focus=True):
    """A value that left and right change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space,l", "turn(1)", "next value", show=False, id="choice.next"),
        Binding("left,h", "turn(-1)", "previous value", show=False, id="choice.previous"),
    ]

    def __init__(self, choices: Sequence[str], value: str, id: str) -> None:
        self.choices = list(choices)
        self.value = value if value in choices else self.choices[0]
        super().__init__(f"< {self.value} >", id=id, classes="field")

    def action_turn(self, step: int) -> None:
        """Take the neighbour."""
        self.value = self.choices[(self.choices.index(self.value) + step) % len(self.choices)]
        self.say(f"< {self.value} >")
        self.post_message(Input.Changed(cast(Input, self), self.value))

    def on_click(self) -> None:
        """Go on by one."""
        self.focus()
        self.action_turn(1)


class Form(Dialog[dict[str, str]]):
    """Several fields; enter on any of them takes all, if each is in order."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "next field", show=False, id="form.next"),
        Binding("up", "app.focus_previous", "previous field", show=False, id="form.previous"),
        Binding("enter", "take", "take", show=False, id="form.take", tooltip="Take all fields"),
    ]

    def __init__(
        self,
        title: str,
        fields: Sequence[Field],
        *,
        yes: str = "OK",
        intro: str = "",
        check: Callable[[dict[str, str]], str] | None = None,
        watch: Callable[[dict[str, str]], str] | None = None,
    ) -> None:
        """
        Args:
            check: All values to what is wrong with them.
            watch: All values to a line shown below, anew after each change.
        """
        super().__init__(title)
        self._fields, self._yes, self._intro = fields, yes, intro
        self._check, self._watch = check, watch

    def body(self) -> ComposeResult:
        """Labels and boxes."""
        if self._intro:
            yield Words(self._intro, classes="quiet intro")
        with VerticalScroll(classes="form", can_focus=False):
            for field in self._fields:
                box: Widget = (
                    ChoiceBox(field.choices, field.value, f"f-{field.key}")
                    if field.choices
                    else Input(field.value, compact=True, id=f"f-{field.key}", placeholder=field.hint, classes="field")
                )
                yield Horizontal(Words(field.label, classes="label"), box, classes="row")
        yield Words("", id="problem")
        yield buttons(("cancel", "Cancel", False), ("yes", self._yes, False))

    def on_mount(self) -> None:
        """The first field first."""
        self.query(".field").first().focus()
        self._changed()

    def on_descendant_focus(self) -> None:
        """Say what the field means."""
        field = next((f for f in self._fields if self.focused is not None and self.focused.id == f"f-{f.key}"), None)
        self.say_footnote(field.hint if field is not None else "")

    def values(self) -> dict[str, str]:
        """What stands in the fields."""
        found: dict[str, str] = {}
        for field in self._fields:
            box = self.query_one(f"#f-{field.key}")
            found[field.key] = box.value if isinstance(box, Input | ChoiceBox) else ""
        return found

    def problem(self) -> str:
        """The first thing that is wrong."""
        values = self.values()
        for field in self._fields:
            reason = field.check(values[field.key]) if field.check else ""
            if reason:
                return f"{field.label}: {reason}"
        return self._check(values) if self._check else ""

    @on(Input.Changed)
    def _on_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._changed()

    def _changed(self) -> None:
        problem = self.problem()
        note = self.query_one("#problem", Words)
        if problem:
            note.say(plain(problem, str(self.look.inks["bad"])))
        else:
            note.say(plain(self._watch(self.values()), str(self.look.inks["dim"])) if self._watch else "")

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.action_take()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "yes":
            self.action_take()
        else:
            self.dismiss(None)

    def action_take(self) -> None:
        """Close with the values, if they are in order."""
        if isinstance(self.focused, Button) and self.focused.id == "cancel":
            self.dismiss(None)
        elif not self.problem():
            self.dismiss(self.values())
        else:
            self.app.bell()


def number(low: float, high: float, *, whole: bool = False, optional: bool = False) -> Check:
    """A check for numbers in a closed range."""

    def check(text: str) -> str:
        if optional and not text.strip():
            return ""
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            return f"{one_line(text)!r} is no {'whole number' if whole else 'number'}"
        return "" if low <= value <= high else f"{value:g} is outside {low:g} to {high:g}"

    return check
