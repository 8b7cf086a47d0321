"""`/v1/chat/completions`: a conversation in, an answer or tool calls out.

Streamed and whole answers come from the same reader of tool calls, so their concatenation is equal by construction.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import MAX_LOGPROBS, Delta, ToolCall, Usage
from lathe.engine.http import figures
from lathe.engine.http.asking import ask_sampled
from lathe.engine.http.call import Call, Reply, Streamed, Whole
from lathe.engine.http.chat_store import CitationBody, Grounds, StoreChoice, SupportBody, answer, attach
from lathe.engine.http.completions import event
from lathe.engine.http.figures import Timings, UsageBody
from lathe.engine.http.logprobs import ChatLogprob, ChatLogprobs, chat_logprobs
from lathe.engine.http.messages_in import Messages, engine_messages
from lathe.engine.http.problems import Problem, envelope
from lathe.engine.http.stores import StoreName
from lathe.engine.http.toolcalls import Found, ToolReader
from lathe.engine.http.tools import MAX_TOOLS, NamedTool, Tool, Toolbox, ToolChoice, toolbox
from lathe.engine.http.wire import ModelName, Sampled, StreamOptions, TemplateValues, Tokens
from msgspec import Meta


class ChatBody(Sampled, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/chat/completions` takes."""

    messages: Messages
    model: ModelName | None = None
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    """The older name of max_completion_tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """Without effect: as many calls are returned as the model writes."""
    chat_template_kwargs: TemplateValues | None = None
    """Extra variables of the chat template, such as enable_thinking."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """Given to the chat template; whether it does anything is the model's affair."""
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Without effect."""
    store: bool | StoreName | StoreChoice | None = None  # type: ignore[assignment]
    """A RAG store to answer from, by name or with how to search it; OpenAI's own true and false change nothing."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class FunctionBody(msgspec.Struct, omit_defaults=True):
    """The function of a call."""

    name: str
    arguments: str


class CallBody(msgspec.Struct):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: FunctionBody


class StreamedCallBody(msgspec.Struct):
    """A call in a stream; it is sent whole, once it is certain."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionBody


class Answer(msgspec.Struct, omit_defaults=True):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[CallBody] = []
    refusal: str | None = None


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct, omit_defaults=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None
    citations: list[CitationBody] | None = None
    """With a store: what `[1]`, `[2]` mean."""
    cited: list[int] | None = None
    """Those that the answer names."""
    in_documents: bool | None = None
    """Whether the answer is in the documents at all."""
    support: list[SupportBody] | None = None


class Piece(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to an answer."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[StreamedCallBody] = []


class ChunkChoice(msgspec.Struct):
    """One answer's part of a chunk."""

    index: int
    delta: Piece
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, omit_defaults=True):
    """One event of the stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None
    citations: list[CitationBody] | None = None
    """With a store, in the first chunk."""
    cited: list[int] | None = None
    """In the last, like those that follow."""
    in_documents: bool | None = None
    support: list[SupportBody] | None = None


async def chat(call: Call) -> Reply:
    """POST /v1/chat/completions."""
    body: ChatBody = call.body
    entry = await call.find(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    box = _toolbox(body)
    args = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        args["reasoning_effort"] = body.reasoning_effort
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    request = await ask_sampled(
        call,
        entry,
        body,
        messages=engine_messages(body.messages),
        max_tokens=limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tools=box.template,
        schema=box.schema,
        template_args=args,
    )
    source, grounds = None, None
    if (store := _store(body)) is not None:
        asked, grounds = await attach(call, store, request)
        source = partial(answer, call, asked, grounds)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Streamed((request,), ChatWriter(call, entry.name, box, include_usage=usage, grounds=grounds), source)
    return Whole((request,), ChatFolder(call, entry.name, box, grounds), source)


def _store(body: ChatBody) -> StoreChoice | None:
    if isinstance(body.store, str):
        return StoreChoice(name=body.store)
    return body.store if isinstance(body.store, StoreChoice) else None  # OpenAI's true and false change nothing


def _toolbox(body: ChatBody) -> Toolbox:
    functions = [tool.function for tool in body.tools or ()]
    if isinstance(body.tool_choice, NamedTool):
        return toolbox(functions, body.tool_choice.function.name, named=True)
    return toolbox(functions, body.tool_choice or "auto", named=False)


class Readers:
    """One tool reader per choice, or none where the request has no tools."""

    def __init__(self, box: Toolbox) -> None:
        self._box = box
        self._readers: dict[int, ToolReader] = {}
        self.called: set[int] = set()
        """Choices in which a tool was called."""

    def feed(self, delta: Delta) -> Found:
        """Return what a delta's text turned out to be; with its finish, everything that is left."""
        if not self._box.names:
            return [delta.text] if delta.text else []
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = ToolReader(self._box.names, forced=self._box.schema is not None)
        found = reader.feed(delta.text) if delta.text else []
        if delta.finish is not None:
            found += reader.finish()
        if any(isinstance(item, ToolCall) for item in found):
            self.called.add(delta.index)
        return found

    def reason(self, delta: Delta) -> str | None:
        """Return OpenAI's finish reason."""
        if delta.finish == "stop" and delta.index in self.called:
            return "tool_calls"
        return "length" if delta.finish == "deadline" else delta.finish


class ChatWriter:
    """Server-sent events of a chat."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(
        self, call: Call, model: str, box: Toolbox, *, include_usage: bool, grounds: Grounds | None = None
    ) -> None:
        self._grounds = grounds
        self._id, self._created, self._model = f"chatcmpl-{call.id}", call.created, model
        self._readers = Readers(box)
        self._include_usage = include_usage
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._greeted: set[int] = set()
        self._calls: dict[int, int] = {}

    def open(self) -> bytes:
        """Return nothing: each choice opens with its own first chunk."""
        return b""

    def feed(self, delta: Delta) -> bytes:
        """Return the chunks of a delta."""
        out: list[bytes] = []
        index = delta.index
        if index not in self._greeted:
            self._greeted.add(index)
            out.append(self._greeting(index))
        found = self._readers.feed(delta)
        logprobs = ChatLogprobs(chat_logprobs(delta.logprobs)) if delta.logprobs else None
        for item in found:
            if isinstance(item, str):
                out.append(self._chunk(index, Piece(content=item), logprobs))
                logprobs = None
            else:
                out.append(self._chunk(index, Piece(tool_calls=[self._call(index, item)])))
        if logprobs is not None:
            out.append(self._chunk(index, Piece(content=""), logprobs))
        if delta.usage is not None:
            self._usage = delta.usage
            self._timings = figures.timings(delta.usage, delta.timing) if delta.timing is not None else None
        if delta.finish is not None:
            choice = ChunkChoice(index, Piece(), finish_reason=self._readers.reason(delta))
            out.append(self._event([choice], timings=self._timings, end=self._grounds))
        return b"".join(out)

    def close(self) -> bytes:
        """Return the usage, where it was asked for, and the end."""
        last = b""
        if self._include_usage and self._usage is not None:
            last = self._event([], usage=figures.usage_body(self._usage))
        return last + b"data: [DONE]\n\n"

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as an event; no [DONE] follows."""
        return event(envelope(problem, "openai"))

    def _call(self, index: int, made: ToolCall) -> StreamedCallBody:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        return StreamedCallBody(number, made.id, "function", FunctionBody(made.name, made.arguments))

    def _greeting(self, index: int) -> bytes:
        return self._event([ChunkChoice(index, Piece(role="assistant", content=""))], begin=self._grounds)

    def _chunk(self, index: int, piece: Piece, logprobs: ChatLogprobs | None = None) -> bytes:
        return self._event([ChunkChoice(index, piece, logprobs)])

    def _event(
        self, choices: list[ChunkChoice], usage: UsageBody | None = None, timings: Timings | None = None,
        begin: Grounds | None = None, end: Grounds | None = None,
    ) -> bytes:  # fmt: skip
        chunk = Chunk(
            self._id, "chat.completion.chunk", self._created, self._model, choices, usage=usage, timings=timings
        )
        if begin is not None:
            chunk.citations = begin.citations
        if end is not None:
            chunk.cited, chunk.in_documents, chunk.support = end.cited, end.in_documents, end.support
        return event(chunk)


class _Collected:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[ChatLogprob] = []
        self.reason: str | None = None


class ChatFolder:
    """The whole answer of a chat."""

    def __init__(self, call: Call, model: str, box: Toolbox, grounds: Grounds | None = None) -> None:
        self._id, self._created, self._model = f"chatcmpl-{call.id}", call.created, model
        self._grounds = grounds
        self._readers = Readers(box)
        self._choices: dict[int, _Collected] = {}
        self._usage: UsageBody | None = None
        self._timings: Timings | None = None

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        choice = self._choices.setdefault(delta.index, _Collected())
        for item in self._readers.feed(delta):
            if isinstance(item, str):
                choice.texts.append(item)
            else:
                choice.calls.append(item)
        choice.logprobs += chat_logprobs(delta.logprobs)
        if delta.finish is not None:
            choice.reason = self._readers.reason(delta)
        if delta.usage is not None:
            self._usage = figures.usage_body(delta.usage)
            self._timings = figures.timings(delta.usage, delta.timing) if delta.timing is not None else None

    def result(self) -> ChatCompletion:
        """Return the answer."""
        choices = [_choice(index, collected) for index, collected in sorted(self._choices.items())]
        made = ChatCompletion(
            self._id, "chat.completion", self._created, self._model, choices, usage=self._usage, timings=self._timings
        )
        if (grounds := self._grounds) is not None:
            made.citations, made.cited = grounds.citations, grounds.cited
            made.in_documents, made.support = grounds.in_documents, grounds.support
        return made


def _choice(index: int, collected: _Collected) -> ChatChoice:
    text = "".join(collected.texts)
    calls = [CallBody(made.id, "function", FunctionBody(made.name, made.arguments)) for made in collected.calls]
    answer = Answer("assistant", None if calls and not text else text, calls)
    logprobs = ChatLogprobs(collected.logprobs) if collected.logprobs else None
    return ChatChoice(index, answer, logprobs, collected.reason)
