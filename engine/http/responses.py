"""OpenAI's `/v1/responses`: one answer made of items, and the events that build it up.

    response.created response.in_progress
      (output_item.added (content_part.added output_text.delta* output_text.done content_part.done) output_item.done)*
      (output_item.added function_call_arguments.delta function_call_arguments.done output_item.done)*
    response.completed | response.incomplete | error

The same builder makes the items of streamed and whole answers; the writer only reports its steps.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lathe.engine.generation import Delta, Sampling, ToolCall, Usage
from lathe.engine.http.asking import ask, constrain
from lathe.engine.http.call import Call, Reply, Streamed, Whole
from lathe.engine.http.chat import Readers
from lathe.engine.http.problems import Problem
from lathe.engine.http.responses_in import (
    FunctionTool,
    PlainFormat,
    ResponsesBody,
    TextConfig,
    check_stateless,
    engine_messages,
    schema_of,
    tools_of,
)
from lathe.engine.http.tools import Toolbox


class OutputText(msgspec.Struct):
    """Text of a message item."""

    type: Literal["output_text"]
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class MessageItem(msgspec.Struct, tag="message", tag_field="type"):
    """A message."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class CallItem(msgspec.Struct, tag="function_call", tag_field="type"):
    """A call."""

    id: str
    status: Literal["in_progress", "completed"]
    call_id: str
    name: str
    arguments: str


class InputDetails(msgspec.Struct):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """What output tokens were spent on."""

    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct, omit_defaults=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    truncated_tokens: int = 0


class Response(msgspec.Struct, kw_only=True):
    """The answer, with the request's parameters repeated as OpenAI does."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[MessageItem | CallItem] = []
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: float | None = None
    text: TextConfig = msgspec.field(default_factory=TextConfig)
    tool_choice: Any = "auto"
    tools: list[FunctionTool] = []
    top_p: float | None = None
    truncation: str = "disabled"
    metadata: dict[str, str] = {}
    usage: ResponsesUsage | None = None


async def responses(call: Call) -> Reply:
    """POST /v1/responses."""
    body: ResponsesBody = call.body
    entry = await call.find(body.model)
    check_stateless(body)
    box = tools_of(body)
    given: dict[str, Any] = {
        name: value for name in ("temperature", "top_p") if (value := getattr(body, name)) is not None
    }
    schema = box.schema or schema_of(body)
    effort = body.reasoning.effort if body.reasoning is not None else None
    request = await ask(
        call,
        entry,
        messages=engine_messages(body),
        max_tokens=body.max_output_tokens,
        chosen=constrain(Sampling(**given), schema) if schema is not None else Sampling(**given),
        tools=box.template,
        template_args={"reasoning_effort": effort} if effort is not None else None,
        overflow="truncate_middle" if body.truncation == "auto" else "refuse",
    )
    builder = Builder(_blank(call, entry.name, body), call.id, box)
    if body.stream:
        return Streamed((request,), ResponsesWriter(builder))
    return Whole((request,), ResponsesFolder(builder))


def _blank(call: Call, model: str, body: ResponsesBody) -> Response:
    form = body.text.format if body.text is not None else None
    return Response(
        id=f"resp_{call.id}", object="response", created_at=call.created, status="in_progress", model=model,
        instructions=body.instructions, max_output_tokens=body.max_output_tokens, temperature=body.temperature,
        top_p=body.top_p, text=TextConfig(form or PlainFormat()), tools=body.tools or [], metadata=body.metadata or {},
        tool_choice="auto" if body.tool_choice is None else body.tool_choice, truncation=body.truncation or "disabled",
    )  # fmt: skip


Step = tuple[str, dict[str, object]]
"""An event: its kind without `response.`, and its fields."""


class Builder:
    """Builds the response item by item and says what changed."""

    def __init__(self, response: Response, serial: str, box: Toolbox) -> None:
        self.response = response
        self._serial = serial
        self._readers = Readers(box)
        self._text: MessageItem | None = None
        self._usage: Usage | None = None
        self._finish: str | None = None

    def feed(self, delta: Delta) -> list[Step]:
        """Take a delta."""
        steps: list[Step] = []
        for item in self._readers.feed(delta):
            steps += self._add_text(item) if isinstance(item, str) else self._add_call(item)
        self._usage = delta.usage or self._usage
        self._finish = delta.finish or self._finish
        return steps

    def close(self) -> list[Step]:
        """Finish the last item and the response."""
        cut = self._finish in ("length", "deadline")
        steps = self._end_text("incomplete" if cut else "completed")
        self.response.status = "incomplete" if cut else "completed"
        self.response.incomplete_details = {"reason": "max_output_tokens"} if cut else None
        self.response.usage = _usage(self._usage) if self._usage is not None else None
        return [*steps, (self.response.status, {"response": self.response})]

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._serial}{len(self.response.output):02d}"

    def _add_text(self, text: str) -> list[Step]:
        steps: list[Step] = []
        if self._text is None:
            item = MessageItem(self._new_id("msg"), "in_progress", "assistant", [])
            self._text = item
            self.response.output.append(item)
            steps.append(("output_item.added", {"output_index": self._place, "item": _copy(item)}))
            item.content.append(OutputText("output_text", ""))
            steps.append(("content_part.added", {**self._where(), "part": OutputText("output_text", "")}))
        self._text.content[0].text += text
        return [*steps, ("output_text.delta", {**self._where(), "delta": text, "logprobs": []})]

    def _end_text(self, status: Literal["completed", "incomplete"] = "completed") -> list[Step]:
        if self._text is None:
            return []
        item, where, part = self._text, self._where(), self._text.content[0]
        item.status = status
        self._text = None
        return [
            ("output_text.done", {**where, "text": part.text, "logprobs": []}),
            ("content_part.done", {**where, "part": part}),
            ("output_item.done", {"output_index": self._place, "item": item}),
        ]

    def _add_call(self, made: ToolCall) -> list[Step]:
        steps = self._end_text()
        item = CallItem(self._new_id("fc"), "in_progress", made.id, made.name, "")
        self.response.output.append(item)
        begun = msgspec.structs.replace(item)
        item.arguments, item.status = made.arguments, "completed"
        where: dict[str, object] = {"output_index": self._place, "item_id": item.id}
        return [
            *steps,
            ("output_item.added", {"output_index": self._place, "item": begun}),
            ("function_call_arguments.delta", {**where, "delta": made.arguments}),
            ("function_call_arguments.done", {**where, "name": made.name, "arguments": made.arguments}),
            ("output_item.done", {"output_index": self._place, "item": item}),
        ]

    @property
    def _place(self) -> int:
        return len(self.response.output) - 1

    def _where(self) -> dict[str, object]:
        assert self._text is not None
        return {"output_index": self._place, "item_id": self._text.id, "content_index": 0}


def _copy(item: MessageItem) -> MessageItem:
    return msgspec.structs.replace(item, content=[])


def _usage(usage: Usage) -> ResponsesUsage:
    return ResponsesUsage(
        usage.prompt_tokens,
        InputDetails(usage.cached_tokens),
        usage.completion_tokens,
        OutputDetails(),
        usage.prompt_tokens + usage.completion_tokens,
        usage.truncated_tokens,
    )


class ResponsesWriter:
    """The stream of a response."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._number = 0

    def open(self) -> bytes:
        """Return the opening events."""
        fields = {"response": self._builder.response}
        return self._event("created", fields) + self._event("in_progress", fields)

    def feed(self, delta: Delta) -> bytes:
        """Return the events of a delta."""
        return b"".join(self._event(kind, fields) for kind, fields in self._builder.feed(delta))

    def close(self) -> bytes:
        """Return the closing events."""
        return b"".join(self._event(kind, fields) for kind, fields in self._builder.close())

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as an event."""
        fields = {"code": problem.code, "message": problem.message, "param": problem.param}
        body = {"type": "error", "sequence_number": self._number, **fields}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        name = f"response.{kind}"
        body = msgspec.json.encode({"type": name, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


class ResponsesFolder:
    """The whole answer."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        self._builder.feed(delta)

    def result(self) -> Response:
        """Return the answer."""
        self._builder.close()
        return self._builder.response
