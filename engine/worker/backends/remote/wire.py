"""What is sent to an OpenAI-compatible server, and what its answers mean. Pure.

Standard parameters always travel; those that only some servers know travel when they differ from the defaults, because
a strict server refuses what it does not know. Invariant: nothing a server sends is trusted to have a type: what has
another one is refused or left out.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any, TypeGuard

import msgspec
from lathe.engine.errors import (
    BusyError,
    DataError,
    InternalError,
    LatheError,
    MissingError,
    PolicyError,
    UnavailableError,
    UsageError,
)
from lathe.engine.generation import FinishReason, GenerationRequest, Message, Sampling, TokenLogprob

_UNKNOWN = -1
"""The id of a token that was only named."""
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "stop", "content_filter": "stop",
                                    "max_tokens": "length", "eos": "stop"}  # fmt: skip
_SPECIAL = (
    "top_k", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "repeat_penalty",
    "repeat_last_n", "ignore_eos", "grammar",
)  # fmt: skip
_SHOWN_CHARS = 300


class Piece(msgspec.Struct, frozen=True):
    """What one event of a stream says of one choice."""

    index: int
    text: str = ""
    finish: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[tuple[int, str, str], ...] = ()
    """(number, name, part of the arguments) of tool calls."""


class Spent(msgspec.Struct, frozen=True):
    """Tokens, as the server counts them."""

    prompt: int
    completion: int
    cached: int = 0


def chat_or_completion(request: GenerationRequest, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return the route and the body of a request for text.

    Raises:
        UsageError: it asks for what cannot be asked of a remote server.
    """
    if any(request.adapters.values()):
        raise UsageError("adapters of a remote model are its server's business", code="E_CAPABILITY")
    body: dict[str, Any] = {"model": model, "stream": stream, **_sampling(request.sampling)}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n > 1:
        body["n"] = request.n
    if request.overflow != "refuse":
        body["overflow"] = request.overflow
    if request.messages:
        body["messages"] = [_message(message) for message in request.messages]
        if request.tools is not None:
            body["tools"] = json.loads(request.tools)
        if request.template_args:
            body["chat_template_kwargs"] = dict(request.template_args)
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.echo:
            raise UsageError("echo belongs to prompts, not to conversations", code="E_CAPABILITY")
        return "chat/completions", body
    body["prompt"] = request.prompt if request.tokens is None else list(request.tokens)
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.echo:
        body["echo"] = True
    return "completions", body


def _sampling(sampling: Sampling) -> dict[str, Any]:
    usual = Sampling()
    given: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for name in ("frequency_penalty", "presence_penalty", *_SPECIAL):
        if (value := getattr(sampling, name)) != getattr(usual, name):
            given[name] = value
    if sampling.seed is not None:
        given["seed"] = sampling.seed
    if sampling.logit_bias:
        given["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(sampling.json_schema)}
        given["response_format"] = {"type": "json_schema", "json_schema": schema}
    return given


def _message(message: Message) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        given["name"] = message.name
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        given["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return given


# -- answers ---------------------------------------------------------------------------------------------------------
def document(data: bytes | str) -> dict[str, Any]:
    """Decode an answer.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError("the remote server's answer is no JSON", code="E_REMOTE") from error
    if not isinstance(value, dict):
        raise DataError("the remote server's answer is no JSON object", code="E_REMOTE")
    return value


def pieces(event: dict[str, Any]) -> list[Piece]:
    """What an event of a stream, or a whole answer, says of its choices."""
    found = []
    for choice in items(event.get("choices")):
        delta = choice.get("delta") or choice.get("message")
        delta = delta if isinstance(delta, dict) else {}
        text = choice.get("text") if isinstance(choice.get("text"), str) else delta.get("content")
        index, ended = choice.get("index", 0), choice.get("finish_reason")
        calls = tuple(
            (_whole(call.get("index")) or 0, _text(of.get("name")), _text(of.get("arguments")))
            for call in items(delta.get("tool_calls"))
            if isinstance(of := call.get("function"), dict)
        )
        found.append(
            Piece(
                index=index if isinstance(index, int) else 0,
                text=_text(text),
                finish=_FINISH.get(ended, "stop") if isinstance(ended, str) else None,
                logprobs=logprobs(choice.get("logprobs")),
                calls=calls,
            )
        )
    return found


def spent(event: dict[str, Any]) -> Spent | None:
    """The usage that an event carries."""
    usage = event.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Spent(_whole(usage.get("prompt_tokens")) or 0, _whole(usage.get("completion_tokens")) or 0,
                 _whole(cached) or 0)  # fmt: skip


def logprobs(value: Any) -> tuple[TokenLogprob, ...]:
    """Log-probabilities in either shape: a list per field (completions), or a list of tokens (chat)."""
    if not isinstance(value, dict):
        return ()
    if isinstance(value.get("content"), list):
        return tuple(_chat_logprob(entry) for entry in items(value["content"]))
    tokens, numbers, tops = (
        found if isinstance(found := value.get(name), list) else []
        for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    found = []
    for place, (token, number) in enumerate(zip(tokens, numbers, strict=False)):
        top = tops[place] if place < len(tops) and isinstance(tops[place], dict) else {}
        best = sorted(((name, float(one)) for name, one in top.items() if _is_number(one)), key=lambda pair: -pair[1])
        found.append(
            TokenLogprob(
                _UNKNOWN,
                _text(token),
                float(number) if _is_number(number) else None,
                _text(token).encode(),
                tuple((_UNKNOWN, _text(name), one) for name, one in best),
            )
        )
    return tuple(found)


def _chat_logprob(entry: dict[str, Any]) -> TokenLogprob:
    text, number, raw = _text(entry.get("token")), entry.get("logprob"), entry.get("bytes")
    data = bytes(raw) if isinstance(raw, list) and all(isinstance(one, int) and 0 <= one < 256 for one in raw) else None
    top = tuple(
        (_UNKNOWN, _text(one.get("token")), float(one["logprob"]))
        for one in items(entry.get("top_logprobs"))
        if _is_number(one.get("logprob"))
    )
    return TokenLogprob(_UNKNOWN, text, float(number) if _is_number(number) else None,
                        text.encode() if data is None else data, top)  # fmt: skip


def offsets(answer: dict[str, Any]) -> list[int]:
    """Where each token of the first choice begins, in characters; empty where the server does not say."""
    for choice in items(answer.get("choices")):
        found = choice.get("logprobs")
        if isinstance(found, dict) and isinstance(found.get("text_offset"), list):
            return [one for one in found["text_offset"] if isinstance(one, int)]
    return []


def vectors(answer: dict[str, Any], rows: int) -> list[list[float]]:
    """The vectors of an embeddings answer, in the order of the texts.

    Raises:
        DataError: it does not hold one vector per text, all of one length.
    """
    found: dict[int, list[float]] = {}
    for place, entry in enumerate(items(answer.get("data"))):
        vector, index = entry.get("embedding"), entry.get("index", place)
        if isinstance(vector, str):
            vector = _unpacked(vector)
        if isinstance(vector, list) and all(map(_is_number, vector)) and isinstance(index, int):
            found[index] = [float(one) for one in vector]
    ordered = [found[index] for index in range(rows) if found.get(index)]
    if len(ordered) != rows or len({len(row) for row in ordered}) != 1:
        raise DataError(f"the remote server gave {len(found)} usable vectors for {rows} texts", code="E_REMOTE")
    return ordered


def _unpacked(text: str) -> list[float]:
    """Floats in base64; nothing where it is none."""
    try:
        data = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (ValueError, struct.error):
        return []


def relevances(answer: dict[str, Any], rows: int) -> list[float]:
    """The scores of a rerank answer, in the order of the texts.

    Raises:
        DataError: a text has none.
    """
    found = {}
    for entry in items(answer.get("results") or answer.get("data")):
        index, score = entry.get("index"), entry.get("relevance_score", entry.get("score"))
        if isinstance(index, int) and _is_number(score):
            found[index] = float(score)
    if any(index not in found for index in range(rows)):
        raise DataError(f"the remote server scored {len(found)} of {rows} texts", code="E_REMOTE")
    return [found[index] for index in range(rows)]


def models(answer: dict[str, Any]) -> dict[str, int | None]:
    """The models of a server and the tokens of context each has, where it says so."""
    found: dict[str, int | None] = {}
    for entry in items(answer.get("data") or answer.get("models")):
        name = entry.get("id") or entry.get("name")
        meta = entry.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        context = _whole(entry.get("max_model_len")) or _whole(meta.get("n_ctx")) or _whole(meta.get("n_ctx_train"))
        if isinstance(name, str):
            found[name] = context
    return found


def refusal(status: int, body: bytes | str, server: str) -> LatheError:
    """The error of a status; the server's own words are part of it."""
    said = _said(body)
    text = f"{server} answered {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        return PolicyError(text, hint="check the key of this alias (`lathe models alias`)", code="E_REMOTE_KEY")
    if status == 404:
        return MissingError(
            text,
            hint="check the alias: its URL, which mostly ends in /v1, and the name of the model",
            code="E_REMOTE_MISSING",
        )
    if status == 429:
        return BusyError(text, hint="try again later", code="E_REMOTE_BUSY")
    if status in (408, 502, 503, 504):
        return UnavailableError(text, hint="the remote server is overloaded or starting", code="E_REMOTE_UNAVAILABLE")
    if 400 <= status < 500:
        code = "E_CONTEXT_OVERFLOW" if "context" in said.lower() and "token" in said.lower() else "E_REMOTE_REFUSED"
        return UsageError(text, code=code)
    if status >= 500:
        return UnavailableError(text, hint="the fault is the remote server's", code="E_REMOTE")
    return InternalError(text, code="E_REMOTE")


def event_error(event: dict[str, Any], server: str) -> LatheError | None:
    """The error that an event of a stream carries, if it carries one."""
    error = event.get("error")
    if error is None:
        return None
    status = _whole(error.get("code")) if isinstance(error, dict) else None
    return refusal(status if status and 400 <= status < 600 else 500, json.dumps(event), server)


def _said(body: bytes | str) -> str:
    """The words of an error, in the shapes that servers use."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        return " ".join(text.split())[:_SHOWN_CHARS] if not text.lstrip().startswith("<") else ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return " ".join(str(error).split())[:_SHOWN_CHARS]


def items(value: Any) -> Sequence[dict[str, Any]]:
    """The objects of a list; nothing where it is none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A text, without the halves of characters that JSON can name and nothing can send on."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
