"""Aliases: other names for models, and names for models of other servers; made, moved and removed.

The checks are those of `lathe models alias`: some are made while one types, the engine makes all of them. Invariant: a
key of another server is named by where it is (`env:NAME`, `file:PATH`), never typed here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar, cast

from lathe.engine.workbench import ModelAlias
from lathe.tui.screens.dialogs import Confirm, Dialog
from lathe.tui.screens.forms import Field, Form
from lathe.tui.screens.model_work import name_check
from lathe.tui.widgets.base import Panel, Words
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

COLUMNS = (
    Column("alias", least=8, most=30, flex=True),
    Column("stands for", least=12, most=44, flex=True),
    Column("there called", rank=2, least=8, most=30),
    Column("its key", rank=1, least=7, most=24),
)
EMPTY = "No aliases yet: other names that clients, evals and screens may use.\nn  makes one"
KEYS = "n new   enter move   D remove   esc close"


class Aliases(Dialog[None]):
    """The aliases, and what can be done with them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "new", show=False, id="aliases.new", tooltip="Another name for a model or a remote one"),
        Binding("e", "move", "move", show=False, id="aliases.move", tooltip="Let the alias stand for something else"),
        Binding("D", "remove", "remove", show=False, id="aliases.remove", tooltip="Forget the alias; asks first"),
    ]

    def __init__(self, target: str = "") -> None:
        """`target`: the model that a new alias is offered for."""
        super().__init__("Aliases")
        self._target = target

    def body(self) -> ComposeResult:
        """The list and its keys."""
        yield Grid(COLUMNS, empty=EMPTY)
        yield Words("esc close" if self.lathe.read_only else KEYS, classes="quiet")

    def on_mount(self) -> None:
        """Fill the list."""
        self.query_one(Panel).add_class("-broad")
        self.query_one(Grid).focus()
        self.fill()

    @property
    def lathe(self) -> LatheApp:
        """The app, with its type."""
        return cast("LatheApp", self.app)

    def fill(self) -> None:
        """Show what the board knows."""
        grid = self.query_one(Grid)
        rows = [
            Row(one.name, (one.name, one.target, (one.model or "-", "dim"), (one.key or "-", "dim")))
            for one in self.lathe.board.aliases
        ]
        grid.styles.height = min(16, max(3, len(rows) + 1))
        grid.show(rows)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing changes in a read-only session."""
        return not (self.lathe.read_only and action in ("new", "move", "remove"))

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        if not self.lathe.read_only:
            self.action_move()

    @property
    def _current(self) -> ModelAlias | None:
        cursor = self.query_one(Grid).cursor
        return next((one for one in self.lathe.board.aliases if one.name == cursor), None)

    def action_new(self) -> None:
        """Ask for a name and what it stands for."""
        self._ask(ModelAlias(name="", target=self._target), "New alias", "Make")

    def action_move(self) -> None:
        """Ask what it stands for from now on."""
        if (current := self._current) is not None:
            self._ask(current, f"Move {current.name}", "Move")

    def _ask(self, alias: ModelAlias, title: str, yes: str) -> None:
        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._set(from_values(values, alias.name))

        names = [entry.name for entry in self.lathe.board.models if entry.format != "remote"]
        self.app.push_screen(form(alias, names, title, yes), take)

    def _set(self, alias: ModelAlias) -> None:
        def done(kept: ModelAlias) -> None:
            self.lathe.tell(f"{kept.name} stands for {kept.target}")
            self._again()

        self.lathe.do(lambda bench: bench.set_alias(alias), done, command=command(alias), what=alias.name)

    def action_remove(self) -> None:
        """Forget the alias."""
        current = self._current
        if current is None:
            return

        def take(yes: bool | None) -> None:
            if yes:
                self.lathe.do(
                    lambda bench: bench.remove_alias(current.name),
                    lambda _: self._again(),
                    command=shlex.join(["lathe", "models", "alias", current.name, "--rm"]),
                    what=current.name,
                )

        lines = [f"It stands for {current.target}.", "Whoever asks for this name is refused from now on."]
        self.app.push_screen(Confirm(f"Remove the alias {current.name}?", lines, "Remove"), take)

    def _again(self) -> None:
        async def read() -> None:
            await self.lathe.link.refresh_models()
            if self.is_mounted:
                self.fill()

        self.run_worker(read(), exit_on_error=False)


def form(alias: ModelAlias, models: Sequence[str], title: str, yes: str) -> Form:
    """Ask for an alias; `models` are the names it must not have and may stand for."""
    taken = name_check(set(models))
    name = Field("name", "alias", alias.name, hint="what clients will say", check=taken)
    fields = (
        Field("target", "stands for", alias.target, hint="a model, or http://HOST:PORT/v1 of another server"),
        Field("model", "there called", alias.model, hint="the other server's name for it; empty: its only one"),
        Field("key", "its key", alias.key or "", hint="env:VARIABLE or file:PATH; empty: none"),
    )
    intro = "The name goes on; what it stands for changes at once, for every client." if alias.name else ""
    return Form(
        title,
        fields if alias.name else (name, *fields),
        yes=yes,
        intro=intro,
        check=lambda values: problem(values, models),
        watch=lambda values: f"{values.get('name', alias.name)} -> {values['target']}",
    )


def problem(values: dict[str, str], models: Sequence[str]) -> str:
    """What is wrong with the answers; empty: nothing."""
    target, remote = values["target"].strip(), "://" in values["target"]
    if not target:
        return "stands for: a model, or the URL of a server"
    if not remote and (values["model"].strip() or values["key"].strip()):
        return "a name there and a key belong to the URL of a server"
    if not remote and target not in models:
        near = get_close_matches(target, models, 1)
        return f"no model is called {target}" + (f"; did you mean {near[0]}?" if near else "")
    if values["key"].strip() and not re.fullmatch(r"(env|file):.+", values["key"].strip()):
        return "its key: env:VARIABLE or file:PATH, never the key itself"
    return ""


def from_values(values: dict[str, str], name: str) -> ModelAlias:
    """The answers as an alias."""
    return ModelAlias(
        name=values.get("name", name).strip(),
        target=values["target"].strip(),
        model=values["model"].strip(),
        key=values["key"].strip() or None,
    )


def command(alias: ModelAlias) -> str:
    """The shell's way to make it."""
    words = ["lathe", "models", "alias", alias.name, alias.target]
    words += ["--model", alias.model] if alias.model else []
    if alias.key:
        kind, _, where = alias.key.partition(":")
        words += [f"--key-{kind}", where]
    return shlex.join(words)
