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
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from lathe.engine.errors import LatheError, UsageError, revive
from lathe.engine.generation import Message, RenderedPrompt
from lathe.engine.wire import Decoder, frame

MAX_TEMPLATE_CHARS = 256 * 1024
PLAIN = "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\\n' }}{% endfor %}"
"""For models without a template, which were never taught turns: what was said, a line each, as text to go on with."""
_WALL_S = 10.0
"""A render that takes longer is stuck, whatever its processor time says."""
_LIMIT_CHARS_PER_TOKEN = 4
_PRIVATE_USE = range(0xF8FF, 0xE000, -1)
"""Code points without meaning, one of which is the mark."""
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Roles, keys and settings that templates compare with; no control token is spelled so and forged at the same time."""

TemplateArgs = Mapping[str, str | bool | int | float]


class TooSlow(UsageError):
    """The template killed its helper, or took too long."""

    code = "E_TEMPLATE"


class Renderer:
    """A warm helper process. Thread-safe: one render at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None

    def warm_up(self) -> None:
        """Start the helper, so that the first render need not wait for it."""
        with self._lock:
            self._running()

    def render(self, template: str, variables: Mapping[str, Any], limit: int) -> str:
        """Render a template.

        Raises:
            UsageError: the template refuses, is wrong, or exceeds its limits of time, memory or output.
        """
        from lathe.engine.worker.rendering import Answer, Job, NotRendered

        with self._lock:
            helper = self._running()
            assert helper.stdin is not None
            assert helper.stdout is not None
            try:
                helper.stdin.write(frame(Job(template, dict(variables), limit)))
                helper.stdin.flush()
                answer: Answer = self._receive(helper, Decoder(Answer))
            except (BrokenPipeError, EOFError, TimeoutError) as error:
                self._discard()
                raise TooSlow(
                    "the chat template exceeds its limits of time or memory",
                    hint="choose another template; this one loops or grows without end",
                ) from error
            except BaseException:
                self._discard()  # an answer may still be on its way
                raise
        if isinstance(answer, NotRendered):
            raise revive(answer.failure)
        return answer.text

    def close(self) -> None:
        """End the helper. Any thread, also while it renders."""
        helper = self._helper
        if helper is not None:
            helper.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._helper is None or self._helper.poll() is not None:
            self._discard()
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "lathe.engine.worker.rendering"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        return self._helper

    def _discard(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            helper.wait()
            for pipe in (helper.stdin, helper.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # a job it never took

    @staticmethod
    def _receive(helper: subprocess.Popen[bytes], decoder: Decoder[Any]) -> Any:
        assert helper.stdout is not None
        deadline = time.monotonic() + _WALL_S
        while True:
            ready, _, _ = select.select((helper.stdout,), (), (), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            data = os.read(helper.stdout.fileno(), 1 << 16)
            if not data:
                raise EOFError
            for answer in decoder.feed(data):
                return answer


class ControlNames:
    """The names of control tokens, found in text without a regular expression of thousands of branches."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name for name in names if len(name) > 1}
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._firsts = {name[0] for name in self._names}
        self._beginnings = {name[:end] for name in self._names for end in range(1, len(name))}
        self._endings = {name[start:] for name in self._names for start in range(1, len(name))}

    def marked(self, text: str, mark: str) -> str:
        """Put `mark` wherever a name, or a part of one at an end of the text, could become a control token."""
        for position in sorted(self._found(text), reverse=True):
            text = text[: position + 1] + mark + text[position + 1 :]
        longest = min(max(self._lengths, default=0), len(text) + 1)
        if any(text[-length:] in self._beginnings for length in range(1, longest)):
            text += mark
        if any(text[:length] in self._endings for length in range(1, longest)):
            text = mark + text
        return text

    def split(self, text: str, marks: Sequence[int]) -> list[Part] | None:
        """Cut text at its control tokens, longest names first, as llama.cpp does.

        Args:
            marks: positions in the text; a name with one strictly inside was forged and stays text.

        Returns:
            The parts in order; None when no name was forged, so that cutting by hand is not needed.
        """
        found = self._found(text)
        spans = [(start, start + len(name)) for start, names in found.items() for name in names]
        if not any(start < mark < end for mark in marks for start, end in spans):
            return None
        parts = [Part(0, len(text))]
        for name in sorted({name for names in found.values() for name in names}, key=lambda name: (-len(name), name)):
            parts = [piece for part in parts for piece in _cut(text, part, name, marks)]
        return [part for part in parts if part.end > part.start]

    def _found(self, text: str) -> dict[int, list[str]]:
        """Position -> names that begin there, longest first."""
        found: dict[int, list[str]] = {}
        for first in self._firsts:
            position = text.find(first)
            while position >= 0:
                candidates = (text[position : position + length] for length in self._lengths)
                names = [name for name in candidates if name in self._names]
                if names:
                    found[position] = list(dict.fromkeys(names))
                position = text.find(first, position + 1)
        return found


class Part(msgspec.Struct, frozen=True):
    """A stretch of a rendered text."""

    start: int
    end: int
    control: str | None = None
    """The control token that it is; None: plain text."""


def _cut(text: str, part: Part, name: str, marks: Sequence[int]) -> Iterator[Part]:
    """Cut a plain part at each occurrence of a name that was not forged."""
    start = search = part.start
    if part.control is None:
        while (at := text.find(name, search, part.end)) >= 0:
            end = at + len(name)
            if any(at < mark < end for mark in marks):
                search = at + 1
                continue
            yield Part(start, at)
            yield Part(at, end, name)
            start = search = end
    yield Part(start, part.end, part.control)


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
        return json.loads(text)
    except ValueError:
        return text


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what}: no valid JSON: {error}") from error


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
