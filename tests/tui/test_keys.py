"""One declaration per key: found in help and palette, hinted within 80 columns, deliverable by terminals."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator
from typing import Any

import click
import pytest
from click.testing import CliRunner
from lathe.tui.app import LatheApp
from lathe.tui.cli.bindings import bindings, every_binding
from lathe.tui.commands import commands
from lathe.tui.keys import FORBIDDEN, flat
from lathe.tui.places import PLACES
from lathe.tui.screens import aliases, card, case, delete, dialogs, forms, load, palette, reading, template, welcome
from lathe.tui.screens.base import FilterRow, PlaceScreen
from lathe.tui.screens.passage import PassageDialog
from lathe.tui.widgets.chrome import MAX_HINTS
from lathe.tui.widgets.fields import ChoiceBox, Fields, PickBox
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.logview import LogView
from lathe.tui.widgets.prompt import Prompt
from lathe.tui.widgets.sheet import Sheet
from lathe.tui.widgets.transcript import Transcript
from rich.cells import cell_len
from support.screens import running, screen_lines, screen_text, type_text, until
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input

SOURCES: list[type] = [
    LatheApp, PlaceScreen, FilterRow, Grid, LogView, Prompt, Sheet, Transcript, *(place.kind() for place in PLACES),
    ChoiceBox, PickBox, Fields, PassageDialog,
    dialogs.Confirm, dialogs.Write, dialogs.Dialog, forms.Form, reading.Choose, reading.Reading,
    palette.Palette, aliases.Aliases, card.CardView, case.CaseView, load.LoadDialog, delete.DeleteDialog,
    template.TemplateView, welcome.Welcome,
]  # fmt: skip
BINDINGS = [(kind, binding) for kind in SOURCES for binding in flat(kind.__dict__.get("BINDINGS", ()))]


@pytest.mark.parametrize(
    ("kind", "binding"), BINDINGS, ids=lambda value: getattr(value, "id", None) or getattr(value, "__name__", "")
)
def test_no_key_that_terminals_swallow(kind: type, binding: Binding) -> None:
    for key in binding.key.split(","):
        assert not FORBIDDEN.fullmatch(key.strip()), f"{binding.id}: {key}"
    assert binding.id, f"{kind.__name__}: {binding.key} has no id"


def test_ids_are_unique_and_q_and_d_do_no_harm() -> None:
    ids = [binding.id for _, binding in BINDINGS]
    assert len(ids) == len(set(ids))
    for kind, binding in BINDINGS:
        keys = [key.strip() for key in binding.key.split(",")]
        if "q" in keys:
            assert binding.action == "how_to_quit"
        if "d" in keys or "x" in keys:
            assert "delete" not in binding.action, kind


def test_the_list_of_keys_has_every_one() -> None:
    found = {binding.id for _, binding in every_binding()}
    assert found >= {binding.id for _, binding in BINDINGS}
    listed = CliRunner().invoke(bindings, ["--json"])
    assert {row["id"] for row in json.loads(listed.stdout)} == found
    assert {"where": "Models", "keys": "a", "id": "models.aliases"}.items() <= next(
        row for row in json.loads(listed.stdout) if row["id"] == "models.aliases"
    ).items()


def test_function_keys_and_control_o_have_a_second_way() -> None:
    """F1 and ctrl+p are taken by some terminals: never the only route."""
    by_action: dict[str, set[str]] = {}
    for binding in flat(LatheApp.BINDINGS):
        by_action.setdefault(binding.action, set()).update(key.strip() for key in binding.key.split(","))
    for action, keys in by_action.items():
        if any(re.fullmatch(r"f\d+|ctrl\+p", key) for key in keys):
            assert any(not re.fullmatch(r"f\d+|ctrl\+p", key) for key in keys), action


async def test_every_action_is_in_the_palette() -> None:
    async with running() as (app, pilot, _):
        moves = re.compile(r"(grid|log|sheet)\.(down|up|first|last|page_down|page_up|open)")
        for place in PLACES:
            await app.action_go(place.mode)
            await pilot.pause()
            found = {command.id for command in commands(app)}
            for kind in (LatheApp, PlaceScreen, place.kind(), *place.kind().widgets_with_bindings()):
                for binding in flat(kind.__dict__.get("BINDINGS", ())):
                    identity = (binding.id or "").removesuffix(".alias")
                    if moves.fullmatch(identity) or identity == "app.commands":
                        continue
                    actions = {b.action for k in SOURCES for b in flat(k.__dict__.get("BINDINGS", ())) if b.id in found}
                    assert identity in found or binding.action in actions, identity


async def test_an_action_written_out_is_run_and_not_taken_for_a_command() -> None:
    async with running(size=(120, 40)) as (app, pilot, _):
        await pilot.press("colon")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        app.screen.query_one(Input).value = "go to tune"
        await until(pilot, lambda: "Go to Tune" in screen_text(app) and "Run  go" not in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.current_mode == "tune")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
async def test_hints_fit(width: int) -> None:
    async with running(size=(width, 24)) as (app, pilot, _):
        async for mode in _every_place(app, pilot):
            for press in ([], ["escape"]):
                await pilot.press(*press)
                await pilot.pause()
                last = screen_lines(app)[-1]
                assert cell_len(last) <= width, mode
                assert re.search(r"(\?|f1) help", last), (mode, last)
                screen: Any = app.screen
                assert len(screen.query_one("HintsRow")._spots) <= (MAX_HINTS if width < 100 else 14), mode


async def _every_place(app: LatheApp, pilot: Pilot[None]) -> AsyncIterator[str]:
    for place in PLACES:
        await app.action_go(place.mode)
        await until(pilot, lambda mode=place.mode: app.current_mode == mode)
        await pilot.pause()
        yield place.mode


async def test_help_lists_every_key_of_each_place() -> None:
    async with running(size=(120, 80)) as (app, pilot, _):
        async for mode in _every_place(app, pilot):
            await pilot.press("f1")
            await pilot.pause()
            text = screen_text(app)
            kind = next(place.kind() for place in PLACES if place.mode == mode)
            for binding in flat(kind.__dict__["BINDINGS"]):
                wanted = (binding.tooltip or binding.description)[:50]
                assert wanted in text, (mode, binding.id)
            await pilot.press("escape")


async def test_help_again_shows_all_keys() -> None:
    async with running(size=(120, 40)) as (app, pilot, _):
        await pilot.press("question_mark")
        await pilot.pause()
        assert "Keys: Dashboard" in screen_text(app)
        await pilot.press("question_mark")
        await pilot.pause()
        assert "All keys" in screen_text(app)


async def test_digits_and_function_keys_go_to_places() -> None:
    async with running(mode="logs") as (app, pilot, _):
        for place in [place for place in PLACES if place.key]:
            await app.action_go("logs" if place.mode != "logs" else "jobs")
            await pilot.pause()
            await pilot.press(place.key or "")
            await until(pilot, lambda mode=place.mode: app.current_mode == mode)
            if place.key != "0":
                await app.action_go("chat")
                await pilot.pause()
                await pilot.press(f"f{int(place.key or '') + 1}")
                await until(pilot, lambda mode=place.mode: app.current_mode == mode)


async def test_control_o_jumps_from_inside_a_text_box() -> None:
    async with running(mode="chat") as (app, pilot, _):
        await pilot.pause()
        await pilot.press("ctrl+o")
        await pilot.pause()
        assert "Dashboard" in screen_text(app)
        await pilot.press("7")
        await until(pilot, lambda: app.current_mode == "jobs")
        await pilot.press("ctrl+o", "x")
        await until(pilot, lambda: app.current_mode == "doctor")
        await pilot.press("minus")
        await until(pilot, lambda: app.current_mode == "jobs")


async def test_letters_in_a_text_box_are_letters() -> None:
    async with running(mode="chat") as (app, pilot, _):
        await pilot.pause()
        await type_text(pilot, "1 2 7 q x?:")
        screen: Any = app.screen
        assert screen.query_one(Prompt).text == "1 2 7 q x?:"
        assert app.current_mode == "chat"


async def test_keys_can_be_remapped() -> None:
    async with running(keymap={"models.rename": "f12", "go.jobs": "ctrl+t"}, mode="models") as (app, pilot, _):
        await pilot.pause()
        await pilot.press("f12")
        await until(pilot, lambda: "New name" in screen_text(app))
        await pilot.press("escape", "ctrl+t")
        await until(pilot, lambda: app.current_mode == "jobs")


def _resolves(command: str) -> bool:
    from lathe.tui.cli.root import cli

    words = shlex.split(command)
    assert words[0] == "lathe", command
    found: click.Command = cli
    context = click.Context(cli)
    for index, word in enumerate(words[1:], 1):
        if not isinstance(found, click.Group):
            options = {option for parameter in found.params for option in parameter.opts}
            flags = [text for text in words[index:] if text.startswith("--")]
            return all(flag in options for flag in flags)
        inner = found.get_command(context, word)
        if inner is None:
            return False
        found = inner
    return True


async def test_the_command_of_each_place_is_a_command() -> None:
    assert [place.command for place in PLACES if not _resolves(place.command)] == []
    async with running() as (app, pilot, _):
        async for mode in _every_place(app, pilot):
            current = app.current_place
            assert current is not None, mode
            assert _resolves(current.command()), current.command()
