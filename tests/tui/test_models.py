"""The Models place: load after an estimate, unload, measure, rename, filter, and removals that ask enough."""

from __future__ import annotations

import re

import msgspec
import pytest
from lathe.engine.errors import UsageError
from lathe.engine.events import ModelsChanged
from lathe.engine.steps import BenchStep, PerplexityStep, VerifyStep
from lathe.engine.workbench import ModelAlias
from lathe.tui.app import LatheApp
from lathe.tui.commands import commands, execute
from lathe.tui.glyphs import UNICODE
from lathe.tui.screens.card import CardView
from lathe.tui.screens.delete import DELETE, DeleteDialog
from lathe.tui.screens.forms import ChoiceBox
from lathe.tui.screens.load import LoadDialog
from lathe.tui.views import models as view
from lathe.tui.widgets.grid import Grid
from support import scripted_data as data
from support.screens import running, screen_text, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench
from textual.widgets import Button, Input


def _at(app: LatheApp, bench: ScriptedWorkbench, name: str) -> str:
    """Put the cursor on a model; its identifier."""
    entry = next(entry for entry in bench.catalogue.values() if entry.name == name)
    app.screen.query_one(Grid).select(entry.id)
    return entry.id


def _calls(bench: ScriptedWorkbench, name: str) -> list[tuple[object, ...]]:
    return [call[1:] for call in bench.calls if call[0] == name]


async def test_a_model_is_loaded_after_its_estimate_and_leaves_again() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        entry = next(
            entry for entry in bench.catalogue.values() if entry.id not in bench.workers and entry.format == "gguf"
        )
        _at(app, bench, entry.name)
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LoadDialog))
        await until(pilot, lambda: not app.screen.query_one("#yes", Button).disabled)
        assert "weights" in screen_text(app) and "KV cache" in screen_text(app)
        app.screen.query_one("#yes", Button).press()
        await until(pilot, lambda: entry.id in bench.workers)
        await tick(app, pilot, bench)
        await until(pilot, lambda: "loaded" in screen_text(app))
        _at(app, bench, entry.name)
        await pilot.press("u")
        await until(pilot, lambda: entry.id not in bench.workers)


async def test_a_field_that_is_no_number_keeps_the_dialog_open() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        _at(app, bench, "qwen3-8b-f16")
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LoadDialog))
        app.screen.query_one("#slots").focus()
        await pilot.press("end", "backspace", *"many")
        await until(pilot, lambda: app.screen.query_one("#yes", Button).disabled)
        await pilot.press("enter")
        assert isinstance(app.screen, LoadDialog) and not _calls(bench, "load")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, LoadDialog))


async def test_a_checkpoint_says_that_it_must_be_converted() -> None:
    async with running(ScriptedWorkbench(living=False), size=(120, 40), mode="models") as (app, pilot, bench):
        await pilot.press("escape")
        _at(app, bench, "stdlib-4m")
        await pilot.press("l")
        await until(pilot, lambda: "is a checkpoint" in screen_text(app))
        assert not isinstance(app.screen, LoadDialog)


async def test_marked_models_are_measured_each() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        before = len(bench.queue)
        wanted = {_at(app, bench, "qwen3-8b-q4_k_m")}
        await pilot.press("space")
        wanted.add(_at(app, bench, "qwen3-8b-q5_k_m"))
        await pilot.press("space", "b", "p", "v")
        await until(pilot, lambda: len(bench.queue) == before + 6)
        steps = [call[0] for call in _calls(bench, "submit")]
        for kind in (BenchStep, PerplexityStep, VerifyStep):
            assert {step.model for step in steps if isinstance(step, kind)} == wanted


async def test_the_card_and_the_new_name() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        entry = bench.catalogue[_at(app, bench, "qwen3-8b-q4_k_m")]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, CardView))
        await pilot.press("escape", "e")
        await until(pilot, lambda: "New name" in screen_text(app))
        await pilot.press("end")
        await type_text(pilot, "-old")
        await pilot.press("enter")
        await until(pilot, lambda: bench.catalogue[entry.id].name == f"{entry.name}-old")
        assert app.did == f"lathe models rename {entry.name} {entry.name}-old"


async def test_the_card_is_titled_with_the_new_name() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        identifier = _at(app, bench, "qwen3-8b-q4_k_m")
        await until(pilot, lambda: "╭─ qwen3-8b-q4_k_m ─" in screen_text(app))
        await bench.rename(identifier, "daily")
        await until(pilot, lambda: "╭─ daily ─" in screen_text(app))


def test_a_card_offers_only_the_measurements_that_a_format_allows() -> None:
    for entry in data.models():
        bare = msgspec.structs.replace(entry, measured={})
        text = "".join(text for line in view.card_lines(bare, None, None, {}, 120, 30, UNICODE) for text, _ in line)
        assert ("b bench" in text) == (entry.format == "gguf"), entry.name
        assert ("n converts it first" in text) == (entry.format in ("safetensors", "ggml")), entry.name


async def test_the_palette_loads_nothing_that_must_be_converted_first() -> None:
    async with running() as (app, _pilot, bench):
        titles = {command.title for command in commands(app)}
        for entry in bench.catalogue.values():
            able = entry.format != "safetensors"
            assert bool({f"Load {entry.name}", f"Unload {entry.name}"} & titles) == able, entry.name
            assert (f"Chat with {entry.name}" in titles) == able
            assert f"Show {entry.name}" in titles


async def test_a_typed_command_refuses_options_that_it_does_not_know() -> None:
    async with running() as (app, pilot, bench):
        for text, why in (
            ("load qwen3-8b-f16 contxt=4096", "load: no option 'contxt'; did you mean context?"),
            ("load qwen3-8b-f16 bogus=3", "load: no option 'bogus'"),
            ("quantize qwen3-8b-f16 type=Q8_0", "how it is meant: quantize MODEL TYPE"),
        ):
            with pytest.raises(UsageError, match=re.escape(why)):
                execute(app, text)
        app.did = "lathe models list"
        execute(app, "load qwen3-8b-f16 context=4096")
        await until(pilot, lambda: bool(_calls(bench, "load")))
        assert [call[1].context for call in _calls(bench, "load")] == [4096]  # type: ignore[attr-defined]
        execute(app, "unload qwen3-8b-f16")
        await until(pilot, lambda: bool(_calls(bench, "unload")))
        assert app.did == "lathe models list", "no command line loads a model into the engine"


async def test_aliases_are_made_moved_and_removed() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        _at(app, bench, "qwen3-8b-q4_k_m")
        await pilot.press("a")
        await until(pilot, lambda: "No aliases yet" in screen_text(app))
        await pilot.press("n")
        await until(pilot, lambda: "New alias" in screen_text(app))
        await type_text(pilot, "qwen3-8b-f16")
        assert "is taken" in screen_text(app)
        await pilot.press(*["backspace"] * 20)
        await type_text(pilot, "prod")
        await pilot.press("enter")
        await until(pilot, lambda: bench.model_aliases.get("prod") == ModelAlias(name="prod", target="qwen3-8b-q4_k_m"))
        assert app.did == "lathe models alias prod qwen3-8b-q4_k_m"
        await until(pilot, lambda: app.board.aliases and "No aliases yet" not in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "Move prod" in screen_text(app))
        fields = {field.id: field for field in app.screen.query(Input)}
        fields["f-key"].value = "hunter2"
        await until(pilot, lambda: "belong to the URL" in screen_text(app))
        fields["f-target"].value = "http://box:8000/v1"
        await until(pilot, lambda: "never the key itself" in screen_text(app))
        fields["f-key"].value = "env:BOX_KEY"
        await pilot.press("enter")
        await until(pilot, lambda: "http://box:8000/v1" in screen_text(app) and "Move prod" not in screen_text(app))
        assert app.did == "lathe models alias prod http://box:8000/v1 --key-env BOX_KEY"
        await pilot.press("D", "y")
        await until(pilot, lambda: not bench.model_aliases and "No aliases yet" in screen_text(app))
        await pilot.press("escape")
        bench.model_aliases["fast"] = ModelAlias(name="fast", target="qwen3-8b-q4_k_m")
        bench.emit(ModelsChanged(()))
        await until(pilot, lambda: "also called fast" in screen_text(app))
        assert app.board.model("fast") is app.board.model("qwen3-8b-q4_k_m")


async def test_forgetting_keeps_the_files_and_needs_no_phrase() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        identifier = _at(app, bench, "qwen3-8b-f16")
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, DeleteDialog))
        await pilot.press("enter")  # on Cancel
        await until(pilot, lambda: not isinstance(app.screen, DeleteDialog))
        assert identifier in bench.catalogue
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, DeleteDialog))
        app.screen.query_one("#yes", Button).press()
        await until(pilot, lambda: identifier not in bench.catalogue)
        assert [call[1] for call in _calls(bench, "remove")] == [False]


async def test_deleting_files_asks_for_the_phrase() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        identifier = _at(app, bench, "qwen3-8b-f16")
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, DeleteDialog))
        app.screen.query_one(ChoiceBox).take(DELETE)
        yes = app.screen.query_one("#yes", Button)
        await until(pilot, lambda: yes.disabled)
        app.screen.query_one("#phrase").focus()
        await type_text(pilot, "delet")
        assert yes.disabled
        await type_text(pilot, "e")
        await until(pilot, lambda: not yes.disabled)
        await pilot.press("enter")
        await until(pilot, lambda: identifier not in bench.catalogue)
        assert [call[1] for call in _calls(bench, "remove")] == [True]


async def test_a_filter_shows_what_it_finds_and_escape_shows_all() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, bench):
        grid = app.screen.query_one(Grid)
        total = len(grid.rows)
        await pilot.press("slash")
        await type_text(pilot, "q5")
        await pilot.press("enter")
        await until(pilot, lambda: 0 < len(grid.rows) < total)
        assert all("q5" in bench.catalogue[str(row.key)].name for row in grid.rows)
        await pilot.press("escape")
        await until(pilot, lambda: len(grid.rows) == total)
