"""OpenAI's `/v1/responses` request, turned into the engine's messages, tools and output constraint.

Nothing is stored here, so what refers to stored things (`previous_response_id`, `conversation`, `background`,
`item_reference`) is a 400 that says so rather than an answer without its history.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import Message, ToolCall
from lathe.engine.http.messages_in import MAX_MESSAGES
from lathe.engine.http.problems import Problem
from lathe.engine.http.tools import MAX_TOOLS, Function, Toolbox, toolbox
from lathe.engine.http.wire import ModelName, NoEffect, Schema, Share, schema_text
from msgspec import Meta


class InputPart(msgspec.Struct):
    """Part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct):
    """A message, a call or the result of one; told apart by `type`, which messages may leave out."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(msgspec.Struct, omit_defaults=True):
    """A function the model may call; the only kind of tool there is here."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(msgspec.Struct):
    """A tool choice that names its tool."""

    name: str
    type: Literal["function"] = "function"


class PlainFormat(msgspec.Struct, tag="text", tag_field="type"):
    """Unconstrained text."""


class ObjectFormat(msgspec.Struct, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaFormat(msgspec.Struct, tag="json_schema", tag_field="type", omit_defaults=True):
    """JSON that a schema describes."""

    schema: Schema
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    """What the text must look like."""

    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, omit_defaults=True):
    """How hard to think; given to the chat template."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesBody(NoEffect, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/responses` takes."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: ModelName | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Share | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` cuts the middle of a prompt that does not fit; the answer says how much in usage."""
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None


def check_stateless(body: ResponsesBody) -> None:
    """Refuse what would need stored responses."""
    if body.previous_response_id is not None or body.conversation is not None or body.background:
        message = "responses are not stored here: send the whole conversation as input"
        raise Problem(400, message, param="previous_response_id", code="unsupported_parameter")


def engine_messages(body: ResponsesBody) -> tuple[Message, ...]:
    """Return the engine's messages."""
    messages = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return (*messages, Message("user", body.input))
    for place, item in enumerate(body.input):
        _append(messages, item, place)
    return tuple(messages)


def _append(messages: list[Message], item: InputItem, place: int) -> None:
    match item.type:
        case "message":
            role = "system" if item.role == "developer" else item.role or "user"
            messages.append(Message(role, _text(item.content, place)))
        case "function_call":
            call = ToolCall(item.call_id or "", item.name or "", item.arguments or "{}")
            last = messages[-1] if messages else None
            if last is not None and last.role == "assistant":
                messages[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))
            else:
                messages.append(Message("assistant", tool_calls=(call,)))
        case "function_call_output":
            messages.append(Message("tool", _text(item.output, place), tool_call_id=item.call_id))
        case "reasoning":
            return
        case "item_reference":
            message = "responses are not stored here, so items cannot be referred to"
            raise Problem(400, message, param=f"input[{place}]", code="unsupported_parameter")


def _text(content: str | list[InputPart] | None, place: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for part in content:
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            message = "only text parts are understood; no model here takes pictures, sound or files"
            raise Problem(400, message, param=f"input[{place}].content", code="unsupported_content")
        texts.append(part.text or part.refusal or "")
    return "".join(texts)


def tools_of(body: ResponsesBody) -> Toolbox:
    """Return the tools of a request."""
    functions = [Function(tool.name, tool.description, tool.parameters, tool.strict) for tool in body.tools or ()]
    if isinstance(body.tool_choice, FunctionChoice):
        return toolbox(functions, body.tool_choice.name, named=True)
    return toolbox(functions, body.tool_choice or "auto", named=False)


def schema_of(body: ResponsesBody) -> str | None:
    """Return the JSON schema that the text must follow."""
    match body.text.format if body.text is not None else None:
        case ObjectFormat():
            return schema_text({"type": "object"}, "text.format")
        case SchemaFormat(schema=schema):
            return schema_text(schema, "text.format")
        case _:
            return None
