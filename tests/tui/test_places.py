"""Every place at every size and in every state: drawn whole, nothing too wide, the frame where it belongs.

Places whose own tests have no golden files for their looks are compared with some here; LATHE_GOLDEN=write renews them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lathe.engine.states import Percentiles
from lathe.engine.telemetry.sample import Sample
from lathe.engine.workbench import Workbench
from lathe.tui.app import LatheApp
from lathe.tui.board import Board
from lathe.tui.glyphs import UNICODE
from lathe.tui.places import PLACES
from lathe.tui.views.machine import memory_panel
from lathe.tui.widgets.chrome import status_line
from lathe.tui.widgets.prompt import Prompt
from rich.cells import cell_len
from support.screens import compare, running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench
from textual.pilot import Pilot

SIZES = [(80, 24), (120, 40), (160, 50)]
TELLING = {
    "dashboard": "Requests",
    "models": "qwen3-8b-q4_k_m",
    "serve": "Models in memory",
    "chat": "Prompt",
    "evals": "v? noise",
    "bench": "v slower",
    "review": "0 of 6 judged",
    "quantize": "Q4_K_M",
    "tune": "mix 2.89 MB",
    "rag": "handbook/vpn.md",
    "ask": "Nothing was asked yet.",
    "jobs": "j-118",
    "logs": "j-115",
    "settings": "offline",
    "doctor": "onnxruntime",
}
EMPTY = {
    "dashboard": "No requests.",
    "models": "stdlib-4m",
    "serve": "No requests.",
    "chat": "No model that can talk yet.",
    "evals": "No runs yet.",
    "bench": "Nothing was measured yet.",
    "review": "No finished run yet.",
    "quantize": "writes",
    "tune": "No search has ended yet.",
    "rag": "No stores yet.",
    "ask": "No stores yet.",
    "jobs": "No jobs yet.",
    "logs": "All is well.",
    "settings": "offline",
    "doctor": "cores",
}

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tui"
COMPARED = {"dashboard", "models", "serve", "chat", "jobs", "logs", "settings", "doctor"}


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


async def _compare(app: LatheApp, pilot: Pilot[None], mode: str, state: str) -> None:
    """Compare with the golden file, once nothing changes any more."""
    if mode not in COMPARED:
        return
    text, same = "", 0
    while same < 3:
        await pilot.pause(0.02)
        before, text = text, screen_text(app)
        same = same + 1 if text == before else 0
    compare(GOLDEN / f"{mode}-{state}.txt", text + "\n")


def _check_frame(lines: list[str], width: int, height: int) -> None:
    assert len(lines) == height
    assert all(cell_len(line) <= width for line in lines)
    assert "lathe" in lines[0]
    assert "Models" in lines[1]
    assert "help" in lines[-1]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.mode)
async def test_the_app_starts_in(place: object) -> None:
    mode = place.mode  # type: ignore[attr-defined]
    async with running(mode=mode) as (app, pilot, bench):
        await until(pilot, lambda: TELLING[mode] in screen_text(app))
        _check_frame(screen_lines(app), 80, 24)
        bench.lost = True
        await tick(app, pilot, bench)
        lines = screen_lines(app)
        assert "NO ENGINE" in lines[0]
        assert "the engine is gone" in lines[2]
        assert all(cell_len(line) <= 80 for line in lines)
        await _compare(app, pilot, mode, "lost")
        await pilot.press("question_mark", "escape")
        assert app.is_running


async def _shows(app: LatheApp, pilot: Pilot[None], mode: str, wanted: str) -> str:
    """Go to a place, wait for its telling text, and return the screen."""
    await app.action_go(mode)
    await until(pilot, lambda: app.current_mode == mode and wanted in screen_text(app))
    return screen_text(app)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_on_a_living_workbench(size: tuple[int, int]) -> None:
    async with running(size=size) as (app, pilot, _):
        for mode, wanted in TELLING.items():
            await _shows(app, pilot, mode, wanted)
            _check_frame(screen_lines(app), *size)
            await _compare(app, pilot, mode, "living-{}x{}".format(*size))


async def test_on_an_empty_workbench() -> None:
    async with running(ScriptedWorkbench(living=False)) as (app, pilot, _):
        await pilot.press("escape")
        for mode, wanted in EMPTY.items():
            await _shows(app, pilot, mode, wanted)
            _check_frame(screen_lines(app), 80, 24)
            await _compare(app, pilot, mode, "empty")


async def test_before_the_engine_answers() -> None:
    async def connect(_start: bool) -> Workbench:
        await asyncio.Event().wait()
        raise AssertionError

    app = LatheApp(None, connect=connect, now=lambda: 0.0, glyphs="unicode")
    async with app.run_test(size=(80, 24)) as pilot:
        for place in PLACES:
            await app.action_go(place.mode)
            await pilot.pause()
            _check_frame(screen_lines(app), 80, 24)
            assert "starting the engine" in screen_lines(app)[0]
            await _compare(app, pilot, place.mode, "starting")


def test_each_place_has_its_words() -> None:
    assert set(TELLING) == set(EMPTY) == {place.mode for place in PLACES}


@pytest.mark.parametrize("glyphs", ["ascii", "blocks"])
async def test_in_ascii_every_character_is_ascii(glyphs: str) -> None:
    async with running(glyphs=glyphs) as (app, pilot, _):
        for mode, wanted in TELLING.items():
            text = await _shows(app, pilot, mode, wanted)
            if glyphs == "ascii":
                assert text.isascii(), (mode, sorted({c for c in text if not c.isascii()}))
                await _compare(app, pilot, mode, "ascii")


@pytest.mark.parametrize("size", [(59, 24), (40, 12), (20, 6), (80, 15)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_a_tiny_terminal_shows_the_summary(size: tuple[int, int]) -> None:
    async with running(size=size) as (app, pilot, _):
        lines = screen_lines(app)
        assert all(cell_len(line) <= size[0] for line in lines)
        if size[1] > 6:
            assert any("gen " in line for line in lines)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "Requests" in screen_text(app))
        await pilot.resize_terminal(*size)
        await pilot.pause()
        assert "Requests" not in screen_text(app)


async def test_the_focus_outlives_a_very_small_terminal() -> None:
    async with running(mode="chat") as (app, pilot, _):
        prompt = app.screen.query_one(Prompt)
        await until(pilot, lambda: app.screen.focused is prompt)
        for small in ((50, 24), (80, 12)):
            await pilot.resize_terminal(*small)
            await until(pilot, lambda: app.screen.focused is None)
            await pilot.resize_terminal(80, 24)
            await until(pilot, lambda: app.screen.focused is prompt)
        await type_text(pilot, "q 7")
        assert (prompt.text, app.current_mode) == ("q 7", "chat")


async def test_a_list_keeps_the_focus_that_it_had() -> None:
    async with running(size=(120, 40), mode="serve") as (app, pilot, _):
        keys = app.screen.query_one("#key-list")
        keys.focus()
        await until(pilot, lambda: app.screen.focused is keys)
        await pilot.resize_terminal(50, 40)
        await until(pilot, lambda: app.screen.focused is None)
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: app.screen.focused is keys)


async def test_what_nobody_sees_is_not_changed() -> None:
    async with running(size=(50, 12), mode="jobs") as (app, pilot, bench):
        await pilot.press("x", "X", "R", "r", "C")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert not [call for call in bench.calls if call[0] in ("cancel", "resume", "submit", "clear_finished")]
        assert "cancel" not in screen_lines(app)[-1]
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "cancel" in screen_lines(app)[-1])


@pytest.mark.parametrize("width", [60, 66, 80, 100, 140, 200])
def test_the_status_row_shows_whole_facts_and_what_needs_attention(width: int) -> None:
    bench = ScriptedWorkbench()
    board = Board()
    board.take(asyncio.run(bench.snapshot()))
    line = status_line(board, width, paused=False, read_only=True, now=bench.now)
    text = "".join(text for text, _ in line)
    assert cell_len(text) == width
    assert "READ-ONLY" in text and (" ATTENTION 1 " if width >= 140 else " ! 1 ") in text
    assert text.rstrip().endswith(time.strftime("%H:%M", time.localtime(bench.now)))
    words = ("edge-07", "GPU0 12", "RAM 21", "tok/s", "jobs ")
    whole = (
        r"edge-07 ",
        r"GPU0 [\d.]+/24\.0G",
        r"RAM [\d.]+/64\.0G",
        r"[\d.]+ tok/s ",
        r"jobs 1r(unning)? 2q|1 running 2 queued",
    )
    for word, pattern in zip(words, whole, strict=True):
        assert word not in text or re.search(pattern, text), text


@pytest.mark.parametrize("width", [20, 30, 36, 40, 60])
def test_a_legend_has_no_name_without_its_figure(width: int) -> None:
    bench = ScriptedWorkbench()
    board = Board()
    board.take(asyncio.run(bench.snapshot()))
    lines = ["".join(text for text, _ in line) for line in memory_panel(board, width, 8, UNICODE)]
    legend = next(line for line in lines if "weights" in line)
    assert cell_len(legend) <= width
    for name in ("weights", "KV", "other"):
        assert name not in legend or re.search(rf"{name} [\d.]+[BKMG]", legend), legend
    assert width < 36 or "other" in legend


async def test_figures_move_while_visible_and_only_then() -> None:
    async with running() as (app, pilot, bench):
        before = screen_text(app)
        await tick(app, pilot, bench, 7)
        assert screen_text(app) != before
        dashboard = app.current_place
        assert dashboard is not None
        drawn = dashboard.query_one("#memory Canvas")
        await app.action_go("models")
        await pilot.pause()
        cached = drawn._strips  # type: ignore[attr-defined]
        await tick(app, pilot, bench, 7)
        assert drawn._strips is cached  # type: ignore[attr-defined]


async def test_what_a_small_sample_cannot_say_is_not_said() -> None:
    async with running() as (app, pilot, _):
        assert app.board.snapshot is not None
        traffic = msgspec.structs.replace(app.board.snapshot.traffic, ttft=Percentiles(12, 0.1, 0.2, 0.9))
        app.board.snapshot = msgspec.structs.replace(app.board.snapshot, traffic=traffic)
        app.redraw()
        await pilot.pause()
        row = next(line for line in screen_lines(app) if "first token" in line)
        assert "n=12" in row
        assert "900" not in row


async def test_unknown_is_a_dash_not_a_zero() -> None:
    async with running() as (app, pilot, _):
        assert app.board.snapshot is not None
        app.board.snapshot = msgspec.structs.replace(app.board.snapshot, sample=Sample(t=1.0, wall=1.0))
        app.redraw()
        await pilot.pause()
        lines = screen_lines(app)
        for name in ("RAM", "CPU", "Disk"):
            row = next(line for line in lines if f"│ {name}" in line)
            assert row.split("│")[1].rstrip().endswith("-"), row
