"""Forms: several labelled fields, each checked as it is typed, taken together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from lathe.tui.screens.dialogs import Dialog, buttons
from lathe.tui.text import plain
from lathe.tui.widgets.base import Words
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.fields import ChoiceBox, Field, number
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input

__all__ = ["ChoiceBox", "Field", "Form", "number"]


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
                    else TextBox(field.value, id=f"f-{field.key}", placeholder=field.hint)
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
