"""Labelled fields: text boxes and choices under each other, each with a check; used by dialogs and by places.

Invariant: values are read where they are shown, so what is seen is what is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, cast

import msgspec
from lathe.tui.text import line as one_line
from lathe.tui.widgets.base import Words
from lathe.tui.widgets.boxes import TextBox
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

Check = Callable[[str], str]
"""A text to the reason why it cannot be taken; empty: it can."""


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
        super().__init__(f"< {self.value} >", id=id)

    def put(self, value: str) -> None:
        """Show another value, and tell nobody."""
        self.value = value
        self.say(f"< {one_line(value)} >")

    def take(self, value: str) -> None:
        """Show another value, and tell."""
        self.put(value)
        self.post_message(Input.Changed(cast(Input, self), value))

    def action_turn(self, step: int) -> None:
        """Take the neighbour."""
        self.take(self.choices[(self.choices.index(self.value) + step) % len(self.choices)])

    def on_click(self) -> None:
        """Go on by one."""
        self.focus()
        self.action_turn(1)


class PickBox(ChoiceBox):
    """A choice among many: enter opens the list, with a note for each."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "pick", "list", show=True, id="choice.list", tooltip="Choose from a list"),
    ]

    class Asked(Message):
        """The list is wanted."""

        def __init__(self, box: PickBox) -> None:
            super().__init__()
            self.box = box

    def __init__(self, label: str, id: str) -> None:
        super().__init__(("",), "", id)
        self.label = label
        self.keys: dict[str, str] = {}
        """Value shown -> key."""
        self.notes: Mapping[str, str] = {}

    @property
    def key(self) -> str:
        """The key of the value shown; empty where there is nothing to choose."""
        return self.keys.get(self.value, "")

    def offer(self, choices: Sequence[tuple[str, str]], notes: Mapping[str, str] = {}) -> None:
        """Offer other choices, as (key, value shown); the value stays where it is among them."""
        self.keys = {shown: key for key, shown in choices}
        self.choices = list(self.keys) or [""]
        self.notes = notes
        if self.value not in self.choices:
            self.put(self.choices[0])

    def choose(self, key: str) -> bool:
        """Show the value of a key; False where it is not offered."""
        shown = next((shown for shown, known in self.keys.items() if known == key), None)
        if shown is not None and shown != self.value:
            self.put(shown)
        return shown is not None

    def action_pick(self) -> None:
        """Ask for the list."""
        self.post_message(self.Asked(self))


class Fields(VerticalScroll, can_focus=False):
    """Several fields, some of which may be hidden."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "next field", show=False, id="fields.next"),
        Binding("up", "app.focus_previous", "previous field", show=False, id="fields.previous"),
    ]

    class Changed(Message):
        """A value changed."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Entered(Message):
        """Enter in a text box that takes it."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(
        self, fields: Iterable[Field], *, picks: Iterable[str] = (), takes: Iterable[str] = (), id: str | None = None
    ) -> None:
        """
        Args:
            picks: keys of fields that are chosen from a list that changes.
            takes: keys of text boxes where enter means something; in others it goes on to the next field.
        """
        super().__init__(id=id, classes="fields")
        self.fields = tuple(fields)
        self._picks = frozenset(picks)
        self._takes = frozenset(takes)

    def compose(self) -> ComposeResult:
        """Labels and boxes."""
        for field in self.fields:
            yield Horizontal(
                Words(field.label, classes="label"), self._box(field), classes="row", id=f"row-{field.key}"
            )

    def _box(self, field: Field) -> Widget:
        if field.key in self._picks:
            return PickBox(field.label, f"f-{field.key}")
        if field.choices:
            return ChoiceBox(field.choices, field.value, f"f-{field.key}")
        return TextBox(field.value, id=f"f-{field.key}", placeholder=field.hint)

    def __getitem__(self, key: str) -> str:
        """What stands in a field; for one chosen from a list, the key of the choice."""
        box = self.query_one(f"#f-{key}")
        if isinstance(box, PickBox):
            return box.key
        return box.value.strip() if isinstance(box, Input) else box.value if isinstance(box, ChoiceBox) else ""

    def pick(self, key: str) -> PickBox:
        """The box of a field that is chosen from a list."""
        return self.query_one(f"#f-{key}", PickBox)

    def put(self, key: str, value: str) -> None:
        """Change a field."""
        box = self.query_one(f"#f-{key}")
        if isinstance(box, Input):
            box.value = one_line(value, 4000)
        elif isinstance(box, ChoiceBox):
            box.put(value)

    def reveal(self, keys: Iterable[str]) -> None:
        """Show these fields and no others."""
        wanted = set(keys)
        for field in self.fields:
            self.query_one(f"#row-{field.key}").display = field.key in wanted

    def problem(self) -> str:
        """The first thing that is wrong with what is shown."""
        for field in self.fields:
            if field.check and self.query_one(f"#row-{field.key}").display:
                reason = field.check(self[field.key])
                if reason:
                    return f"{field.label}: {reason}"
        return ""

    def explain(self, widget: Widget | None) -> str:
        """What the field with the focus means."""
        return next((f.hint for f in self.fields if widget is not None and widget.id == f"f-{f.key}"), "")

    @on(Input.Changed)
    def _box_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed((event.input.id or "").removeprefix("f-")))

    @on(Input.Submitted)
    def _box_entered(self, event: Input.Submitted) -> None:
        """Enter is taken, or goes on to the next field."""
        event.stop()
        key = (event.input.id or "").removeprefix("f-")
        if key in self._takes:
            self.post_message(self.Entered(key))
        else:
            self.screen.focus_next()


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
