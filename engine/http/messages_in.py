"""OpenAI's conversation as clients send it, turned into the engine's messages.

Only text is understood: pictures and sound are a 400 that says so, and no URL is ever fetched. Fields that this server
does not know are ignored here, because clients send back messages that other servers made.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import Message, ToolCall
from lathe.engine.http.problems import Problem
from msgspec import Meta

MAX_MESSAGES = 4096


class TextPart(msgspec.Struct, tag="text", tag_field="type"):
    """Text."""

    text: str


class RefusalPart(msgspec.Struct, tag="refusal", tag_field="type"):
    """A refusal of an earlier turn."""

    refusal: str


class ImagePart(msgspec.Struct, tag="image_url", tag_field="type"):
    """A picture; refused."""


class AudioPart(msgspec.Struct, tag="input_audio", tag_field="type"):
    """Sound; refused."""


class FilePart(msgspec.Struct, tag="file", tag_field="type"):
    """A file; refused."""


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[Part] | None


class CallFunction(msgspec.Struct):
    """The function of a call that the assistant made."""

    name: str
    arguments: str = "{}"


class MessageCall(msgspec.Struct):
    """A call that the assistant made."""

    function: CallFunction
    id: str = ""
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]


def engine_messages(given: list[ChatMessage]) -> tuple[Message, ...]:
    """Return the engine's messages.

    Raises:
        Problem: 400 for parts that are not text.
    """
    return tuple(_message(message, place) for place, message in enumerate(given))


def _message(given: ChatMessage, place: int) -> Message:
    role = {"developer": "system", "function": "tool"}.get(given.role, given.role)
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in given.tool_calls or ())
    return Message(role, _text(given.content, place), given.name, calls, given.tool_call_id)


def _text(content: Content, place: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for part in content:
        match part:
            case TextPart(text=text) | RefusalPart(refusal=text):
                texts.append(text)
            case _:
                param = f"messages[{place}].content"
                message = "only text parts are understood; no model here takes pictures, sound or files"
                raise Problem(400, message, param=param, code="unsupported_content")
    return "".join(texts)
