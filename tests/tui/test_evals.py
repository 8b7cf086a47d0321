"""Evals: regressions first, what noise is, running and stopping, baselines, gates, one case side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lathe.engine.evals.compare import compare
from lathe.engine.evals.results import EvalRun, Record
from lathe.engine.evals.values import Response
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.steps import EvalStep
from lathe.tui import glyphs
from lathe.tui.screens.case import CaseView
from lathe.tui.views import case as case_view
from lathe.tui.views import evals as view
from lathe.tui.views import words
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import width_of
from lathe.tui.widgets.prompt import Prompt
from support import scripted_evals as evals
from support.screens import compare as compare_with
from support.screens import running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench

REPLACE = msgspec.structs.replace


GOLDEN = Path(__file__).parents[1] / "golden" / "tui"
SIZES = [(80, 24), (120, 40), (160, 50)]
TELLING = {"evals": "Lima", "bench": "newest right", "review": "0 of 6 judged"}


@pytest.fixture
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_utc")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", ["evals", "bench", "review"])
async def test_the_place_looks_as_it_did(mode: str, size: tuple[int, int]) -> None:
    async with running(size=size, mode=mode) as (app, pilot, bench):
        await until(pilot, lambda: TELLING[mode] in screen_text(app))
        await tick(app, pilot, bench, 0)
        await pilot.pause()
        # Without the frame, which changes with every place of the app.
        compare_with(GOLDEN / f"{mode}-{size[0]}x{size[1]}.txt", "\n".join(screen_lines(app)[2:]) + "\n")


def _row(lines: list[str], start: str) -> str:
    return next(line for line in lines if start in line)


async def test_a_run_is_held_against_its_baseline_regressions_first() -> None:
    async with running(size=(160, 50), mode="evals") as (app, pilot, _):
        await until(pilot, lambda: "{+Cusco+}" in screen_text(app))
        lines = screen_lines(app)
        assert "gates FAILED (exit 1)" in lines[2]
        assert "e-1 qwen3-8b-q5_k_m → e-2 qwen3-8b-q4_k_m" in lines[2]
        # Three of six cases moved, which six cases cannot tell from chance: no regression is claimed.
        figure = _row(lines, "exact_match *")
        assert all(text in figure for text in ("0.833", "0.667", "-0.167", "[-0.667, +0.333]", "v? noise"))
        assert "MISSED no case tagged critical may break" in screen_text(app)
        kinds = [next(word for word in ("broken", "fixed") if word in line) for line in lines if "v broken" in line
                 or "^ fixed" in line]  # fmt: skip
        assert kinds == ["broken", "broken", "fixed"]
        assert "e-1  pass" in _row(lines, "e-2  FAIL")


async def test_all_cases_then_one_of_them_side_by_side_and_its_neighbours() -> None:
    async with running(size=(120, 40), mode="evals") as (app, pilot, _):
        await until(pilot, lambda: "Changed cases" in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: "3 same" in screen_text(app) and "00006" in screen_text(app))
        await pilot.press("f", "enter", "enter")
        await until(pilot, lambda: isinstance(app.screen, CaseView))
        await until(pilot, lambda: "this case in other runs" in screen_text(app))
        text = screen_text(app)
        assert "e-1 pass, e-2 FAIL" in text
        assert "the same in both runs" in text
        assert "Capital of Peru?" in text
        await pilot.press("right")
        await until(pilot, lambda: "Capital of Chad?" in screen_text(app))
        await pilot.press("left")
        await until(pilot, lambda: "Capital of Peru?" in screen_text(app))
        await pilot.press("y", "escape")
        await until(pilot, lambda: not isinstance(app.screen, CaseView))
        assert app.clipboard == "Cusco"


async def test_a_suite_is_run_with_several_seeds() -> None:
    async with running(mode="evals") as (app, pilot, bench):
        await until(pilot, lambda: "e-2" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: "Run which suite?" in screen_text(app))
        await type_text(pilot, "smoke")
        await pilot.press("enter")
        await until(pilot, lambda: "Run smoke on which model?" in screen_text(app))
        await type_text(pilot, "q4_k_m")
        await pilot.press("enter")
        await until(pilot, lambda: "cases per task" in screen_text(app))
        await type_text(pilot, "5")
        await pilot.press("down")
        await type_text(pilot, "1 2")
        await pilot.press("down")
        await type_text(pilot, "data=/x")
        await pilot.press("enter")
        await until(pilot, lambda: sum(call[0] == "submit" for call in bench.calls) == 2)
        steps = [call[1] for call in bench.calls if call[0] == "submit"]
        assert [(s.suite, s.model, s.limit, s.seed) for s in steps] == [
            ("smoke", "qwen3-8b-q4_k_m", 5, seed) for seed in (1, 2)
        ]
        assert steps[0].variables == {"data": "/x"}
        assert app.did == "lathe eval run smoke qwen3-8b-q4_k_m --limit 5 --seed 2 --var data=/x"
        await tick(app, pilot, bench)
        await until(pilot, lambda: "queued" in screen_text(app))
        newest = max(bench.queue, key=lambda id_: int(id_.removeprefix("j-")))
        await until(pilot, lambda: app.screen.query_one("#run-list", Grid).cursor == newest)


async def test_a_form_says_what_is_wrong() -> None:
    async with running(mode="evals") as (app, pilot, bench):
        await pilot.press("r")
        await until(pilot, lambda: "Run which suite?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "on which model?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "cases per task" in screen_text(app))
        await pilot.press("down", "down")
        await type_text(pilot, "data")
        await until(pilot, lambda: "write NAME=VALUE" in screen_text(app))
        await pilot.press("enter")
        assert not any(call[0] == "submit" for call in bench.calls)


async def test_a_suite_that_needs_data_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = REPLACE(evals.SUITES[0], name="arc", needs=("data",))
    monkeypatch.setattr(evals, "SUITES", [needy])
    async with running(mode="evals") as (app, pilot, bench):
        await pilot.press("r")
        await until(pilot, lambda: "Run which suite?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "on which model?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "the suite needs it" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "the suite cannot run without it" in screen_text(app))
        assert not any(call[0] == "submit" for call in bench.calls)
        await type_text(pilot, "/d")
        await pilot.press("enter")
        await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
        step = next(call[1] for call in bench.calls if call[0] == "submit")
        assert step.variables == {"data": "/d"}


async def test_a_broken_suite_is_told_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = REPLACE(evals.SUITES[0], name="bad", problem="bad.yaml:3: unknown field `promt`")
    monkeypatch.setattr(evals, "SUITES", [bad])
    async with running(mode="evals") as (app, pilot, bench):
        await pilot.press("r")
        await until(pilot, lambda: "Run which suite?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "cannot be run" in screen_text(app))
        assert "unknown field `promt`" in screen_text(app)
        await pilot.press("escape", "u")
        await until(pilot, lambda: "Suites:" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "It cannot be run" in screen_text(app))
        assert not bench.calls


async def test_a_run_becomes_a_baseline_and_stops_being_one() -> None:
    async with running(mode="evals") as (app, pilot, bench):
        await until(pilot, lambda: "e-2" in screen_text(app))
        await pilot.press("j", "b")
        await until(pilot, lambda: "Forget the baseline release?" in screen_text(app))
        await pilot.press("y")
        await until(pilot, lambda: ("set_baseline", "release", None) in bench.calls)
        await until(pilot, lambda: "no baseline of this suite" in screen_text(app))
        await pilot.press("b")
        await until(pilot, lambda: "Baseline e-1" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: ("set_baseline", "capitals", "e-1") in bench.calls)
        assert app.did == "lathe eval baseline capitals e-1"


async def test_two_marked_runs_are_compared_the_older_as_the_base() -> None:
    async with running(mode="evals") as (app, pilot, bench):
        await bench.set_baseline("release", None)
        await until(pilot, lambda: "e-2" in screen_text(app))
        await pilot.press("space", "space", "d")
        await until(pilot, lambda: "e-1 qwen3-8b-q5_k_m → e-2" in screen_text(app))
        current = app.current_place
        assert current is not None
        assert current.command() == "lathe eval compare e-1 e-2"
        await pilot.press("g", "d")
        await until(pilot, lambda: "Compare e-2 with" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "→ e-2" in screen_text(app))


async def test_gates_of_this_session(tmp_path: Path) -> None:
    async with running(mode="evals", size=(120, 40), state_dir=tmp_path) as (app, pilot, _):
        await until(pilot, lambda: "gates FAILED" in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: "Gates of e-2" in screen_text(app))
        await pilot.press("ctrl+a", "ctrl+k", "x", "ctrl+s")
        await until(pilot, lambda: "is not a gate" in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: "Gates of e-2" in screen_text(app))
        screen = app.screen
        pad = screen.query_one("TextPad")
        pad.put("exact_match > 0.5")  # type: ignore[attr-defined]
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "gates passed" in screen_text(app))
        assert app.did == "lathe eval gate e-2 --gate 'exact_match > 0.5' --baseline e-1"


async def test_a_report_is_written(tmp_path: Path) -> None:
    async with running(mode="evals", size=(120, 40), state_dir=tmp_path) as (app, pilot, _):
        await until(pilot, lambda: "gates FAILED" in screen_text(app))
        await pilot.press("E")
        await until(pilot, lambda: "Report of e-2" in screen_text(app))
        box = app.screen.query_one("TextBox")
        box.value = str(tmp_path / "report.txt")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: "the suffix chooses" in screen_text(app))
        box.value = str(tmp_path / "report.md")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: (tmp_path / "report.md").exists())
        assert "capitals" in (tmp_path / "report.md").read_text()
        # With the focus in the cases, what is shown is exported, as everywhere.
        await pilot.press("enter", "E")
        await until(pilot, lambda: "Export what is shown" in screen_text(app))


def _live(bench: ScriptedWorkbench, state: str = "running") -> EvalRun:
    run = REPLACE(
        evals.runs()["e-2"], id="e-3", state=state, done=40, total=200, failed=2, seconds=61.0, summaries=(),
        created_at=evals.T0 + 300, model="qwen3-8b-q4_k_m",
    )  # fmt: skip
    bench.eval_book["e-3"] = run
    return run


async def test_a_run_in_progress_shows_pace_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ScriptedWorkbench()
    _live(bench)
    monkeypatch.setitem(evals.RECORDS, "e-3", evals.RECORDS["e-2"][:2])
    job = Job(
        id="j-200", step=EvalStep(suite="capitals", model="qwen3-8b-q4_k_m"), title="capitals", state="running",
        created_at=bench.now, started_at=bench.now - 60, last_event_at=bench.now,
        progress=Progress(label="asking", done=40, total=200, unit="case", rate=0.66, eta_s=242.0),
    )  # fmt: skip
    bench.queue[job.id], bench.logs[job.id] = job, []
    async with running(bench, mode="evals", size=(120, 40)) as (app, pilot, _):
        await until(pilot, lambda: "40 of 200 answers" in screen_text(app))
        text = screen_text(app)
        assert "◐ 20% 0" in text
        assert "ETA" in text
        assert "failed 2" in text
        assert "Paris" in text
        await pilot.press("x")
        await until(pilot, lambda: any(call[:2] == ("cancel", "j-200") for call in bench.calls))


async def test_a_stopped_run_is_gone_on_with() -> None:
    bench = ScriptedWorkbench()
    run = _live(bench, "interrupted")
    bench.eval_book["e-3"] = REPLACE(
        run, settings=REPLACE(run.settings, limit=20, seed=4), path="/suites/capitals.yaml"
    )
    evals.RECORDS["e-3"] = []
    try:
        async with running(bench, mode="evals", size=(120, 40)) as (app, pilot, _):
            await until(pilot, lambda: "It was stopped: R goes on" in screen_text(app))
            await pilot.press("b")
            await until(pilot, lambda: "only a finished run" in screen_text(app))
            await pilot.press("R")
            await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
            step = next(call[1] for call in bench.calls if call[0] == "submit")
            assert (step.suite, step.limit, step.seed, step.fresh) == ("/suites/capitals.yaml", 20, 4, False)
            await tick(app, pilot, bench)
            assert app.screen.query_one("#run-list", Grid).cursor == "e-3", "the job works at this run"
    finally:
        del evals.RECORDS["e-3"]


async def test_a_job_that_failed_before_its_first_case_is_not_lost() -> None:
    from lathe.engine.errors import Failure

    bench = ScriptedWorkbench()
    failure = Failure("E_BAD_CASES", "capitals.yaml:7: case 'x' has no answer", "nothing was run: mend 1 case")
    step = EvalStep(suite="capitals", model="qwen3-8b-q4_k_m")
    bench.queue["j-201"] = Job(
        id="j-201", step=step, title="capitals", state="failed", created_at=bench.now + 999, failure=failure
    )
    async with running(bench, mode="evals", size=(120, 40)) as (app, pilot, _):
        await until(pilot, lambda: "j-201" in screen_text(app))
        await pilot.press("k", "g")
        await until(pilot, lambda: "case 'x' has no answer" in screen_text(app))


async def test_a_question_goes_to_the_playground_for_both_models() -> None:
    async with running(mode="evals", size=(120, 40)) as (app, pilot, _):
        await until(pilot, lambda: "{+Cusco+}" in screen_text(app))
        await pilot.press("o")
        await until(pilot, lambda: app.current_mode == "chat")
        assert app.screen.query_one(Prompt).text == "Capital of Peru?"
        await until(pilot, lambda: "Prompt to A and B" in screen_text(app))


async def test_a_run_is_forgotten_after_asking_a_baseline_after_a_word() -> None:
    async with running(mode="evals") as (app, pilot, bench):
        await until(pilot, lambda: "e-2" in screen_text(app))
        await pilot.press("j", "D")
        await until(pilot, lambda: "Type forget" in screen_text(app))
        await pilot.press("escape", "k", "D")
        await until(pilot, lambda: "Forget e-2?" in screen_text(app))
        await pilot.press("y")
        await until(pilot, lambda: ("remove_eval_run", "e-2") in bench.calls)
        await until(pilot, lambda: "e-2 is forgotten" in screen_text(app))
        assert app.screen.query_one("#run-list", Grid).total == 1


async def test_runs_that_share_no_question_say_so() -> None:
    from lathe.engine.errors import UsageError

    async with running(mode="evals", size=(160, 50)) as (app, pilot, bench):
        await until(pilot, lambda: "gates FAILED" in screen_text(app))
        bench.fail["eval_compare"] = UsageError("e-1 and e-2 share no question")
        await pilot.press("d")
        await until(pilot, lambda: "Compare e-2 with" in screen_text(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "share no question" in screen_text(app))
        assert "0.667" in screen_text(app)


# -- values ----------------------------------------------------------------------------------------------------------
def test_words_that_changed_are_marked_without_colour() -> None:
    spans = words.marked("Pump P-12 every 90 days.", "Pump P-12 every 3 months.")
    assert "".join(text for text, _ in spans) == "Pump P-12 every {-90-}{+3+} {-days-}{+months+}."
    assert words.marked("a\x1b[31mb", "a\x1b[31mb") == [("ab", "text")]
    long = "word " * 3000
    assert words.marked("x", long) == [(long, "text")]


@pytest.mark.parametrize("width", [1, 7, 40])
def test_lines_never_exceed_their_width(width: int) -> None:
    spans = words.marked("a b c", "a longer 漢字漢字漢字 sentence\n\nof several words " * 9)
    lines = words.flow(spans, width, 12)
    assert len(lines) <= 12
    assert all(width_of(line) <= max(width, 2) for line in lines[:-1])


def test_a_surely_worse_run_is_called_regressed_and_an_equal_one_is_not() -> None:
    run = evals.runs()["e-1"]
    many = [_numbered(number, True) for number in range(200)]
    worse = [_numbered(number, number % 2 == 0) for number in range(200)]
    told = compare(run, many, run, worse).metrics[0]
    assert view.verdict_of(told) == ("v REGRESSED", "bad")
    assert view.sign_of(compare(run, many, run, worse)) == "v"
    assert view.verdict_of(compare(run, worse, run, many).metrics[0]) == ("^ improved", "good")
    assert view.verdict_of(compare(run, many, run, many).metrics[0]) == ("= same", "dim")
    assert view.sign_of(compare(run, many, run, many)) == "="


def _numbered(number: int, right: bool) -> Record:
    return REPLACE(
        evals.RECORDS["e-1"][0], case=str(number), item_sha256=str(number), response=Response(text=str(right)),
        statistics={"exact_match": (float(right), 1.0)}, values={"exact_match": float(right)},
    )  # fmt: skip


def test_choices_are_told_with_their_likelihoods() -> None:
    from lathe.engine.generation import Score

    record = Record(
        task="pick", case="1", kind="choice", item_sha256="1", continuations=("Paris", "Rome"), gold=(0,), choice=1,
        response=Response(scores=(Score(-2.5, 1, False), Score(-1.25, 1, True))), values={"acc": 0.0},
    )  # fmt: skip
    seen = case_view.CaseSeen(run=evals.runs()["e-1"], after=record)
    text = "\n".join("".join(part for part, _ in line) for line in case_view.full(seen, 100))
    assert " *    -2.500  Paris" in text
    assert ">     -1.250  Rome" in text


def test_numbers_are_short() -> None:
    shown = [view.number(value) for value in (None, 0.0, 0.82, 9.123, 41.25, 12345.6, 0.0001, float("nan"))]
    assert shown == ["-", "0", "0.820", "9.123", "41.25", "1.235e+04", "0.0001", "-"]
    assert [view.signed(value) for value in (-0.05, 0.0, 0.006)] == ["-0.050", "0", "+0.006"]


def test_rows_of_an_empty_book_are_none() -> None:
    assert view.run_rows([], [], {}, {}, 0.0, glyphs.UNICODE) == []


def test_every_cell_of_the_figures_has_an_ink() -> None:
    run = evals.runs()["e-1"]
    summary = run.summaries[0]
    interval = summary.metrics["exact_match"]
    full = REPLACE(
        summary, tags={"a": interval, "b": interval}, invariance={"typo": interval},
        percentiles={"ttft_s": {"p50": 0.1, "p95": 0.2, "p99": 0.3}},
    )  # fmt: skip
    comparison = compare(run, evals.RECORDS["e-1"], run, evals.RECORDS["e-2"])
    for told in (None, comparison):
        rows = view.figure_rows(REPLACE(run, summaries=(full, full)), told)
        assert len(rows) == 2 * 6
        width = len(view.DIFFERENCES if told else view.FIGURES)
        for row in rows:
            assert len(row.cells) == width
            assert all(isinstance(cell, str) or cell[1] for cell in row.cells)
