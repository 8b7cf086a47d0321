"""Tool calls in model output: found however the text is split, and never where nobody offered the tool."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lathe.engine.generation import ToolCall
from lathe.engine.http.problems import Problem
from lathe.engine.http.toolcalls import ToolReader
from lathe.engine.http.tools import Function, toolbox

NAMES = frozenset({"weather", "time"})
WEATHER = '{"name": "weather", "arguments": {"city": "Zürich"}}'
TIME = '{"name": "time", "parameters": {}}'


def read(*pieces: str, forced: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Joined text, and the calls."""
    reader = ToolReader(NAMES, forced=forced)
    found = [item for piece in pieces for item in reader.feed(piece)] + reader.finish()
    texts = "".join(item for item in found if isinstance(item, str))
    return texts, [(item.name, item.arguments) for item in found if isinstance(item, ToolCall)]


CITY = ("weather", '{"city": "Zürich"}')
NOW = ("time", "{}")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>\n{WEATHER}\n</tool_call>", "", [CITY]),
        (f"Let me see.\n<tool_call>{WEATHER}</tool_call>", "Let me see.\n", [CITY]),
        (f"\n\n<tool_call>{WEATHER}</tool_call>\n<tool_call>{TIME}</tool_call>\n", "", [CITY, NOW]),
        (f"<tool_call>{TIME}</tool_call> Done.", " Done.", [NOW]),
        (f"<tool_call>{WEATHER}", "", [CITY]),
        (TIME, "", [NOW]),
        (f"  <|python_tag|>{TIME}", "", [NOW]),
        (f"{TIME}; {WEATHER}", "", [NOW, CITY]),
        ('{"type": "function", "function": {"name": "time", "arguments": "{}"}}', "", [NOW]),
        ('{"name": "time", "arguments": "{\\"a\\": 1}"}', "", [("time", '{"a": 1}')]),
        # Not calls: unknown names, broken JSON, arguments that are no object, JSON that is an answer.
        ('{"name": "delete_everything", "arguments": {}}', '{"name": "delete_everything", "arguments": {}}', []),
        ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
        ("<tool_call>{broken</tool_call> x", "<tool_call>{broken</tool_call> x", []),
        ("<tool_call>never closed", "<tool_call>never closed", []),
        ('{"name": "time", "arguments": [1]}', '{"name": "time", "arguments": [1]}', []),
        ('{"answer": 42}', '{"answer": 42}', []),
        (f"{TIME} and more", f"{TIME} and more", []),
        ("a < b <tool", "a < b <tool", []),
        ("", "", []),
        ("  \n", "  \n", []),
    ],
)
def test_texts_and_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(text) == (content, calls)
    assert read(*text) == (content, calls)


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", WEATHER, TIME, "{", "}", '"name"', " ", "\n", "text", "<", "<tool", "_call>", "é",
     ";", "<|python_tag|>", '{"answer": 1}', '{"name": "rm"}', "[", ":"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=12), st.data())
def test_the_split_does_not_matter(fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(text)


@given(st.lists(FRAGMENTS, max_size=12))
@example([" ", "<tool_call>"])
@example(["\n", "<tool_call>", "</tool_call>", " "])
def test_no_text_is_lost_unless_it_became_a_call(fragments: list[str]) -> None:
    text = "".join(fragments)
    content, calls = read(text)
    if not calls:
        assert content == text


def test_text_streams_as_it_comes_and_only_a_possible_tag_is_held_back() -> None:
    reader = ToolReader(NAMES)
    assert reader.feed("Hello ") == ["Hello "]
    assert reader.feed("<to") == []
    assert reader.feed("p> x") == ["<top> x"]


def test_an_answer_in_json_streams_once_its_first_key_is_known() -> None:
    reader = ToolReader(NAMES)
    assert reader.feed('{"ans') == []
    assert reader.feed('wer": 4') == ['{"answer": 4']
    assert reader.feed("2}") == ["2}"]


def test_forced_calls_are_read_as_json() -> None:
    assert read(' {"name": "time", "arguments": {}}', forced=True) == ("", [NOW])


def test_ids_differ() -> None:
    reader = ToolReader(NAMES)
    found = reader.feed(f"<tool_call>{TIME}</tool_call>" * 20)
    assert len({call.id for call in found if isinstance(call, ToolCall)}) == 20


FUNCTIONS = [Function("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}}),
             Function("time")]  # fmt: skip


def test_auto_shows_the_tools_and_leaves_the_model_free() -> None:
    box = toolbox(FUNCTIONS, "auto", named=False)
    assert box.names == NAMES
    assert box.schema is None
    assert [tool["function"]["name"] for tool in json.loads(box.template or "")] == ["weather", "time"]


def test_none_hides_them() -> None:
    box = toolbox(FUNCTIONS, "none", named=False)
    assert (box.template, box.names, box.schema) == (None, frozenset(), None)


def test_required_and_named_choices_force_a_call() -> None:
    required = json.loads(toolbox(FUNCTIONS, "required", named=False).schema or "")
    assert [call["properties"]["name"]["const"] for call in required["anyOf"]] == ["weather", "time"]
    named = toolbox(FUNCTIONS, "time", named=True)
    assert json.loads(named.schema or "")["properties"]["name"] == {"const": "time"}
    assert named.names == {"time"}


@pytest.mark.parametrize(
    ("functions", "choice", "named"),
    [
        ([], "required", False),
        (FUNCTIONS, "nothing", True),
        ([Function("a"), Function("a")], "auto", False),
        ([Function(f"f{i}") for i in range(129)], "auto", False),
        ([Function("a", parameters={"x": "y" * 70_000})], "required", False),
    ],
)
def test_impossible_choices_are_refused(functions: list[Function], choice: str, named: bool) -> None:
    with pytest.raises(Problem) as caught:
        toolbox(functions, choice, named=named)
    assert caught.value.status == 400
