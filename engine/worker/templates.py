"""Chat templates: from a conversation to prompt tokens, with what users wrote kept from posing as control tokens.

Rendering happens in a helper process (`lathe.engine.worker.rendering`) that is kept warm and replaced when a template
kills it. The text is then tokenised with control tokens recognised, as llama.cpp does; where a user's string contains
the name of a control token, or a piece of one at an end, a mark goes into it before rendering, so that afterwards the
control tokens of the template can be told from those that were forged. Invariants: a conversation without such names
gives exactly the tokens of its rendered text; a forged name gives the tokens of plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from lathe.engine.errors import LatheError, UsageError
from lathe.engine.generation import Message, RenderedPrompt
from lathe.engine.worker.control_names import ControlNames
from lathe.engine.worker.renderer import Renderer, TooSlow

MAX_TEMPLATE_CHARS = 256 * 1024
PLAIN = "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\\n' }}{% endfor %}"
"""For models without a template, which were never taught turns: what was said, a line each, as text to go on with."""
_LIMIT_CHARS_PER_TOKEN = 4
_MAX_DEPTH = 64
"""Levels of a schema or of a call's arguments: as many as a request's body may have."""
_PRIVATE_USE = range(0xF8FF, 0xE000, -1)
"""Code points without meaning, one of which is the mark."""
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Roles, keys and settings that templates compare with; no control token is spelled so and forged at the same time."""

TemplateArgs = Mapping[str, str | bool | int | float]


class Encoder(Protocol):
    """What templates need of a vocabulary."""

    def encode(self, text: str, *, special: bool = False, ends: bool = False) -> list[int]:
        """Text to tokens."""

    @property
    def controls(self) -> Mapping[str, int]:
        """Names of control tokens."""

    def strips(self, name: str) -> tuple[bool, bool]:
        """Whether a control token swallows spaces on its left and on its right."""

    @property
    def bos_name(self) -> str:
        """The name of the token that begins a text; empty where there is none."""

    @property
    def eos_name(self) -> str:
        """The name of the token that ends one."""

    @property
    def affixes(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and after a text."""


class ChatTemplate:
    """A model's template with its renderer and vocabulary. Thread-safe."""

    def __init__(self, template: str | None, vocabulary: Encoder, context: int, renderer: Renderer) -> None:
        self._template = template
        self._vocabulary = vocabulary
        self._limit = _LIMIT_CHARS_PER_TOKEN * max(context, 4096)
        self._renderer = renderer
        self._names: ControlNames | None = None
        self.sha256 = hashlib.sha256((template or PLAIN).encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        tools: str | None = None,
        template_args: TemplateArgs | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """Apply the template and tokenise.

        Raises:
            UsageError: the template does not take this conversation.
        """
        template = self._template or PLAIN
        if len(template) > MAX_TEMPLATE_CHARS:
            raise UsageError(f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE_CHARS}")
        names = self._names = self._names or ControlNames(self._vocabulary.controls)
        variables = _variables(messages, tools, template_args or {}, add_generation_prompt)
        mark = _absent(template, variables)
        guarded = _guarded(variables, lambda text: names.marked(text, mark))
        guarded["bos_token"], guarded["eos_token"] = self._vocabulary.bos_name, self._vocabulary.eos_name
        written = sum(map(len, _strings(variables)))
        text = self._rendered(template, guarded, self._limit + 4 * written)
        marks, text = _unmarked(text, mark)
        return RenderedPrompt(text, tuple(self._tokens(text, marks, names)), self.sha256)

    def _rendered(self, template: str, variables: dict[str, Any], limit: int) -> str:
        try:
            return self._renderer.render(template, variables, limit)
        except TooSlow:
            raise
        except LatheError:
            # Some templates want the arguments of tool calls as an object, some as text.
            again = _with_text_arguments(variables)
            if again is None:
                raise
            return self._renderer.render(template, again, limit)

    def _tokens(self, text: str, marks: list[int], names: ControlNames) -> list[int]:
        vocabulary = self._vocabulary
        bos = vocabulary.bos_name
        begun = bool(bos) and text.startswith(bos) and not any(0 < mark < len(bos) for mark in marks)
        parts = names.split(text, marks) if marks else None
        if parts is None:
            return vocabulary.encode(text, special=True, ends=not begun)
        before, after = ([], []) if begun else vocabulary.affixes
        tokens = [*before]
        for index, part in enumerate(parts):
            plain = text[part.start : part.end]
            if part.control is None:
                if index and vocabulary.strips(parts[index - 1].control or "")[1]:
                    plain = plain.lstrip()
                if index + 1 < len(parts) and vocabulary.strips(parts[index + 1].control or "")[0]:
                    plain = plain.rstrip()
            tokens += vocabulary.encode(plain, special=part.control is not None)
        return tokens + after


def _variables(
    messages: Sequence[Message], tools: str | None, template_args: TemplateArgs, add_generation_prompt: bool
) -> dict[str, Any]:
    return {
        **template_args,
        "messages": [_message(message) for message in messages],
        "tools": None if tools is None else _parsed(tools, "tools"),
        "add_generation_prompt": add_generation_prompt,
    }


def _message(message: Message) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        given["name"] = message.name
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        given["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return given


def _arguments(text: str) -> Any:
    """Arguments of a tool call as an object; as text where they are no JSON, for models wrote them."""
    try:
        return _value(text)
    except ValueError:
        return text


def _parsed(text: str, what: str) -> Any:
    try:
        return _value(text)
    except ValueError as error:
        raise UsageError(f"{what}: no valid JSON: {error}") from error


def _value(text: str) -> Any:
    """Decode JSON.

    Raises:
        ValueError: it is none, holds half a character, or is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    _check_depth(value, _MAX_DEPTH)
    json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    return value


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _with_text_arguments(variables: dict[str, Any]) -> dict[str, Any] | None:
    """The same variables with the arguments of tool calls as JSON text; None where there are none."""
    changed = False
    messages = []
    for message in variables["messages"]:
        calls = message.get("tool_calls")
        if calls:
            changed = True
            message = {**message, "tool_calls": [_with_text(call) for call in calls]}
        messages.append(message)
    return {**variables, "messages": messages} if changed else None


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _guarded(variables: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change every string that users chose, but not the words that templates look up or compare."""
    guarded: dict[str, Any] = {}
    for name, value in variables.items():
        if name == "messages":
            guarded[name] = [
                {
                    key: item if key == "role" and _WORD.fullmatch(item) else _changed(item, change)
                    for key, item in one.items()
                }
                for one in value
            ]
        elif isinstance(value, str) and _WORD.fullmatch(value):
            guarded[name] = value
        else:
            guarded[name] = _changed(value, change)
    return guarded


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key if _WORD.fullmatch(key) else change(key): item
            if key == "type" and isinstance(item, str) and _WORD.fullmatch(item)
            else _changed(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return value


def _absent(template: str, variables: dict[str, Any]) -> str:
    """A character that occurs nowhere."""
    texts = [template, *_strings(variables)]
    for point in _PRIVATE_USE:
        if not any(chr(point) in text for text in texts):
            return chr(point)
    raise UsageError("the conversation uses every private-use character")


def _unmarked(text: str, mark: str) -> tuple[list[int], str]:
    """Positions of the marks in the text without them, and that text."""
    if mark not in text:
        return [], text
    pieces = text.split(mark)
    positions, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        positions.append(at)
    return positions, "".join(pieces)
