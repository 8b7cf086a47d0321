"""Ollama's `/api/chat`, `/api/generate` and `/api/embed`: lines of JSON instead of events, durations in nanoseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from lathe.engine.generation import Delta, GenerationRequest, Message, ToolCall
from lathe.engine.http.access import authorize
from lathe.engine.http.asking import ask
from lathe.engine.http.call import Call, Json, Reply, Streamed, Whole
from lathe.engine.http.chat import Readers
from lathe.engine.http.completions import fill_gap
from lathe.engine.http.embeddings import cut, embed, floats
from lathe.engine.http.logprobs import ChatLogprob, chat_logprobs
from lathe.engine.http.ollama_in import (
    OllamaCall,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaFunction,
    OllamaGenerateBody,
    engine_messages,
    limit_of,
    refuse_images,
    sampling_of,
    thinking,
)
from lathe.engine.http.problems import Problem
from lathe.engine.http.tools import Toolbox, toolbox
from lathe.engine.http.wire import stops
from lathe.store.models import ModelEntry


class Said(msgspec.Struct, omit_defaults=True):
    """The assistant's message, or what a line adds to it."""

    role: str
    content: str
    tool_calls: list[OllamaCall] = []


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of a stream, or the whole answer; the figures stand in the last one."""

    model: str
    created_at: str
    done: bool
    message: Said | None = None
    response: str | None = None
    done_reason: str | None = None
    total_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[ChatLogprob] = []


class OllamaEmbeddings(msgspec.Struct):
    """Vectors, in the order of the texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    prompt_eval_count: int


class OllamaEmbedding(msgspec.Struct):
    """One vector, as the older route gives it."""

    embedding: list[float]


async def chat(call: Call) -> Reply:
    """POST /api/chat."""
    body: OllamaChatBody = call.body
    entry = await call.find(body.model)
    if not body.messages:
        return await _load_or_unload(call, entry, body.keep_alive, chat=True)
    box = toolbox([tool.function for tool in body.tools or ()], "auto", named=False)
    request = await _ask(call, entry, body, messages=engine_messages(body.messages), tools=box.template)
    return _reply(call, entry, request, box, stream=body.stream is not False, chat=True)


async def generate(call: Call) -> Reply:
    """POST /api/generate."""
    body: OllamaGenerateBody = call.body
    entry = await call.find(body.model)
    refuse_images(body.images)
    if body.template or body.context:
        raise Problem(400, "template and context are not taken: use raw, or /api/chat", code="unsupported_parameter")
    if not body.prompt and not body.suffix:
        return await _load_or_unload(call, entry, body.keep_alive, chat=False)
    if body.suffix:
        tokens = await fill_gap(call, entry, body.prompt, body.suffix, [])
        request = await _ask(call, entry, body, tokens=tokens)
    elif body.raw:
        request = await _ask(call, entry, body, prompt=body.prompt)
    else:
        system = (Message("system", body.system),) if body.system else ()
        request = await _ask(call, entry, body, messages=(*system, Message("user", body.prompt)))
    return _reply(call, entry, request, Toolbox(), stream=body.stream is not False, chat=False)


async def embed_texts(call: Call) -> Reply:
    """POST /api/embed."""
    body: OllamaEmbedBody = call.body
    entry = await call.find(body.model)
    texts = (body.input,) if isinstance(body.input, str) else tuple(body.input)
    if not texts:
        return Json(OllamaEmbeddings(entry.name, [], 0, 0))
    started = time.monotonic_ns()
    found = await embed(call, entry, texts)
    vectors = [floats(row) for row in cut(found, body.dimensions)]
    return Json(OllamaEmbeddings(entry.name, vectors, time.monotonic_ns() - started, found.prompt_tokens))


async def embed_prompt(call: Call) -> Reply:
    """POST /api/embeddings, the older form."""
    body: OllamaEmbeddingsBody = call.body
    entry = await call.find(body.model)
    found = await embed(call, entry, (body.prompt,))
    return Json(OllamaEmbedding(floats(cut(found, None)[0])))


async def _ask(
    call: Call,
    entry: ModelEntry,
    body: OllamaChatBody | OllamaGenerateBody,
    *,
    messages: tuple[Message, ...] = (),
    prompt: str | None = None,
    tokens: tuple[int, ...] | None = None,
    tools: str | None = None,
) -> GenerationRequest:
    return await ask(
        call, entry, messages=messages, prompt=prompt, tokens=tokens, max_tokens=limit_of(body),
        chosen=sampling_of(body), stop=stops(body.options.stop if body.options is not None else None), tools=tools,
        template_args=thinking(body), logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )  # fmt: skip


async def _load_or_unload(call: Call, entry: ModelEntry, keep_alive: str | float | None, *, chat: bool) -> Reply:
    """Ollama's way to warm a model up or to drop it: a request without a prompt."""
    drop = keep_alive in (0, "0", "0s", "0m")
    if drop:
        authorize(call.principal, "admin")
        await call.service.workbench.unload(entry.name)
    elif not await _in_memory(call, entry):  # loading again would change how others have it loaded
        await call.service.workbench.load(entry.name)
    line = Line(model=entry.name, created_at=_now(), done=True, done_reason="unload" if drop else "load")
    return Json(_filled(line, "", [], chat=chat))


async def _in_memory(call: Call, entry: ModelEntry) -> bool:
    workers = (await call.service.workbench.snapshot()).workers
    return any(worker.model_id == entry.id and worker.phase in ("starting", "ready") for worker in workers)


def _reply(
    call: Call, entry: ModelEntry, request: GenerationRequest, box: Toolbox, *, stream: bool, chat: bool
) -> Reply:
    writer = LineWriter(entry.name, box, chat=chat)
    return Streamed((request,), writer) if stream else Whole((request,), LineFolder(entry.name, box, chat=chat))


class LineWriter:
    """The stream of an answer."""

    media_type = "application/x-ndjson"
    ping = b""

    def __init__(self, model: str, box: Toolbox, *, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._readers = Readers(box)

    def open(self) -> bytes:
        """Return nothing: the first line is the first piece."""
        return b""

    def feed(self, delta: Delta) -> bytes:
        """Return the lines of a delta."""
        out: list[bytes] = []
        logprobs = chat_logprobs(delta.logprobs)
        for item in self._readers.feed(delta):
            text, calls = (item, []) if isinstance(item, str) else ("", [_call(item)])
            line = Line(model=self._model, created_at=_now(), done=False, logprobs=logprobs)
            out.append(_encoded(_filled(line, text, calls, chat=self._chat)))
            logprobs = []
        if delta.finish is not None:
            line = _last(self._model, delta)
            line.logprobs = logprobs
            out.append(_encoded(_filled(line, "", [], chat=self._chat)))
        return b"".join(out)

    def close(self) -> bytes:
        """Return nothing: the line with `done` has gone out."""
        return b""

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as a line."""
        return _encoded({"error": problem.message})


class LineFolder:
    """The whole answer."""

    def __init__(self, model: str, box: Toolbox, *, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._readers = Readers(box)
        self._texts: list[str] = []
        self._calls: list[OllamaCall] = []
        self._logprobs: list[ChatLogprob] = []
        self._line = Line(model=model, created_at="", done=True)

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        for item in self._readers.feed(delta):
            if isinstance(item, str):
                self._texts.append(item)
            else:
                self._calls.append(_call(item))
        self._logprobs += chat_logprobs(delta.logprobs)
        if delta.finish is not None:
            self._line = _last(self._model, delta)

    def result(self) -> Line:
        """Return the answer."""
        self._line.logprobs = self._logprobs
        return _filled(self._line, "".join(self._texts), self._calls, chat=self._chat)


def _filled(line: Line, text: str, calls: list[OllamaCall], *, chat: bool) -> Line:
    if chat:
        line.message = Said("assistant", text, calls)
    else:
        line.response = text
    return line


def _last(model: str, delta: Delta) -> Line:
    line = Line(model=model, created_at=_now(), done=True, done_reason="stop" if delta.finish == "stop" else "length")
    if delta.usage is not None:
        line.prompt_eval_count, line.eval_count = delta.usage.prompt_tokens, delta.usage.completion_tokens
    if delta.timing is not None:
        line.total_duration = _ns(delta.timing.finished_s)
        line.prompt_eval_duration, line.eval_duration = _ns(delta.timing.prefill_s), _ns(delta.timing.decode_s)
    return line


def _call(made: ToolCall) -> OllamaCall:
    arguments: dict[str, Any] = msgspec.json.decode(made.arguments)
    return OllamaCall(OllamaFunction(made.name, arguments))


def _encoded(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
