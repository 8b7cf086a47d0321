"""Tokens, templates and scores: `/tokenize`, `/detokenize`, `/apply-template`, `/tokenizer_info`, `/v1/score`.

Bodies and answers hold llama-server's names and vLLM's side by side, so that clients of either work; `/tokenizer_info`
is what lm-evaluation-harness asks for, to tokenize here instead of downloading a tokenizer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from lathe.engine.generation import ScoreRequest
from lathe.engine.http.asking import client_of, principal_of
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.messages_in import Messages, engine_messages
from lathe.engine.http.problems import Problem
from lathe.engine.http.quota import estimated
from lathe.engine.http.tools import MAX_TOOLS, Tool, toolbox
from lathe.engine.http.wire import ModelName, TemplateValues, TokenId
from msgspec import Meta

MAX_CONTINUATIONS = 1024
MAX_PIECES = 4096
"""Texts of single tokens per answer; each is a question to the worker."""


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/tokenize` takes: `content` (llama-server) or `prompt` (vLLM)."""

    model: ModelName | None = None
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    """Put the model's BOS in front; default false with `content`, true with `prompt`."""
    add_special_tokens: bool | None = None
    """vLLM's name of add_special."""
    parse_special: bool | None = None
    """Read special tokens in the text; default true with `content`, as in llama-server."""
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class TokenPiece(msgspec.Struct):
    """A token with its text."""

    id: int
    piece: str


class TokenList(msgspec.Struct, omit_defaults=True):
    """The tokens."""

    tokens: list[int | TokenPiece]
    count: int
    token_strs: list[str] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/detokenize` takes."""

    tokens: list[TokenId]
    model: ModelName | None = None


class DetokenizedText(msgspec.Struct):
    """The text, under llama-server's and vLLM's name."""

    content: str
    prompt: str


class TemplateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/apply-template` takes."""

    messages: Messages
    model: ModelName | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: TemplateValues | None = None


class TemplateResult(msgspec.Struct):
    """The prompt a conversation becomes."""

    prompt: str
    token_count: int
    template_sha256: str


class TokenizerInfo(msgspec.Struct):
    """What a client needs to know of the tokenizer."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


class ScoreBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/score` takes: a context, and continuations to compare."""

    context: str | list[TokenId]
    continuations: Annotated[list[str | list[TokenId]], Meta(min_length=1, max_length=MAX_CONTINUATIONS)]
    model: ModelName | None = None


class ScoreRow(msgspec.Struct):
    """One continuation's log-likelihood."""

    index: int
    logprob: float
    tokens: int
    greedy: bool
    token_logprobs: list[float]


class ScoreList(msgspec.Struct):
    """Scores, in the order of the continuations."""

    object: str
    model: str
    data: list[ScoreRow]


async def tokenize(call: Call) -> Reply:
    """POST /tokenize."""
    body: TokenizeBody = call.body
    if (body.content is None) == (body.prompt is None):
        raise Problem(400, "give content or prompt", param="content", code="missing_required_parameter")
    entry = await call.find(body.model)
    text = body.content if body.content is not None else body.prompt or ""
    asked = body.add_special if body.add_special is not None else body.add_special_tokens
    bos = asked if asked is not None else body.prompt is not None
    special = body.parse_special if body.parse_special is not None else body.content is not None
    ids = await call.service.workbench.tokenize(entry.name, text, special=special, bos=bos)
    strings = None
    if body.with_pieces or body.return_token_strs:
        if len(ids) > MAX_PIECES:
            raise Problem(400, f"pieces are given for at most {MAX_PIECES} tokens, these are {len(ids)}")
        strings = [await call.service.workbench.detokenize(entry.name, [token]) for token in ids]
    if body.with_pieces and strings is not None:
        pieces: list[int | TokenPiece] = [TokenPiece(token, string) for token, string in zip(ids, strings, strict=True)]
        return Json(TokenList(pieces, len(ids)))
    return Json(TokenList(list(ids), len(ids), strings))


async def detokenize(call: Call) -> Reply:
    """POST /detokenize."""
    body: DetokenizeBody = call.body
    entry = await call.find(body.model)
    text = await call.service.workbench.detokenize(entry.name, body.tokens)
    return Json(DetokenizedText(text, text))


async def apply_template(call: Call) -> Reply:
    """POST /apply-template."""
    body: TemplateBody = call.body
    entry = await call.find(body.model)
    tools = toolbox([tool.function for tool in body.tools or ()], "auto", named=False).template
    rendered = await call.service.workbench.render(
        entry.name, list(engine_messages(body.messages)), tools, body.chat_template_kwargs
    )
    return Json(TemplateResult(rendered.text, len(rendered.tokens), rendered.template_sha256))


async def tokenizer_info(call: Call) -> Reply:
    """GET /tokenizer_info."""
    entry = await call.find(call.query.get("model"))
    details = await call.service.workbench.model(entry.id)
    info = details.worker.info if details.worker is not None else None
    return Json(
        TokenizerInfo(
            tokenizer_class=details.card.tokenizer or "unknown",
            bos_token=info.bos_token if info is not None else None,
            eos_token=info.eos_token if info is not None else None,
            chat_template=details.card.chat_template or (info.chat_template if info is not None else None),
        )
    )


async def score(call: Call) -> Reply:
    """POST /v1/score."""
    body: ScoreBody = call.body
    entry = await call.find(body.model)
    request = ScoreRequest(
        model=entry.name,
        context=body.context if isinstance(body.context, str) else tuple(body.context),
        continuations=tuple(item if isinstance(item, str) else tuple(item) for item in body.continuations),
        principal=principal_of(call),
        client=client_of(call),
    )
    scores = await call.service.workbench.score(request)
    call.prompt_tokens += estimated(request.context) + sum(row.tokens for row in scores)
    rows = [
        ScoreRow(index, row.logprob, row.tokens, row.greedy, list(row.token_logprobs))
        for index, row in enumerate(scores)
    ]
    return Json(ScoreList("list", entry.name, rows))
