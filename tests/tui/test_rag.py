"""Stores and Ask: building from the screen, what stands in a store, answers with citations and their support."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import MissingError, UnavailableError
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.rag.requests import Answered, AskEvent, AskRequest, Checked, PassageView, SentenceSupport
from lathe.engine.steps import (
    RagBuildStep,
    RagEvalStep,
    RagExploreStep,
    RagGoldenStep,
    RagReembedStep,
    RagVerifyStep,
    Step,
)
from lathe.store.rag.values import FileError, Filter
from lathe.tui.glyphs import ASCII, UNICODE
from lathe.tui.screens.ask import AskStore
from lathe.tui.screens.stores import Stores
from lathe.tui.views import answers
from lathe.tui.views import rag as view
from lathe.tui.widgets.fields import Fields
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import width_of
from support import scripted_stores as script
from support.foreign import HOSTILE
from support.screens import compare, running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import REPLACE, ScriptedWorkbench

GOLDEN = Path(__file__).parents[1] / "golden" / "tui"
SIZES = [(80, 24), (120, 40), (160, 50)]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Golden files hold times of day."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def _submitted(bench: ScriptedWorkbench) -> list[Step]:
    return [call[1] for call in bench.calls if call[0] == "submit"]


def _asked(app: Any) -> AskStore:
    assert isinstance(app.screen, AskStore)
    return app.screen


async def _question(pilot: Any, app: Any, text: str) -> None:
    place = _asked(app)
    await until(pilot, lambda: place.query_one(Fields)["store"] == "handbook" and place.query_one(Fields)["model"])
    place.query_one("#f-question").focus()
    await type_text(pilot, text)
    await pilot.press("enter")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_stores_look_as_they_did(size: tuple[int, int]) -> None:
    async with running(size=size, mode="rag") as (app, pilot, _):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await until(pilot, lambda: size[0] < 100 or "recall" in screen_text(app) or "overlap" in screen_text(app))
        compare(GOLDEN / f"rag-{size[0]}x{size[1]}.txt", "\n".join(screen_lines(app)[2:]) + "\n")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_an_answer_looks_as_it_did(size: tuple[int, int]) -> None:
    async with running(size=size, mode="ask") as (app, pilot, _):
        await _question(pilot, app, "reset the token")
        place = _asked(app)
        await until(pilot, lambda: place._checked is not None and not place._streaming)
        await until(pilot, lambda: place._found is not None)
        place._first_s = 0.012
        place._draw()
        await pilot.pause()
        text = "\n".join(screen_lines(app)[2:]) + "\n"
        compare(GOLDEN / f"ask-{size[0]}x{size[1]}.txt", text)


async def test_a_store_is_built_from_the_screen(tmp_path: Path) -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook" in screen_text(app))
        await pilot.press("n")
        await until(pilot, lambda: "New store" in screen_text(app))
        await type_text(pilot, "handbook")
        await until(pilot, lambda: "is there already" in screen_text(app))
        await pilot.press("2", "tab")
        await type_text(pilot, "/no/such/folder")
        await until(pilot, lambda: "there is no /no/such" in screen_text(app))
        app.screen.query_one("#f-sources").value = f"'{tmp_path}'"  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, RagBuildStep)
        assert (step.store, step.sources, step.embedder, step.tokens) == ("handbook2", (str(tmp_path),), None, 256)
        assert app.did.startswith("lathe rag build handbook2")


async def test_a_build_is_watched_and_its_end_is_read() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        job = await bench.submit(RagBuildStep(store="handbook"))
        running_ = bench._change(job, state="running", started_at=bench.now, last_event_at=bench.now,
                                 progress=Progress(label="reading", done=3, total=12, unit="file"))  # fmt: skip
        await until(pilot, lambda: "building 25%" in screen_text(app))
        assert "3 of 12 file" in screen_text(app)
        before = sum(call[0] == "store_documents" for call in bench.calls)
        await pilot.press("x")
        await until(pilot, lambda: ("cancel", running_.id, False) in bench.calls)
        await until(pilot, lambda: sum(call[0] == "store_documents" for call in bench.calls) > before)


async def test_documents_passages_errors_and_the_report() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("enter")
        app.screen.query_one("#documents", Grid).select("handbook/vpn.md")
        await pilot.press("enter")
        await until(pilot, lambda: "The token is valid" in screen_text(app))
        assert ("store_passages", "handbook", "handbook/vpn.md") in bench.calls
        await pilot.press("enter")
        await until(pilot, lambda: "y copies, esc closes" in screen_text(app))
        await pilot.press("escape", "escape")
        await until(pilot, lambda: "printers.pdf" in screen_text(app))
        await pilot.press("e")
        await until(pilot, lambda: "the file is encrypted" in screen_text(app))
        await pilot.press("p")
        await until(pilot, lambda: "Tokens per passage" in screen_text(app) and "Duplicates" in screen_text(app))
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.focused is app.screen.query_one("#store-list")
        await pilot.press("j", "p")
        await until(pilot, lambda: "Not explored yet." in screen_text(app))


async def test_every_action_is_a_step() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("r", "v", "P", "M")
        await until(pilot, lambda: len(_submitted(bench)) == 4)
        assert [type(step) for step in _submitted(bench)] == [
            RagBuildStep,
            RagVerifyStep,
            RagExploreStep,
            RagVerifyStep,
        ]
        assert [getattr(step, "mend", None) for step in _submitted(bench)] == [None, False, None, True]
        await pilot.press("b")
        await until(pilot, lambda: "no golden questions yet" in screen_text(app))
        await pilot.press("escape", "R")
        await until(pilot, lambda: "Re-embed handbook" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(_submitted(bench)[-1], RagReembedStep))
        await pilot.press("i")
        await until(pilot, lambda: "Golden questions for" in screen_text(app))
        await type_text(pilot, "/dev/null")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(_submitted(bench)[-1], RagGoldenStep))
        await pilot.press("o")
        await until(pilot, lambda: "Add to handbook" in screen_text(app))
        await type_text(pilot, "/dev/null")
        await pilot.press("enter")
        await until(pilot, lambda: getattr(_submitted(bench)[-1], "sources", None) == ("/dev/null",))


async def test_retrieval_is_measured_on_the_golden_questions() -> None:
    bench = ScriptedWorkbench()
    bench.stores_changed["handbook"] = {"questions": 3}
    async with running(bench, size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("b")
        await until(pilot, lambda: "Measure retrieval of" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: [type(step) for step in _submitted(bench)] == [RagEvalStep])
        assert isinstance(app.screen, Stores)
        assert app.screen._tab == "figures"


async def test_a_measurement_on_a_test_set_is_watched_from_any_store() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, _):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        place: Any = app.screen
        before = place.job
        measuring = Job(id="j-99", step=RagEvalStep(beir="/scifact"), title="scifact", state="running")
        jobs = [measuring, *app.board.jobs]
        assert view.shown_job(jobs, "handbook") == measuring
        assert view.shown_job([REPLACE(measuring, state="done"), *app.board.jobs], "handbook") == before
        busy = Job(id="j-98", step=RagVerifyStep(store="handbook"), title="handbook", state="running")
        assert view.shown_job([measuring, busy], "handbook") == busy


async def test_versions_show_what_each_changed() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("c")
        await until(pilot, lambda: "Versions" in screen_text(app) and "enter shows what changed" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: ("store_diff", "handbook", 0, 2) in bench.calls)
        await until(pilot, lambda: "Changes · version 2" in screen_text(app) and "c3c3c3" in screen_text(app))
        assert app.did == "lathe rag diff handbook 0 2"
        await pilot.press("escape")
        await until(pilot, lambda: "Versions" in screen_text(app))


async def test_drafted_questions_are_confirmed_or_dropped() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("Q")
        await until(pilot, lambda: "How are printers found?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "leave it as it is" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: _submitted(bench) == [RagGoldenStep(store="handbook", confirm=("draft-3",))])
        await pilot.press("t")
        await until(pilot, lambda: "Draft questions for handbook" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: getattr(_submitted(bench)[-1], "draft", 0) == 10)
        assert app.did.startswith("lathe rag golden handbook --draft 10 --model")


async def test_a_store_is_deleted_only_by_its_name() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("D")
        await until(pilot, lambda: "Delete the store handbook?" in screen_text(app))
        assert "/srv/handbook" in screen_text(app) and "stay as they are" in screen_text(app)
        await type_text(pilot, "hand")
        await pilot.press("enter", "escape")
        await pilot.pause()
        assert not [call for call in bench.calls if call[0] == "remove_store"]
        await pilot.press("D")
        await until(pilot, lambda: "Delete the store handbook?" in screen_text(app))
        await type_text(pilot, "handbook")
        await pilot.press("enter")
        await until(pilot, lambda: ("remove_store", "handbook") in bench.calls)
        await until(pilot, lambda: "Stores · 1" in screen_text(app))
        assert app.did == "lathe rag rm handbook"


async def test_access_and_watching() -> None:
    async with running(size=(120, 40), mode="rag") as (app, pilot, bench):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("A")
        await until(pilot, lambda: "Who may search handbook" in screen_text(app))
        await type_text(pilot, "nobody")
        await pilot.press("enter")
        await until(pilot, lambda: "there is no key nobody" in screen_text(app))
        await pilot.press(*["backspace"] * 6, "enter")
        await until(pilot, lambda: ("share_store", "handbook", []) in bench.calls)
        await pilot.press("W")
        await until(pilot, lambda: ("watch_store", "handbook") in bench.calls)
        await until(pilot, lambda: any(isinstance(step, RagBuildStep) for step in _submitted(bench)))
        place: Any = app.screen
        await until(pilot, lambda: not place._watched)


class _Watching(ScriptedWorkbench):
    """Watches without an end."""

    def __init__(self) -> None:
        super().__init__()
        self.left = asyncio.Event()

    async def watch_store(self, name: str, interval_s: float = 2.0) -> AsyncGenerator[Any, None]:
        self._enter("watch_store", name)
        try:
            await asyncio.Event().wait()
            yield
        finally:
            self.left.set()


async def test_watching_is_seen_and_stopped() -> None:
    bench = _Watching()
    async with running(bench, size=(120, 40), mode="rag") as (app, pilot, _):
        await until(pilot, lambda: "handbook/vpn.md" in screen_text(app))
        await pilot.press("W")
        await until(pilot, lambda: "watched" in screen_text(app))
        await pilot.press("W")
        await until(pilot, bench.left.is_set)
        await until(pilot, lambda: "● ready" in screen_text(app))


@pytest.mark.parametrize(("mode", "keys"), [("rag", "nroPvMRitbxWAD")])
async def test_a_read_only_session_only_looks(mode: str, keys: str) -> None:
    async with running(size=(120, 40), mode=mode, read_only=True) as (app, pilot, bench):
        await until(pilot, lambda: "handbook" in screen_text(app))
        await pilot.press(*keys)
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert not _submitted(bench)


async def test_stores_that_cannot_be_read_are_said() -> None:
    bench = ScriptedWorkbench()
    bench.fail["stores"] = UnavailableError("the store's folder is gone")
    async with running(bench, mode="rag") as (app, pilot, _):
        await until(pilot, lambda: "folder is gone" in screen_text(app))
        assert app.is_running


# -- ask --------------------------------------------------------------------------------------------------------------
async def test_a_question_streams_an_answer_with_its_citations() -> None:
    async with running(ScriptedWorkbench(token_s=0.01), size=(160, 50), mode="ask") as (app, pilot, bench):
        await _question(pilot, app, "reset the token")
        await until(pilot, lambda: "valid for eight hours [2]." in screen_text(app))
        await until(pilot, lambda: "Support 2 of 2 sentences" in screen_text(app))
        text = screen_text(app)
        assert "2 given" in text
        assert "vectors #1" in text
        assert "Reset the token in the portal, then sign in again." in text
        request = next(call[1] for call in bench.calls if call[0] == "ask_store")
        assert (request.store, request.question, request.k, request.always) == ("handbook", "reset the token", 6, False)
        assert app.did.startswith("lathe rag ask handbook 'reset the token' --model")
        app.screen.query_one(Grid).focus()
        await pilot.press("j")
        await until(pilot, lambda: any("▌ The token is valid" in line for line in screen_lines(app)))


async def test_what_is_not_in_the_documents_is_said_and_can_be_asked_anyway() -> None:
    async with running(size=(120, 40), mode="ask") as (app, pilot, bench):
        await _question(pilot, app, "quantum flux")
        await until(pilot, lambda: "Not in the documents: " in screen_text(app))
        await pilot.press("escape", "A")
        await until(pilot, lambda: sum(call[0] == "ask_store" for call in bench.calls) == 2)
        assert [call[1].always for call in bench.calls if call[0] == "ask_store"] == [False, True]


async def test_finding_asks_no_model() -> None:
    async with running(size=(120, 40), mode="ask") as (app, pilot, bench):
        place = _asked(app)
        await until(pilot, lambda: place.query_one(Fields)["store"])
        place.query_one("#f-question").focus()
        await type_text(pilot, "token")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "2 found" in screen_text(app))
        assert not [call for call in bench.calls if call[0] == "ask_store"]
        assert app.did == "lathe rag query handbook token -k 6 --mode hybrid"


async def test_a_search_is_narrowed() -> None:
    async with running(size=(120, 40), mode="ask") as (app, pilot, bench):
        await until(pilot, lambda: _asked(app).query_one(Fields)["store"] == "handbook")
        await pilot.press("escape", "F")
        await until(pilot, lambda: "Narrow the search" in screen_text(app))
        await type_text(pilot, "*.md")
        for key, value in (("meta", "author"), ("mmr", "2")):
            app.screen.query_one(f"#f-{key}").value = value  # type: ignore[attr-defined]
        await until(pilot, lambda: "write author=Ann" in screen_text(app))
        app.screen.query_one("#f-meta").value = "author=Ann"  # type: ignore[attr-defined]
        await until(pilot, lambda: "relevance: " in screen_text(app))
        app.screen.query_one("#f-mmr").value = "0.7"  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: "*.md · author=Ann · novelty 0.3" in screen_text(app))
        await _question(pilot, app, "reset the token")
        await until(pilot, lambda: any(call[0] == "ask_store" for call in bench.calls))
        request = next(call[1] for call in bench.calls if call[0] == "ask_store")
        assert (request.filter, request.mmr) == (Filter(paths=("*.md",), metadata={"author": "Ann"}), 0.7)
        assert app.did.endswith("--path '*.md' --meta author=Ann --mmr 0.7")


async def test_a_question_needs_words_and_a_store() -> None:
    async with running(ScriptedWorkbench(living=False), size=(120, 40), mode="ask") as (app, pilot, bench):
        await pilot.press("escape")
        _asked(app).query_one("#f-question").focus()
        await pilot.press("enter")
        await until(pilot, lambda: "question: there is none" in screen_text(app))
        await type_text(pilot, "x")
        await pilot.press("enter")
        await until(pilot, lambda: "store: there is none" in screen_text(app))
        assert not bench.calls


class _Endless(ScriptedWorkbench):
    """An answer that never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.left = asyncio.Event()

    async def ask_store(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        self._enter("ask_store", request)
        try:
            async for event in super().ask_store(request):
                yield event
                if "[1]" in getattr(event, "text", ""):
                    await asyncio.Event().wait()
        finally:
            self.left.set()


async def test_an_answer_can_be_stopped() -> None:
    async with running(_Endless(), size=(120, 40), mode="ask") as (app, pilot, bench):
        await _question(pilot, app, "reset the token")
        await until(pilot, lambda: "answering" in screen_text(app) and "portal" in screen_text(app))
        await pilot.press("ctrl+c")
        await until(pilot, bench.left.is_set)  # type: ignore[attr-defined]
        await until(pilot, lambda: "answering" not in screen_text(app))
        assert app.is_running


async def test_an_answer_that_fails_says_why_where_the_answer_would_be() -> None:
    async with running(size=(120, 40), mode="ask") as (app, pilot, bench):
        bench.fail["ask_store"] = MissingError("there is no store 'handbook'", hint="`lathe rag list`")
        await _question(pilot, app, "reset")
        await until(pilot, lambda: any("there is no store 'handbook'" in line for line in screen_lines(app)[6:20]))
        await tick(app, pilot, bench)
        assert app.is_running


async def test_a_store_is_asked_from_its_row_and_back() -> None:
    async with running(size=(80, 24), mode="rag") as (app, pilot, _):
        await until(pilot, lambda: "handbook" in screen_text(app))
        await pilot.press("j", "a")
        await until(pilot, lambda: app.current_mode == "ask")
        place = _asked(app)
        await until(pilot, lambda: place.query_one(Fields)["store"] == "notes")
        await pilot.press("escape", "w")
        await until(pilot, lambda: "Passage" in screen_text(app))
        await pilot.press("escape", "left_square_bracket")
        await until(pilot, lambda: app.current_mode == "rag")


# -- views ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [24, 60, 140])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=lambda glyphs: glyphs.name)
def test_lines_fit_whatever_the_documents_hold(glyphs: Any, width: int) -> None:
    report = script.report(script.stats()[0])
    assert report is not None
    for text in HOSTILE:
        samples = tuple(REPLACE(sample, text=text, path=text) for sample in report.duplicate_samples)
        lines = view.report_lines(REPLACE(report, duplicate_samples=samples, formats={text: 3}), width, glyphs)
        passage = REPLACE(script.passages()[0], text=text, path=text, heading=text)
        found = PassageView(passage=passage, text=f"a {text} b", start=2, end=2 + len(text), source=text)
        lines += answers.passage_lines(found, None, width, glyphs)
        sentence = SentenceSupport(text=text, start=0, end=1, gain=99.0, passages=(1.0,), supported=False)
        lines += answers.answer_lines(f"{text} [1] [9]", (), None, Checked(sentences=(sentence,)), width, glyphs)
        assert all("\x1b" not in span and "\n" not in span for line in lines for span, _ in line)


def test_citations_of_passages_that_were_not_given_stand_out() -> None:
    events = script.answer(script.search(_request("token")))
    given = events[0].given  # type: ignore[union-attr]
    (line,) = answers.answer_lines("yes [1] no [7]", given, None, None, 60, UNICODE)
    inks = {text: ink for text, ink in line if text.startswith("[")}
    assert inks == {"[1]": "accent", "[7]": "bad"}
    assert width_of(line) == len("yes [1] no [7]")


def test_an_answer_without_words_is_told() -> None:
    events = script.answer(script.search(_request("token")))
    (answered,) = [event for event in events if isinstance(event, Answered)]
    for text, told in (("", True), (" \n", True), ("yes", False)):
        lines = answers.answer_lines(text, (), REPLACE(answered, in_documents=True), None, 60, UNICODE)
        assert any("answered nothing" in part for line in lines for part, _ in line) is told


def test_support_that_could_not_be_measured_says_why() -> None:
    lines = answers.answer_lines("a", (), None, Checked(problem="the model gives no scores"), 60, UNICODE)
    assert any("the model gives no scores" in text for line in lines for text, _ in line)


def test_errors_have_rows() -> None:
    (row,) = view.error_rows([FileError(path="a.doc", code="E_X", message="locked", hint="unlock it")])
    assert row.fields["why"] == "locked"


def _request(text: str) -> Any:
    from lathe.engine.rag.requests import SearchRequest

    return SearchRequest(store="handbook", query=text)
