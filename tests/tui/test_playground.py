"""The Playground: an answer as it streams, stopping, asking again, editing, two models side by side, small windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import CrashedError
from lathe.engine.generation import GenerationRequest
from lathe.tui.app import LatheApp
from lathe.tui.screens.playground import Playground
from lathe.tui.widgets.prompt import Prompt
from rich.cells import cell_len
from support.screens import running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench
from textual.pilot import Pilot

FIRST, SECOND = "qwen3-8b-q4_k_m", "qwen3-8b-q5_k_m"


def _asked(bench: ScriptedWorkbench) -> list[GenerationRequest]:
    return [call[1] for call in bench.calls if call[0] == "generate"]


def _place(app: LatheApp) -> Playground:
    place = app.current_place
    assert isinstance(place, Playground)
    return place


async def _ask(app: LatheApp, pilot: Pilot[None], text: str) -> None:
    app.screen.query_one(Prompt).focus()
    await type_text(pilot, text)
    await pilot.press("enter")


def _idle(app: LatheApp) -> bool:
    return not any(pane.streaming for pane in _place(app).panes)


async def test_an_answer_comes_with_its_cost_and_the_conversation_goes_on() -> None:
    async with running(ScriptedWorkbench(answer="Paris, of course."), size=(120, 40), mode="chat") as (
        app,
        pilot,
        bench,
    ):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Capital of France")
        await until(pilot, lambda: "Paris, of course." in screen_text(app) and _idle(app))
        assert "tok/s" in screen_text(app)
        assert app.did == f"lathe chat {FIRST} 'Capital of France'"
        await _ask(app, pilot, "Sure")
        await until(pilot, lambda: len(_asked(bench)) == 2 and _idle(app))
        told = [(message.role, message.content) for message in _asked(bench)[1].messages]
        assert told == [("user", "Capital of France"), ("assistant", "Paris, of course."), ("user", "Sure")]


async def test_control_c_stops_the_answer_and_keeps_what_came() -> None:
    bench = ScriptedWorkbench(answer="word " * 500, token_s=0.01)
    async with running(bench, size=(120, 40), mode="chat") as (app, pilot, _):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: "word word" in screen_text(app))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: _idle(app))
        # Leaving the stream frees the slot in the engine.
        await until(pilot, lambda: not bench._stop)
        assert "word word" in screen_text(app)
        assert 0 < _place(app).panes[0].conversation.last_answer.count("word") < 500
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "ctrl+q quits" in screen_text(app))


async def test_a_second_prompt_waits_for_the_first_answer() -> None:
    bench = ScriptedWorkbench(answer="word " * 500, token_s=0.01)
    async with running(bench, size=(120, 40), mode="chat") as (app, pilot, _):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: "word word" in screen_text(app))
        await _ask(app, pilot, "And")
        await until(pilot, lambda: "still streaming" in screen_text(app))
        assert app.screen.query_one(Prompt).text == "And"
        assert len(_asked(bench)) == 1
        await pilot.press("ctrl+c")
        await until(pilot, lambda: _idle(app))


async def test_asking_again_replaces_the_last_answer() -> None:
    answers = iter(["first try", "second try"])
    async with running(ScriptedWorkbench(answer=lambda _: next(answers)), size=(120, 40), mode="chat") as (
        app,
        pilot,
        b,
    ):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Try")
        await until(pilot, lambda: "first try" in screen_text(app) and _idle(app))
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "second try" in screen_text(app) and _idle(app))
        assert "first try" not in screen_text(app)
        assert [message.content for message in _asked(b)[1].messages] == ["Try"]


async def test_the_last_question_is_taken_back_into_the_prompt() -> None:
    async with running(ScriptedWorkbench(answer="an answer"), size=(120, 40), mode="chat") as (app, pilot, bench):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Qestion")
        await until(pilot, lambda: "an answer" in screen_text(app) and _idle(app))
        await pilot.press("escape", "e")
        prompt = app.screen.query_one(Prompt)
        await until(pilot, lambda: prompt.text == "Qestion")
        assert "an answer" not in screen_text(app)
        prompt.put("Question")
        await pilot.press("enter")
        await until(pilot, lambda: len(_asked(bench)) == 2 and _idle(app))
        assert [message.content for message in _asked(bench)[1].messages] == ["Question"]


async def _beside(app: LatheApp, pilot: Pilot[None]) -> None:
    await until(pilot, lambda: FIRST in screen_text(app))
    await pilot.press("escape", "b")
    await until(pilot, lambda: "Second model" in screen_text(app))
    await type_text(pilot, "q5")
    await pilot.press("enter")
    await until(pilot, lambda: len(_place(app).panes) == 2)


async def test_two_models_get_the_same_prompt_and_seed() -> None:
    def answer(request: GenerationRequest) -> str:
        return f"said by {request.model}"

    async with running(ScriptedWorkbench(answer=answer), size=(160, 50), mode="chat") as (app, pilot, bench):
        await _beside(app, pilot)
        await _ask(app, pilot, "Both")
        await until(pilot, lambda: f"said by {FIRST}" in screen_text(app) and f"said by {SECOND}" in screen_text(app))
        await until(pilot, lambda: _idle(app))
        one, two = _asked(bench)
        assert one.messages == two.messages
        assert one.sampling == two.sampling and one.sampling.seed is not None
        assert {one.client, two.client} == {"playground A", "playground B"}
        row = next(line for line in screen_lines(app) if f"said by {FIRST}" in line)
        assert f"said by {SECOND}" in row
        # Again: both, and closing the second side leaves the first as it is.
        await pilot.press("escape", "ctrl+r")
        await until(pilot, lambda: len(_asked(bench)) == 4 and _idle(app))
        await pilot.press("escape", "b")
        await until(pilot, lambda: len(_place(app).panes) == 1)
        assert f"said by {FIRST}" in screen_text(app)


async def test_stopping_stops_both_sides() -> None:
    bench = ScriptedWorkbench(answer="word " * 500, token_s=0.01)
    async with running(bench, size=(160, 50), mode="chat") as (app, pilot, _):
        await _beside(app, pilot)
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: all(pane.conversation is not None and pane.streaming for pane in _place(app).panes))
        await until(pilot, lambda: len(bench._stop) == 2)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: _idle(app) and not bench._stop)


async def test_a_model_that_dies_says_so_in_place_of_its_answer() -> None:
    async with running(size=(120, 40), mode="chat") as (app, pilot, bench):
        await until(pilot, lambda: FIRST in screen_text(app))
        bench.fail["generate"] = CrashedError(f"{FIRST}: the worker was killed by SIGSEGV", hint="load it again")
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: "killed by SIGSEGV" in screen_text(app) and _idle(app))
        await _ask(app, pilot, "And now")
        await until(pilot, lambda: "KV cache" in screen_text(app) and _idle(app))


async def test_the_engine_may_go_in_the_middle_of_an_answer() -> None:
    bench = ScriptedWorkbench(answer="word " * 500, token_s=0.01)
    async with running(bench, size=(120, 40), mode="chat") as (app, pilot, _):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: "word word" in screen_text(app))
        bench.lost = True
        await app.step()
        await until(pilot, lambda: "NO ENGINE" in screen_text(app))
        assert "word word" in screen_text(app)
        bench.lost = False
        await pilot.press("ctrl+c")
        await until(pilot, lambda: _idle(app))


@pytest.mark.parametrize("both", [False, True], ids=["one", "two"])
async def test_a_window_may_shrink_and_grow_while_an_answer_streams(both: bool) -> None:
    bench = ScriptedWorkbench(answer="some more words of an answer, " * 60, token_s=0.002)
    async with running(bench, size=(160, 50), mode="chat") as (app, pilot, _):
        if both:
            await _beside(app, pilot)
        else:
            await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: "more words" in screen_text(app))
        for size in ((80, 24), (50, 12), (80, 24), (160, 50)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            lines = screen_lines(app)
            assert len(lines) == size[1]
            assert all(cell_len(line) <= size[0] for line in lines)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: _idle(app))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "help" in screen_lines(app)[-1] and "words of" in screen_text(app))


async def test_sampling_and_system_prompt_reach_the_request() -> None:
    async with running(ScriptedWorkbench(answer="ok"), size=(160, 50), mode="chat") as (app, pilot, bench):
        await until(pilot, lambda: FIRST in screen_text(app))
        for command in ("/set seed=7", "/system Be brief.", "/set temperature=0"):
            await _ask(app, pilot, command)
            await until(pilot, lambda: not app.screen.query_one(Prompt).text)
        await _ask(app, pilot, "Go")
        await until(pilot, lambda: bool(_asked(bench)) and _idle(app))
        request = _asked(bench)[0]
        assert (request.sampling.seed, request.sampling.temperature) == (7, 0.0)
        assert [(m.role, m.content) for m in request.messages] == [("system", "Be brief."), ("user", "Go")]


async def test_a_conversation_is_written_and_a_new_one_begins(tmp_path: Path) -> None:
    bench: Any = ScriptedWorkbench(answer="Paris.")
    async with running(bench, size=(120, 40), mode="chat", state_dir=tmp_path) as (app, pilot, _):
        await until(pilot, lambda: FIRST in screen_text(app))
        await _ask(app, pilot, "Capital")
        await until(pilot, lambda: "Paris." in screen_text(app) and _idle(app))
        await pilot.press("escape", "E")
        await until(pilot, lambda: "Export the conversation" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, (tmp_path / "chat.md").exists)
        assert "Paris." in (tmp_path / "chat.md").read_text()
        await pilot.press("N")
        await tick(app, pilot, bench)
        await until(pilot, lambda: "Paris." not in screen_text(app))
