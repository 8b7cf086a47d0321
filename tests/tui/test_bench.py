"""Bench: slower tests first, a test's history, starting and stopping a bench."""

from __future__ import annotations

import msgspec
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.steps import BenchServedStep, BenchStep
from lathe.tui import glyphs
from lathe.tui.views import bench as view
from lathe.tui.widgets.paint import width_of
from support import scripted_evals as evals
from support.screens import running, screen_lines, screen_text, type_text, until
from support.scripted_workbench import ScriptedWorkbench

MODEL = "qwen3-8b-q4_k_m"


async def test_what_became_slower_stands_first_with_its_history() -> None:
    async with running(size=(120, 40), mode="bench") as (app, pilot, _):
        await until(pilot, lambda: "v slower" in screen_text(app))
        lines = screen_lines(app)
        assert "1 slower" in lines[2]
        assert "A processor, 8 cores" in lines[2]
        tests = [line for line in lines if "tg128" in line or "pp512" in line]
        assert "tg128" in tests[0] and "-17.7%" in tests[0]
        assert "= steady" in next(line for line in tests if "pp512" in line)
        await until(pilot, lambda: "History" in screen_text(app) and "3 runs, newest right" in screen_text(app))
        await pilot.press("enter", "enter")
        await until(pilot, lambda: "earlier median" in screen_text(app))
        assert "15.10 +/- 0.15" in screen_text(app)


async def test_a_bench_is_started_from_the_form() -> None:
    async with running(size=(120, 40), mode="bench") as (app, pilot, bench):
        await until(pilot, lambda: "v slower" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: "Measure which model?" in screen_text(app))
        await type_text(pilot, "q4_k_m")
        await pilot.press("enter")
        await until(pilot, lambda: "prompt tokens" in screen_text(app))
        await type_text(pilot, "512 64")
        await until(pilot, lambda: "3 tests, 5 repetitions each" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
        step = next(call[1] for call in bench.calls if call[0] == "submit")
        assert isinstance(step, BenchStep)
        assert step.prompt_tokens == (512, 64)
        assert app.did == f"lathe bench run {MODEL} -p 512,64 -n 128 -t 0 -ctk f16 -r 5 -d 0"


async def test_as_served_is_another_step_and_again_repeats_the_usual() -> None:
    async with running(size=(120, 40), mode="bench") as (app, pilot, bench):
        await until(pilot, lambda: "v slower" in screen_text(app))
        await pilot.press("R")
        await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
        assert app.did == f"lathe bench run {MODEL}"
        await pilot.press("r")
        await until(pilot, lambda: "Measure which model?" in screen_text(app))
        await type_text(pilot, "q4_k_m")
        await pilot.press("enter")
        await until(pilot, lambda: "prompt tokens" in screen_text(app))
        await pilot.press(*["down"] * 6, "right", "enter")
        await until(pilot, lambda: sum(call[0] == "submit" for call in bench.calls) == 2)
        step = bench.calls[-1][1]
        assert isinstance(step, BenchServedStep)
        assert step.options is not None and step.options.context is not None and step.options.context >= 512
        assert app.did.endswith("--served")


async def test_a_bench_in_progress_is_a_row_and_can_be_stopped() -> None:
    bench = ScriptedWorkbench()
    job = Job(
        id="j-300", step=BenchStep(model=MODEL), title="bench", state="running", created_at=bench.now,
        started_at=bench.now - 40, last_event_at=bench.now,
        progress=Progress(label="tg128", done=3, total=10, unit="repetition", eta_s=70.0),
    )  # fmt: skip
    bench.queue, bench.logs = {job.id: job}, {job.id: []}
    async with running(bench, size=(120, 40), mode="bench") as (app, pilot, _):
        await until(pilot, lambda: "◐ running" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: "No bench runs under the cursor" in screen_text(app))
        await pilot.press("g", "x")
        await until(pilot, lambda: any(call[:2] == ("cancel", "j-300") for call in bench.calls))


def test_only_equal_settings_share_a_history() -> None:
    points = evals.bench_history()
    other = msgspec.structs.replace(
        points[0], setting="backends CPU, n_threads 4", number=99, trend="first", change=None
    )
    series = view.series_of([other, *points])
    assert [(one.newest.test, len(one.points)) for one in series] == [("tg128", 3), (other.test, 1), ("pp512", 3)]
    assert view.change_of(other) == ("-", "dim")


def test_the_graph_is_as_wide_as_its_panel() -> None:
    series = view.series_of(evals.bench_history())[0]
    for width in (10, 40, 118):
        lines = view.history_lines(series, width, 4, glyphs.UNICODE)
        assert len(lines) == 4
        assert all(width_of(line) == width for line in lines)
