"""Attaching, losing the engine and finding it again, leaving, errors, looks: the life of the app."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import DoesNotFit, UnavailableError
from lathe.engine.events import JobChanged, LogLine, Stale
from lathe.engine.jobs.values import Job
from lathe.engine.states import EngineInfo
from lathe.engine.steps import BenchStep, QuantizeStep
from lathe.engine.workbench import Workbench
from lathe.tui import link
from lathe.tui.app import LatheApp
from lathe.tui.board import Board, apply
from support import scripted_data as data
from support.screens import running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import REPLACE, ScriptedWorkbench


async def test_the_first_paint_needs_no_engine() -> None:
    ready = asyncio.Event()
    bench = ScriptedWorkbench()

    async def connect(_start: bool) -> Workbench:
        await ready.wait()
        return bench

    app = LatheApp(None, connect=connect)
    async with app.run_test() as pilot:
        await pilot.pause()
        assert "starting the engine" in screen_text(app)
        ready.set()
        await until(pilot, lambda: "edge-07" in screen_text(app))


async def test_losing_the_engine_is_a_banner_and_attaching_again_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_DELAY_S", 0.01)
    second = ScriptedWorkbench()
    attempts: list[int] = []

    async def connect(start: bool) -> Workbench:
        assert start
        attempts.append(1)
        if len(attempts) < 3:
            raise UnavailableError("not yet")
        return second

    async with running(connect=connect) as (app, pilot, first):
        first.lost = True
        await app.step()
        await pilot.pause()
        assert "NO ENGINE" in screen_text(app) or app.link.workbench is second
        await until(pilot, lambda: app.link.workbench is second and app.board.lost is None)
        await pilot.pause()
        assert len(attempts) == 3
        assert first.closed
        assert "NO ENGINE" not in screen_text(app)
        second.emit(LogLine(1.0, "info", "engine", "hello again"))
        await until(pilot, lambda: app.board.log[-1].text == "hello again")


async def test_an_engine_that_was_stopped_is_started_again_by_a_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LOOK_S", 0.01)
    second = ScriptedWorkbench()
    asked: list[bool] = []

    async def connect(start: bool) -> Workbench | None:
        asked.append(start)
        return second if start else None

    async with running(connect=connect, mode="chat") as (app, pilot, first):
        first.stop()
        await until(pilot, lambda: len(asked) > 2)
        assert "the engine was stopped" in screen_lines(app)[2]
        assert "^e starts it again" in screen_lines(app)[2]
        assert not any(asked)
        await pilot.press("ctrl+e")
        await until(pilot, lambda: app.link.workbench is second and app.board.lost is None)
        assert asked[-1] and "NO ENGINE" not in screen_text(app)


async def test_a_stopped_engine_that_somebody_else_starts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LOOK_S", 0.01)
    second = ScriptedWorkbench()
    there: list[Workbench] = []

    async def connect(start: bool) -> Workbench | None:
        assert not start
        return there[0] if there else None

    async with running(connect=connect) as (app, pilot, first):
        first.stop()
        await until(pilot, lambda: app.link.stopped)
        there.append(second)
        await until(pilot, lambda: app.link.workbench is second and app.board.lost is None)


async def test_the_same_engine_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_DELAY_S", 0.01)
    async with running() as (app, pilot, bench):
        bench.lost = True
        await app.step()
        assert app.board.lost is not None
        bench.lost = False
        await until(pilot, lambda: app.board.lost is None)


async def test_actions_without_an_engine_report_and_nothing_breaks() -> None:
    async with running(mode="jobs") as (app, pilot, bench):
        bench.lost = True
        await app.step()
        await pilot.press("x")
        await until(pilot, lambda: any("does not answer" in line.text for line in app.board.log))
        assert app.is_running


async def test_an_error_is_a_toast_and_a_line_of_the_log() -> None:
    async with running(mode="models") as (app, pilot, bench):
        bench.fail["load"] = DoesNotFit("qwen3-8b does not fit: short by 1.2 GiB", hint="choose a smaller context")
        from lathe.tui.commands import execute

        execute(app, "load qwen3-8b")
        await until(pilot, lambda: "short by 1.2 GiB" in screen_text(app))
        assert "smaller context" in screen_text(app)
        last = app.board.log[-1]
        assert (last.level, last.source) == ("error", "front")
        assert last.text.endswith("short by 1.2 GiB; choose a smaller context")
        await app.action_go("logs")
        await until(pilot, lambda: any("short by 1.2 GiB" in line and "error" in line for line in screen_lines(app)))


async def test_a_bug_in_an_action_does_not_close_the_app() -> None:
    async def broken(_bench: Workbench) -> None:
        raise ZeroDivisionError("a bug")

    async with running() as (app, pilot, _):
        app.do(broken)
        await until(pilot, lambda: any("ZeroDivisionError" in line.text for line in app.board.log))
        assert app.is_running


async def test_a_job_that_ends_says_so_once() -> None:
    async with running() as (app, pilot, bench):
        job = Job(
            id="j-300",
            step=BenchStep(model="qwen3-8b"),
            title="qwen3-8b",
            state="done",
            started_at=1.0,
            finished_at=62.0,
        )
        bench.emit(JobChanged(job))
        bench.emit(JobChanged(job))
        await until(pilot, lambda: "j-300" in screen_text(app))
        await pilot.pause()
        said = [line.text for line in app.board.log if line.source == "front" and "j-300" in line.text]
        assert said == ["j-300 bench qwen3-8b: done in 01:01"]


async def test_events_show_at_once_and_a_gap_is_closed() -> None:
    async with running(mode="jobs") as (app, pilot, bench):
        bench.queue["j-400"] = Job(id="j-400", step=QuantizeStep(model="m"), title="unheard of", created_at=bench.now)
        bench.emit(Stale(5))
        await until(pilot, lambda: any(job.id == "j-400" for job in app.board.jobs))


def test_events_change_the_snapshot_and_nothing_else() -> None:
    board = Board()

    async def take() -> None:
        board.take(await ScriptedWorkbench().snapshot())

    asyncio.run(take())
    before = board.snapshot
    assert before is not None
    running_job = next(job for job in before.jobs if job.state == "running")
    after = apply(before, JobChanged(REPLACE(running_job, state="done")))
    assert next(job for job in after.jobs if job.id == running_job.id).state == "done"
    assert len(after.jobs) == len(before.jobs)
    assert next(job for job in before.jobs if job.id == running_job.id).state == "running"
    assert apply(before, LogLine(1.0, "info", "engine", "x")) is before


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_quitting_says_what_continues() -> None:
    async with running() as (app, pilot, bench):
        await pilot.press("q")
        await pilot.pause()
        assert app.is_running
        assert "ctrl+q" in screen_text(app)
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert not app.is_running
    message = "\n".join(app.what_continues())
    assert "j-118" in message
    assert "2 models in memory" in message
    assert bench.closed
    assert not any(call[0] in ("shutdown", "stop_server", "cancel", "unload") for call in bench.calls)


class InProcess(ScriptedWorkbench):
    async def snapshot(self) -> Any:
        snapshot = await super().snapshot()
        engine: EngineInfo = REPLACE(snapshot.engine, carrier="in-process")
        return REPLACE(snapshot, engine=engine)


async def test_quitting_the_engine_in_this_process_asks_first() -> None:
    async with running(InProcess()) as (app, pilot, _):
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert "Quit and stop?" in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.is_running, "Cancel has the focus"
        await pilot.press("ctrl+q")
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
    assert not app.is_running


# -- looks ------------------------------------------------------------------------------------------------------------


async def test_the_settings_choose_the_theme_and_a_key_changes_it() -> None:
    bench = ScriptedWorkbench()
    bench.values["appearance.theme"] = REPLACE(bench.values["appearance.theme"], value="lathe-light")
    async with running(bench) as (app, pilot, _):
        assert app.theme == "lathe-light"
        await pilot.press("T")
        await pilot.pause()
        assert app.theme == "lathe-contrast"
        await bench.set_setting("appearance.theme", "lathe-dark")
        await pilot.pause()
        assert app.theme == "lathe-contrast", "what was chosen here stays"


async def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with running() as (app, pilot, _):
        assert app.theme == "ansi-dark"
        strips = app.screen._compositor.render_strips()
        for strip in strips:
            for segment in strip:
                if segment.style is not None:
                    for colour in (segment.style.color, segment.style.bgcolor):
                        assert colour is None or colour.is_default, (segment.text, colour)
        await pilot.press("T")
        assert app.theme == "ansi-dark"


async def test_glyphs_can_be_changed_while_running() -> None:
    async with running(glyphs="ascii") as (app, pilot, _):
        assert screen_text(app).isascii()
        await pilot.press("ctrl+g")
        await pilot.pause()
        assert "━" in screen_text(app)


async def test_pause_freezes_and_a_step_moves() -> None:
    async with running() as (app, pilot, bench):
        await pilot.press("space")
        await pilot.pause()
        assert "PAUSED" in screen_text(app)
        frozen = screen_text(app)
        bench.advance(5)
        await app._tick()
        await pilot.pause()
        assert screen_text(app) == frozen
        await pilot.press("full_stop")
        await pilot.pause()
        assert screen_text(app) != frozen
        await pilot.press("space")
        await pilot.pause()
        assert "PAUSED" not in screen_text(app)


async def test_zoom_and_window() -> None:
    async with running() as (app, pilot, _):
        await pilot.press("w")
        await pilot.pause()
        assert "Throughput · 1h" in screen_text(app)
        await pilot.press("z")
        await pilot.pause()
        assert "Latency" not in screen_text(app)
        assert "Requests" in screen_text(app)
        assert "help" in screen_lines(app)[-1]
        await pilot.press("escape")
        await pilot.pause()
        assert "Latency" in screen_text(app)


# -- taking things along ----------------------------------------------------------------------------------------------


async def test_copying_also_writes_a_private_file(tmp_path: Path) -> None:
    async with running(mode="models", state_dir=tmp_path) as (app, pilot, _):
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
        file = tmp_path / "clipboard.txt"
        assert file.read_text() == f"{data.HOME}/models/bge-small-en"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert app.clipboard == file.read_text()
        await pilot.press("Y")
        await pilot.pause()
        assert file.read_text() == "lathe models show bge-small-en"


@pytest.mark.parametrize("suffix", ["csv", "json", "md"])
async def test_what_is_shown_can_be_exported(tmp_path: Path, suffix: str) -> None:
    async with running(mode="models", state_dir=tmp_path) as (app, pilot, _):
        await pilot.pause()
        await pilot.press("slash")
        await type_text(pilot, "q8_0")
        await pilot.press("enter", "E")
        await pilot.pause()
        screen: Any = app.screen
        path = tmp_path / f"out.{suffix}"
        screen.query_one("Input").value = str(path)
        await pilot.press("enter")
        await until(pilot, path.exists)
        text = path.read_text()
        assert "qwen3-8b-q8_0" in text
        assert "f16" not in text
        if suffix == "json":
            assert {row["quant"] for row in json.loads(text)} == {"Q8_0"}


async def test_a_file_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    async with running(state_dir=tmp_path) as (app, pilot, _):
        app.write(str(tmp_path / "no" / "folder" / "x.csv"), "text")
        await until(pilot, lambda: any("No such file" in line.text for line in app.board.log))


# -- read-only --------------------------------------------------------------------------------------------------------


CHANGING = {
    "load", "unload", "set_alias", "remove_alias", "submit", "rename", "remove", "cancel", "resume", "clear_finished",
    "start_server", "stop_server",
    "make_key", "revoke_key", "set_setting", "cancel_request", "set_baseline", "remove_eval_run", "review",
}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("models", "lubpveD"),
        ("jobs", "xXRrC"),
        ("serve", "sSnDxu"),
        ("settings", "eu"),
        ("dashboard", "x"),
        ("evals", "rbxRD"),
        ("bench", "rRx"),
        ("review", "arbtewl"),
    ],
)
async def test_read_only_changes_nothing(mode: str, keys: str) -> None:
    async with running(mode=mode, read_only=True) as (app, pilot, bench):
        await pilot.pause()
        assert "READ-ONLY" in screen_text(app)
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
            assert len(app.screen_stack) == 1, key
        assert not [call for call in bench.calls if call[0] in CHANGING]


async def test_a_slow_engine_gets_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    gate = asyncio.Event()

    class Slow(ScriptedWorkbench):
        async def snapshot(self) -> Any:
            if asked:
                asked.append(1)
                await gate.wait()
            return await super().snapshot()

    async with running(Slow(), ticks=0) as (app, _, _bench):
        asked.append(1)
        first = asyncio.create_task(app._tick())
        while len(asked) < 2:
            await asyncio.sleep(0)
        await app._tick()
        await app._tick()
        assert len(asked) == 2
        gate.set()
        await first


async def test_the_log_page_of_the_engine_is_read() -> None:
    bench = ScriptedWorkbench()
    bench.lines.insert(0, "not json at all")
    async with running(bench, mode="logs") as (app, pilot, bench):
        await tick(app, pilot, bench)
        assert any("not json at all" in line for line in screen_lines(app))
        assert any("ready" in line and "14:02:09" in line for line in screen_lines(app))


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
