"""Ollama's requests as its clients send them.

`options` is the one place where unknown names pass: Ollama's clients send settings of its loader (`num_gpu`,
`num_thread`, `num_ctx`) with every request, and here those belong to whoever loads the model. Streaming is the default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import Message, Sampling, ToolCall
from lathe.engine.http.messages_in import MAX_MESSAGES
from lathe.engine.http.problems import Problem
from lathe.engine.http.tools import MAX_TOOLS, Tool
from lathe.engine.http.wire import ModelName, Penalty, Share, Stops, Window, fold_seed, schema_text
from msgspec import Meta


class OllamaOptions(msgspec.Struct, omit_defaults=True):
    """Sampling; names of Ollama's loader settings are ignored."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: Window | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None
    """-1 and -2: no limit but the context."""
    stop: Stops | None = None


class OllamaFunction(msgspec.Struct):
    """The function of a call; arguments are an object here, not text."""

    name: str
    arguments: dict[str, Any] = {}


class OllamaCall(msgspec.Struct):
    """A call that the assistant made."""

    function: OllamaFunction


class OllamaMessage(msgspec.Struct):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None


Format = Literal["", "json"] | dict[str, Any] | None
KeepAlive = str | float | None


class _Ask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    model: ModelName | None = None
    stream: bool | None = None
    options: OllamaOptions | None = None
    format: Format = None
    keep_alive: KeepAlive = None
    """0 with an empty request unloads the model, which needs a key with the scope `admin`; else without effect."""
    think: bool | Literal["low", "medium", "high"] | None = None
    """Given to the chat template."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class OllamaChatBody(_Ask, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/api/chat` takes."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None


class OllamaGenerateBody(_Ask, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/api/generate` takes."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    """True: no chat template."""
    images: list[str] | None = None
    template: str | None = None
    context: list[int] | None = None


class OllamaEmbedBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/api/embed` takes."""

    input: str | Annotated[list[str], Meta(max_length=2048)]
    model: ModelName | None = None
    truncate: bool | None = None
    """Without effect: a text that does not fit is refused with the counts."""
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive = None


class OllamaEmbeddingsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the older `/api/embeddings` takes."""

    prompt: str
    model: ModelName | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive = None


class OllamaShowBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/api/show` takes."""

    model: ModelName | None = None
    name: ModelName | None = None
    """The older name of model."""
    verbose: bool | None = None


_SAME = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "frequency_penalty",
    "presence_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip


def sampling_of(body: _Ask) -> Sampling:
    """Return the engine's sampling value."""
    options = body.options or OllamaOptions()
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(options, name)) is not None}
    if options.seed is not None:
        given["seed"] = fold_seed(options.seed)
    if body.format == "json":
        given["json_schema"] = '{"type":"object"}'
    elif isinstance(body.format, dict):
        given["json_schema"] = schema_text(body.format, "format")
    return Sampling(**given)


def limit_of(body: _Ask) -> int | None:
    """Return the most tokens to generate."""
    limit = body.options.num_predict if body.options is not None else None
    return None if limit is None or limit < 0 else limit


def engine_messages(given: list[OllamaMessage]) -> tuple[Message, ...]:
    """Return the engine's messages."""
    messages: list[Message] = []
    for message in given:
        refuse_images(message.images)
        calls = tuple(
            ToolCall(f"call_{place}", call.function.name, msgspec.json.encode(call.function.arguments).decode())
            for place, call in enumerate(message.tool_calls or ())
        )
        messages.append(Message(message.role, message.content or "", message.tool_name, calls))
    return tuple(messages)


def refuse_images(images: list[str] | None) -> None:
    """Refuse pictures, which no model here takes."""
    if images:
        raise Problem(400, "only text is understood; no model here takes pictures", code="unsupported_content")


def thinking(body: _Ask) -> dict[str, str | bool | int | float]:
    """Return what the chat template is told."""
    if body.think is None:
        return {}
    args: dict[str, str | bool | int | float] = {"enable_thinking": bool(body.think)}
    if isinstance(body.think, str):
        args["reasoning_effort"] = body.think
    return args
