"""Finds tool calls in what a model writes, while it is written.

Two styles, told apart as the text arrives:

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>      Hermes, Qwen; anywhere, any number
    {"name": ..., "parameters": {...}}                            Llama 3; the whole message, maybe after <|python_tag|>

Only names that the request offers are calls; anything else is text, so a document that the model quotes cannot invent
a tool. Invariant: however the text is split into pieces, the joined text and the calls are the same, and text that may
still turn out to be a call is never sent.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Literal

import msgspec
from lathe.engine.generation import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_FIRST_KEY = re.compile(r'\s*(?:<\|python_tag\|>)?\s*\{\s*"(?P<key>[^"\\]*)"')
_CALL_KEYS = frozenset({"name", "arguments", "parameters", "type", "function"})
_GAP = re.compile(r"[\s;]*")
_SPLITTER = json.JSONDecoder()

Found = list[str | ToolCall]
"""What pieces of text turned out to be, in order; strings are never empty."""


class ToolReader:
    """Reads the text of one choice.

    start   white space so far; the next character tells the style
    text    plain text, up to a tag
    gap     white space around calls, which belongs to nobody if another call follows
    tag     inside <tool_call>
    json    a JSON object that may be a call, until its first key is known
    whole   held back to the end, because the message is one call or several
    """

    def __init__(self, names: frozenset[str], *, forced: bool = False) -> None:
        self._names = names
        self._buffer = ""
        self._gap = ""
        """White space before a tag, which is text again if the tag holds no call."""
        # With a forced call the grammar lets nothing but its JSON through.
        self._mode: Literal["start", "text", "gap", "tag", "json", "whole"] = "whole" if forced else "start"

    def feed(self, text: str) -> Found:
        """Take a piece; return what is certain by now."""
        self._buffer += text
        found: Found = []
        while self._step(found):
            pass
        return found

    def finish(self) -> Found:
        """Return what is left when the model has ended."""
        rest, self._buffer = self._buffer, ""
        if self._mode in ("json", "whole"):
            calls = self._json_calls(rest)
            if calls:
                return list(calls)
        elif self._mode == "tag":
            call = self._call(rest.removeprefix(OPEN))
            if call is not None:
                return [call]
            rest = self._gap + rest
        elif self._mode == "gap" and not rest.strip():
            return []
        return [rest] if rest else []

    def _step(self, found: Found) -> bool:
        """Move on as far as the buffer allows; False when more text is needed."""
        match self._mode:
            case "start":
                return self._at_start()
            case "json":
                return self._in_json()
            case "tag":
                return self._in_tag(found)
            case "whole":
                return False
            case "text" | "gap":
                return self._in_text(found)

    def _at_start(self) -> bool:
        text = self._buffer.lstrip()
        if not text or (len(text) < len(_PYTHON_TAG) and _PYTHON_TAG.startswith(text)):
            return False
        self._mode = "json" if text.startswith(("{", _PYTHON_TAG)) else "gap"
        return True

    def _in_json(self) -> bool:
        first = _FIRST_KEY.match(self._buffer)
        if first is None:
            return False
        # Any other object is an answer in JSON, which may stream.
        self._mode = "whole" if first["key"] in _CALL_KEYS else "text"
        return True

    def _in_text(self, found: Found) -> bool:
        start = self._buffer.find(OPEN)
        cut = start if start >= 0 else len(self._buffer) - _overlap(self._buffer, OPEN)
        text = self._buffer[:cut]
        if self._mode == "gap" and not text.strip():
            if start < 0:
                return False
            self._gap, text = text, ""
        self._buffer = self._buffer[cut:]
        if text:
            found.append(text)
            self._mode = "text"
        if start >= 0:
            self._mode = "tag"
        return start >= 0

    def _in_tag(self, found: Found) -> bool:
        end = self._buffer.find(CLOSE)
        if end < 0:
            return False
        inside, self._buffer = self._buffer[len(OPEN) : end], self._buffer[end + len(CLOSE) :]
        call = self._call(inside)
        found.append(f"{self._gap}{OPEN}{inside}{CLOSE}" if call is None else call)
        self._gap = ""
        self._mode = "text" if call is None else "gap"
        return True

    def _json_calls(self, text: str) -> list[ToolCall]:
        """Read one call, or several set apart by semicolons or white space; all or nothing."""
        rest = text.strip().removeprefix(_PYTHON_TAG).strip()
        calls = [self._call(part) for part in _values(rest)]
        return [call for call in calls if call is not None] if None not in calls else []

    def _call(self, text: str) -> ToolCall | None:
        try:
            wire = _DECODER.decode(text.strip())
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return None
        wire = wire.function if wire.function is not None and wire.name is None else wire
        if wire.name is None or wire.name not in self._names:
            return None
        arguments = _arguments(bytes(wire.arguments) or bytes(wire.parameters))
        return None if arguments is None else ToolCall(f"call_{secrets.token_hex(12)}", wire.name, arguments)


class _WireCall(msgspec.Struct):
    """A call as models write it."""

    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()
    function: _WireCall | None = None


_DECODER = msgspec.json.Decoder(_WireCall)


def _arguments(raw: bytes) -> str | None:
    """Return the arguments as the text of a JSON object; some models encode that text once more as a string."""
    text = raw.decode() or "{}"
    try:
        value = msgspec.json.decode(text)
        if isinstance(value, str):
            text, value = value, msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return text if isinstance(value, dict) else None


def _values(text: str) -> list[str]:
    """Split text into its JSON values; the whole text where it does not split."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        try:
            _, end = _SPLITTER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return [text]
        parts.append(text[position:end])
        gap = _GAP.match(text, end)
        position = gap.end() if gap else end
    return parts


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
