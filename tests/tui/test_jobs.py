"""Jobs: cancel keeps the checkpoint, resume goes on, kill asks for a word, the log follows, lists and clearing."""

from __future__ import annotations

import pytest
from lathe.engine.events import JobChanged
from lathe.engine.jobs.values import Artefact, Job, Outcome
from lathe.engine.steps import QuantizeStep, ScanStep
from lathe.tui import formats
from lathe.tui.app import LatheApp
from lathe.tui.glyphs import UNICODE
from lathe.tui.views import jobs as view
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.logview import LogView
from lathe.tui.widgets.paint import width_of
from support.screens import running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import REPLACE, ScriptedWorkbench


def _select(app: LatheApp, job_id: str) -> None:
    app.screen.query_one(Grid).select(job_id)


def _state(bench: ScriptedWorkbench, job_id: str) -> str:
    return str(bench.queue[job_id].state)


async def test_a_job_is_cancelled_and_resumed() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        _select(app, "j-118")
        await pilot.press("x")
        await until(pilot, lambda: _state(bench, "j-118") == "cancelled")
        assert ("cancel", "j-118", False) in bench.calls
        assert app.did == "lathe jobs cancel j-118"
        await until(pilot, lambda: "R resumes it" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: "j-118 is cancelled already" in screen_text(app))
        await pilot.press("R")
        await until(pilot, lambda: _state(bench, "j-118") in ("queued", "running"))
        assert app.did == "lathe jobs resume j-118"
        await tick(app, pilot, bench, 1)
        assert _state(bench, "j-118") in ("queued", "running")


async def test_killing_asks_for_a_word() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        _select(app, "j-118")
        await pilot.press("X")
        await until(pilot, lambda: "Type kill" in screen_text(app))
        await pilot.press("enter")
        assert _state(bench, "j-118") == "running"
        await type_text(pilot, "kill")
        await pilot.press("enter")
        await until(pilot, lambda: ("cancel", "j-118", True) in bench.calls)


async def test_a_failed_job_tells_why_and_runs_again() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-115" in screen_text(app))
        _select(app, "j-115")
        failure = bench.queue["j-115"].failure
        assert failure is not None
        await until(pilot, lambda: failure.message[:30] in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: failure.code in screen_text(app) and "attempts" in screen_text(app))
        await pilot.press("escape", "r")
        await until(pilot, lambda: any(call[:2] == ("submit", bench.queue["j-115"].step) for call in bench.calls))


async def test_the_log_follows_the_job_under_the_cursor() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        _select(app, "j-118")
        await tick(app, pilot, bench)
        bench.logs["j-118"].append("blk.35 written")
        await tick(app, pilot, bench)
        await until(pilot, lambda: "blk.35 written" in screen_text(app))
        await pilot.press("l")
        assert isinstance(app.screen.focused, LogView)
        bench.logs["j-119"] = ["waiting for the GPU"]
        await pilot.press("escape")
        _select(app, "j-119")
        await until(pilot, lambda: "waiting for the GPU" in screen_text(app))
        assert "blk.35 written" not in screen_text(app)


async def test_progress_never_goes_back_and_the_estimate_waits() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        seen: list[float] = []
        for _ in range(4):
            await tick(app, pilot, bench, 2)
            job = next(job for job in app.board.jobs if job.id == "j-118")
            seen.append((job.progress.stage - 1) + (job.progress.fraction or 0.0))
        assert seen == sorted(seen)
        assert seen[0] < seen[-1]


async def test_lists_and_clearing() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "[active]" in screen_text(app) and "j-115" not in screen_text(app))
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "[failed]" in screen_text(app) and "j-118" not in screen_text(app))
        await pilot.press("left_square_bracket", "left_square_bracket")
        await until(pilot, lambda: "[all]" in screen_text(app))
        await pilot.press("C")
        await until(pilot, lambda: "Among them 1 tune job" in screen_text(app))
        assert "FRONTIER.json" in screen_text(app)
        await pilot.press("escape", "C")
        assert any(job.state == "done" for job in bench.queue.values())
        await until(pilot, lambda: "Clear ended jobs?" in screen_text(app))
        await pilot.press("y")
        await until(pilot, lambda: not any(job.state in ("done", "failed") for job in bench.queue.values()))
        await until(pilot, lambda: "left the list" in screen_text(app))


async def test_the_cursor_stays_on_its_job_when_others_come() -> None:
    async with running(size=(120, 40), mode="jobs") as (app, pilot, bench):
        await until(pilot, lambda: "j-118" in screen_text(app))
        _select(app, "j-117")
        for number in range(200, 206):
            job = Job(id=f"j-{number}", step=QuantizeStep(model="qwen3-8b", type="Q8_0"), title="quantize",
                      created_at=bench.now + number)  # fmt: skip
            bench.queue[job.id] = job
            bench.logs[job.id] = []
            bench.emit(JobChanged(job))
        await until(pilot, lambda: "j-205" in screen_text(app))
        assert app.screen.query_one(Grid).cursor == "j-117"


async def test_a_silent_job_is_called_stalled() -> None:
    bench = ScriptedWorkbench()
    silent = REPLACE(bench.queue["j-118"], last_event_at=bench.now - 45)
    bench.queue["j-118"] = silent
    async with running(bench, size=(120, 40), mode="jobs", ticks=0) as (app, pilot, _):
        await until(pilot, lambda: "stalled" in screen_text(app))


async def test_at_80_columns_everything_important_is_there() -> None:
    async with running(mode="jobs") as (app, pilot, _):
        await until(pilot, lambda: "j-118" in screen_text(app))
        lines = screen_lines(app)
        row = next(line for line in lines if "j-118" in line)
        assert "quantize" in row
        assert "running" in row
        assert "%" in row


@pytest.mark.parametrize("width", [40, 60, 78, 158])
def test_results_are_shown_whole(width: int) -> None:
    figures = {"perplexity": 9.1234567, "perplexity_error": 0.0521, "bits_per_byte": 0.7123, "chunks": 142, "ok": True}
    made = Artefact(name="m" * 60, path="/m", format="gguf", bytes=5 << 30)
    job = Job(id="j-1", step=ScanStep(), title="scan", state="done", created_at=1.0, started_at=1.0, finished_at=9.0)
    for outcome in (Outcome(figures=figures), Outcome(artefacts=(made,), figures=figures)):  # type: ignore[arg-type]
        line = view.detail(REPLACE(job, outcome=outcome), 9.0, width, 3, UNICODE)[-1]
        text = "".join(text for text, _ in line)
        assert width_of(line) <= width
        pairs = {f"{name} {formats.figure(value)}" for name, value in figures.items()}
        for shown in text.split("   ")[bool(outcome.artefacts) :]:
            assert shown.strip() in {*pairs, "…"}, text


def test_details_are_written_as_people_write_them() -> None:
    step = QuantizeStep(model="m", type="Q4_K_M", pure=True, prune_layers=(3, 4), tensor_types={"attn_v": "Q6_K"})
    job = Job(id="j-1", step=step, title="quantize", created_at=1.0)
    facts = dict(view.facts(job, 2.0))
    assert (facts["pure"], facts["prune_layers"], facts["tensor_types"]) == ("yes", "3, 4", "attn_v=Q6_K")
    scan = dict(view.facts(REPLACE(job, step=ScanStep(roots=("/models", "/more"))), 2.0))
    assert scan["roots"] == "/models, /more"
    assert "roots" not in dict(view.facts(REPLACE(job, step=ScanStep()), 2.0))
