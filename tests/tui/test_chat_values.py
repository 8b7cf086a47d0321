"""Conversations, the prompt's commands and sampling settings, without a screen."""

from __future__ import annotations

import pytest
from lathe.engine.errors import UsageError
from lathe.engine.generation import Message, Timing, Usage
from lathe.tui import chat
from lathe.tui.chat import Conversation, Cost, Options
from lathe.tui.glyphs import ASCII


def _talk() -> Conversation:
    talk = Conversation()
    talk.system = "be brief"
    talk.ask("one")
    talk.answer("1", Cost(usage=Usage(10, 3)))
    talk.ask("two")
    talk.answer("", Cost(finish="cancelled"))
    return talk


def test_messages_leave_empty_answers_out() -> None:
    assert _talk().messages() == (
        Message("system", "be brief"), Message("user", "one"), Message("assistant", "1"), Message("user", "two"),
    )  # fmt: skip


def test_taking_back_removes_the_question_and_what_followed() -> None:
    talk = _talk()
    assert talk.take_back() == "two"
    assert [turn.content for turn in talk.turns] == ["one", "1"]
    assert talk.take_back() == "one"
    assert talk.take_back() is None


def test_what_is_known_of_the_context_and_the_last_answer() -> None:
    talk = _talk()
    assert talk.context_used == 13
    assert talk.last_answer == ""
    talk.take_back()
    assert talk.last_answer == "1"
    assert "## assistant\n\n1" in talk.as_markdown("m")
    assert Conversation().context_used is None


def test_the_request_carries_the_options() -> None:
    options = chat.change(Options(), "temp=0 seed=7 max=32 stop=END")
    request = chat.request("m", _talk(), options, "playground A")
    assert (request.sampling.temperature, request.sampling.seed, request.max_tokens) == (0.0, 7, 32)
    assert (request.stop, request.client, request.model) == (("END",), "playground A", "m")


def test_the_cost_in_words() -> None:
    timing = Timing(scheduled_s=0.0, first_token_s=0.19, finished_s=2.0, prefill_s=0.19, decode_s=2.0, seed=7)
    text = chat.cost_text(Cost("stop", Usage(812, 83, cached_tokens=640), timing), ASCII)
    assert text == "stop | 83 tokens | first 190 ms | 41.0 tok/s | prompt 812 (640 cached) | seed 7"
    assert chat.cost_text(Cost("length", Usage(1, 1)), ASCII) == "stopped at the token limit | 1 token | prompt 1"
    assert "5 cut" in chat.cost_text(Cost("stop", Usage(1, 1, truncated_tokens=5)), ASCII)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hello", None),
        ("/clear", ("clear", "")),
        ("/model qwen3-8b", ("model", "qwen3-8b")),
        ("/system be brief ", ("system", "be brief")),
        ("/etc/passwd is a path", None),
        ("/set a\nb", None),
    ],
)
def test_commands_of_the_prompt(text: str, found: tuple[str, str] | None) -> None:
    assert chat.parse_command(text) == found


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean /template"):
        chat.parse_command("/templat")


@pytest.mark.parametrize(
    ("typed", "completed"), [("/te", "/template "), ("/s", "/s"), ("x", "x"), ("/set a", "/set a")]
)
def test_commands_are_completed(typed: str, completed: str) -> None:
    assert chat.complete(typed) == completed


@pytest.mark.parametrize(
    "text",
    [
        "temperature=hot",
        "temperature=-1",
        "temperature=inf",
        "top_p=2",
        "seed=-1",
        "max_tokens=x",
        "nothing=1",
        "temp",
        'stop="',
    ],
)
def test_settings_outside_their_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        chat.change(Options(), text)


def test_settings_change_only_what_is_named() -> None:
    options = chat.change(Options(), "mirostat=2 temp=0.1")
    options = chat.change(options, "top_k=10 seed=random")
    assert (options.sampling.mirostat, options.sampling.temperature, options.sampling.top_k) == (2, 0.1, 10)
    shown = {name: changed for name, _, changed in chat.shown_options(options)}
    assert shown["mirostat"]
    assert not shown["top_p"]
    assert chat.change(options, "max_tokens=").max_tokens is None
