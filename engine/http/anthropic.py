"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

Events of a stream, in order; blocks are numbered as they come and never interleave:

    message_start (content_block_start content_block_delta* content_block_stop)* message_delta message_stop

The prompt's token count is known only when the model has read it, so `message_start` says 0 and `message_delta`
carries the true counts, which is where clients read the final usage.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lathe.engine.generation import Delta, Sampling, ToolCall, Usage
from lathe.engine.http.anthropic_in import Conversation, MessagesBody, engine_messages, template_args, tools_of
from lathe.engine.http.asking import ask, constrain
from lathe.engine.http.call import Call, Json, Reply, Streamed, Whole
from lathe.engine.http.chat import Readers
from lathe.engine.http.problems import Problem, envelope
from lathe.engine.http.tools import Toolbox


class AnthropicUsage(msgspec.Struct):
    """Token counts; the three kinds of input add up to the prompt."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class TextContent(msgspec.Struct, tag="text", tag_field="type"):
    """Text."""

    text: str


class ToolUseContent(msgspec.Struct, tag="tool_use", tag_field="type"):
    """A call."""

    id: str
    name: str
    input: msgspec.Raw


class AnthropicMessage(msgspec.Struct):
    """The whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextContent | ToolUseContent]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(msgspec.Struct):
    """How long a prompt would be."""

    input_tokens: int


async def messages(call: Call) -> Reply:
    """POST /v1/messages."""
    body: MessagesBody = call.body
    entry = await call.find(body.model)
    box = tools_of(body)
    given: dict[str, Any] = {
        name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(body, name)) is not None
    }
    chosen = Sampling(**given)
    request = await ask(
        call,
        entry,
        messages=engine_messages(body),
        max_tokens=body.max_tokens,
        chosen=constrain(chosen, box.schema) if box.schema is not None else chosen,
        stop=tuple(body.stop_sequences or ()),
        tools=box.template,
        template_args=template_args(body),
    )
    if body.stream:
        return Streamed((request,), AnthropicWriter(call, entry.name, box))
    return Whole((request,), AnthropicFolder(call, entry.name, box))


async def count_tokens(call: Call) -> Reply:
    """POST /v1/messages/count_tokens."""
    body: Conversation = call.body
    entry = await call.find(body.model)
    rendered = await call.service.workbench.render(
        entry.name, list(engine_messages(body)), tools_of(body).template, template_args(body)
    )
    return Json(TokenCount(len(rendered.tokens)))


def _reason(delta: Delta, called: bool) -> str:
    if delta.finish != "stop":
        return "max_tokens"
    if called:
        return "tool_use"
    return "stop_sequence" if delta.stop_text is not None else "end_turn"


def _usage(usage: Usage | None) -> AnthropicUsage:
    if usage is None:
        return AnthropicUsage(0, 0)
    return AnthropicUsage(
        usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens, cache_read_input_tokens=usage.cached_tokens
    )


def _tool_id(made: ToolCall) -> str:
    return made.id.replace("call_", "toolu_", 1)


class AnthropicWriter:
    """The stream of a message."""

    media_type = "text/event-stream"
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, call: Call, model: str, box: Toolbox) -> None:
        self._id, self._model = f"msg_{call.id}", model
        self._readers = Readers(box)
        self._request_id = f"req_{call.id}"
        self._block = 0
        self._in_text = False
        self._usage: Usage | None = None
        self._end: tuple[str, str | None] = ("end_turn", None)

    def open(self) -> bytes:
        """Return message_start."""
        message = AnthropicMessage(
            self._id, "message", "assistant", self._model, [], None, None, AnthropicUsage(0, 0)
        )  # fmt: skip
        return _event("message_start", message=message)

    def feed(self, delta: Delta) -> bytes:
        """Return the events of a delta."""
        out: list[bytes] = []
        for item in self._readers.feed(delta):
            if isinstance(item, str):
                out += self._text(item)
            else:
                out += self._call(item)
        self._usage = delta.usage or self._usage
        if delta.finish is not None:
            self._end = (_reason(delta, delta.index in self._readers.called), delta.stop_text)
        return b"".join(out)

    def close(self) -> bytes:
        """Return the closing events, with the true counts."""
        reason, stop = self._end
        delta = {"stop_reason": reason, "stop_sequence": stop}
        out = [*self._close_text(), _event("message_delta", delta=delta, usage=_usage(self._usage))]
        return b"".join([*out, _event("message_stop")])

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as an error event."""
        body = msgspec.json.encode(envelope(problem, "anthropic", self._request_id))
        return b"event: error\ndata: " + body + b"\n\n"

    def _text(self, text: str) -> list[bytes]:
        out: list[bytes] = []
        if not self._in_text:
            self._in_text = True
            out.append(_event("content_block_start", index=self._block, content_block=TextContent("")))
        delta = {"type": "text_delta", "text": text}
        return [*out, _event("content_block_delta", index=self._block, delta=delta)]

    def _close_text(self) -> list[bytes]:
        if not self._in_text:
            return []
        self._in_text = False
        self._block += 1
        return [_event("content_block_stop", index=self._block - 1)]

    def _call(self, made: ToolCall) -> list[bytes]:
        out = self._close_text()
        block = ToolUseContent(_tool_id(made), made.name, msgspec.Raw(b"{}"))
        delta = {"type": "input_json_delta", "partial_json": made.arguments}
        out.append(_event("content_block_start", index=self._block, content_block=block))
        out.append(_event("content_block_delta", index=self._block, delta=delta))
        out.append(_event("content_block_stop", index=self._block))
        self._block += 1
        return out


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"


class AnthropicFolder:
    """The whole answer."""

    def __init__(self, call: Call, model: str, box: Toolbox) -> None:
        self._id, self._model = f"msg_{call.id}", model
        self._readers = Readers(box)
        self._content: list[TextContent | ToolUseContent] = []
        self._usage: Usage | None = None
        self._end: tuple[str, str | None] = ("end_turn", None)

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        for item in self._readers.feed(delta):
            if isinstance(item, ToolCall):
                raw = msgspec.Raw(item.arguments.encode())
                self._content.append(ToolUseContent(_tool_id(item), item.name, raw))
            elif self._content and isinstance(last := self._content[-1], TextContent):
                last.text += item
            else:
                self._content.append(TextContent(item))
        self._usage = delta.usage or self._usage
        if delta.finish is not None:
            self._end = (_reason(delta, delta.index in self._readers.called), delta.stop_text)

    def result(self) -> AnthropicMessage:
        """Return the answer."""
        return AnthropicMessage(
            self._id, "message", "assistant", self._model, self._content, *self._end, _usage(self._usage)
        )
