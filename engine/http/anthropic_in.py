"""Anthropic's conversation as clients send it, turned into the engine's messages and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import Message, ToolCall
from lathe.engine.http.messages_in import MAX_MESSAGES
from lathe.engine.http.problems import Problem
from lathe.engine.http.tools import MAX_TOOLS, Function, Toolbox, toolbox
from lathe.engine.http.wire import ModelName, Share, Stop
from msgspec import Meta


class TextBlock(msgspec.Struct, tag="text", tag_field="type"):
    """Text."""

    text: str


class ToolUseBlock(msgspec.Struct, tag="tool_use", tag_field="type"):
    """A call that the assistant made."""

    id: str
    name: str
    input: dict[str, Any] = {}


class ToolResultBlock(msgspec.Struct, tag="tool_result", tag_field="type"):
    """What a call came to."""

    tool_use_id: str
    content: str | list[Block] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, tag="thinking", tag_field="type"):
    """Thoughts of an earlier turn; not shown to the model again."""

    thinking: str = ""


class RedactedBlock(msgspec.Struct, tag="redacted_thinking", tag_field="type"):
    """Thoughts that only their maker can read."""


class ImageBlock(msgspec.Struct, tag="image", tag_field="type"):
    """A picture; refused."""


class DocumentBlock(msgspec.Struct, tag="document", tag_field="type"):
    """A document; refused."""


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedBlock | ImageBlock | DocumentBlock


class Turn(msgspec.Struct):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct):
    """A function the model may call."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None


class AutoChoice(msgspec.Struct, tag="auto", tag_field="type"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, tag="any", tag_field="type"):
    """Some tool must be called."""

    disable_parallel_tool_use: bool | None = None


class NamedChoice(msgspec.Struct, tag="tool", tag_field="type"):
    """This tool must be called."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(msgspec.Struct, tag="none", tag_field="type"):
    """No tool may be called."""


class Thinking(msgspec.Struct):
    """Whether the model thinks aloud; given to the chat template."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class Conversation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/messages/count_tokens` takes."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: ModelName | None = None
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: Thinking | None = None


class MessagesBody(Conversation, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/messages` takes."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stop_sequences: Annotated[list[Stop], Meta(max_length=16)] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    stream: bool | None = None
    metadata: dict[str, str | None] | None = None
    """Without effect."""
    service_tier: str | None = None
    """Without effect."""


def engine_messages(body: Conversation) -> tuple[Message, ...]:
    """Return the engine's messages; results of tools become turns of their own.

    Raises:
        Problem: 400 for blocks that are not text, and for an answer begun in the client's name.
    """
    messages: list[Message] = []
    if body.system:
        text = body.system if isinstance(body.system, str) else "\n".join(block.text for block in body.system)
        messages.append(Message("system", text))
    for place, turn in enumerate(body.messages):
        messages += [Message(turn.role, turn.content)] if isinstance(turn.content, str) else _turn(turn, place)
    if body.messages[-1].role == "assistant":
        raise Problem(400, "the last message must be the user's: answers cannot be begun here", param="messages")
    return tuple(messages)


def _turn(turn: Turn, place: int) -> list[Message]:
    messages: list[Message] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    assert not isinstance(turn.content, str)
    for block in turn.content:
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ToolUseBlock(id=id, name=name, input=given):
                calls.append(ToolCall(id, name, msgspec.json.encode(given).decode()))
            case ToolResultBlock(tool_use_id=id, content=content):
                messages.append(Message("tool", _result(content, place), tool_call_id=id))
            case ThinkingBlock() | RedactedBlock():
                continue
            case _:
                raise _only_text(place)
    if texts or calls or not messages:
        messages.append(Message(turn.role, "".join(texts), tool_calls=tuple(calls)))
    return messages


def _result(content: str | list[Block] | None, place: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for block in content:
        if not isinstance(block, TextBlock):
            raise _only_text(place)
        texts.append(block.text)
    return "".join(texts)


def _only_text(place: int) -> Problem:
    message = f"messages.{place}.content: only text is understood; no model here takes pictures or documents"
    return Problem(400, message, param="messages", code="unsupported_content")


def tools_of(body: Conversation) -> Toolbox:
    """Return the tools of a conversation."""
    functions = [Function(tool.name, tool.description, tool.input_schema) for tool in body.tools or ()]
    match body.tool_choice:
        case NamedChoice(name=name):
            return toolbox(functions, name, named=True)
        case AnyChoice():
            return toolbox(functions, "required", named=False)
        case NoChoice():
            return toolbox(functions, "none", named=False)
        case _:
            return toolbox(functions, "auto", named=False)


def template_args(body: Conversation) -> dict[str, str | bool | int | float]:
    """Return what the chat template is told."""
    return {} if body.thinking is None else {"enable_thinking": body.thinking.type != "disabled"}
