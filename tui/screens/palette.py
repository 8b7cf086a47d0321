"""The command palette: every action of the app by name, with its key, and commands with arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lathe.engine.errors import UsageError
from lathe.tui.commands import NEED_NOTHING, VERBS, Command, commands, execute, parse
from lathe.tui.screens.dialogs import Dialog
from lathe.tui.text import plain
from lathe.tui.widgets.base import Words
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.fuzzy import Matcher
from textual.widgets import Input

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

MOST = 200


class Palette(Dialog[None]):
    """Type, choose, enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move(1)", "down", show=False, id="palette.down"),
        Binding("up", "move(-1)", "up", show=False, id="palette.up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="palette.page_down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="palette.page_up"),
    ]

    def __init__(self, text: str = "") -> None:
        super().__init__("Command")
        self._text = text
        self._commands: list[Command] = []

    def body(self) -> ComposeResult:
        """The text box and what it finds."""
        hint = "an action, or: " + "  ".join(list(VERBS)[:6]) + " ..."
        yield TextBox(self._text, placeholder=hint)
        grid = Grid((Column("", least=20, most=200, flex=True), Column("", ">", most=10)), empty="No such action.")
        grid.can_focus = False
        yield grid
        yield Words("", id="problem", classes="quiet")

    def on_mount(self) -> None:
        """List what can be done here."""
        self._commands = commands(cast("LatheApp", self.app))
        self.query_one(Input).focus()
        self._list(self._text)
        self.say_footnote("enter run", "up/down choose", "esc close")

    def _list(self, text: str) -> None:
        parsed = parse(text)
        usage = VERBS[parsed[0]] if parsed is not None else ""
        self.query_one("#problem", Words).say(plain(usage))
        if parsed is not None and not parsed[1] and parsed[0] not in NEED_NOTHING:
            parsed = None
        if text.strip():
            matcher = Matcher(text.strip())
            scored = [
                (matcher.match(command.title) + 0.01 * command.here, n) for n, command in enumerate(self._commands)
            ]
            order = [n for score, n in sorted(scored, key=lambda item: (-item[0], item[1])) if score > 0.02]
        else:
            order = list(range(len(self._commands)))
        rows = [
            Row(
                str(n),
                (
                    (self._commands[n].title, "text" if self._commands[n].here or text else "dim"),
                    (self._commands[n].key, "key"),
                ),
            )
            for n in order[:MOST]
        ]
        titles = {command.title.lower() for command in self._commands}
        if parsed is not None and text.strip().lower() not in titles:  # `go to tune` is the action of that name
            rows.insert(0, Row("typed", ((f"Run  {text.strip()}", "accent"), ("enter", "key"))))
        grid = self.query_one(Grid)
        grid.show(rows)
        if rows:
            grid.select(rows[0].key)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._list(event.value)

    @on(Input.Submitted)
    def _entered(self) -> None:
        self._run(self.query_one(Grid).cursor)

    @on(Grid.Opened)
    def _picked(self, message: Grid.Opened) -> None:
        self._run(message.key)

    def _run(self, key: str | None) -> None:
        app = cast("LatheApp", self.app)
        text = self.query_one(Input).value
        if key is None or key == "typed":
            try:
                execute(app, text)
            except UsageError as error:
                self.query_one("#problem", Words).say(plain(error.message, str(self.look.inks["bad"])))
                return
            self._close()
        else:
            command = self._commands[int(key)]
            self._close()
            command.run(app)

    def _close(self) -> None:
        if self.is_current:
            self.dismiss(None)

    def action_move(self, step: int) -> None:
        """Move in the list while typing."""
        self.query_one(Grid).action_move(step)

    def action_page(self, step: int) -> None:
        """Move by a page."""
        self.query_one(Grid).action_page(step)
