"""`/v1/embeddings` and `/v1/rerank`: texts to vectors, and texts in order of relevance to a query.

Vectors arrive as little-endian float32; base64 answers pass those bytes on. `dimensions` keeps the first ones and
normalises again, which is right for models trained for it (Matryoshka) and is the caller's choice for others.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import Embeddings, EmbedRequest
from lathe.engine.http.asking import client_of, principal_of
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.problems import Problem
from lathe.engine.http.wire import ModelName, TokenId
from lathe.store.models import ModelEntry
from msgspec import Meta

MAX_TEXTS = 2048


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/embeddings` takes."""

    input: str | list[str | TokenId | list[TokenId]]
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    pooling: Literal["mean", "cls", "last"] | None = None
    """Instead of the one the model's file names."""
    normalize: bool | None = None
    user: str | None = None


class Vector(msgspec.Struct):
    """One text's vector."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"]


class EmbeddingUsage(msgspec.Struct):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: EmbeddingUsage


class Document(msgspec.Struct):
    """A document given as an object."""

    text: str


class RerankBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/rerank` takes; the shape that Jina and Cohere share."""

    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_TEXTS)]
    model: ModelName | None = None
    top_n: Annotated[int, Meta(ge=1, le=MAX_TEXTS)] | None = None
    return_documents: bool = False


class Ranked(msgspec.Struct, omit_defaults=True):
    """One document with its score."""

    index: int
    relevance_score: float
    document: Document | None = None


class RankedList(msgspec.Struct):
    """Documents, most relevant first."""

    id: str
    model: str
    object: Literal["list"]
    results: list[Ranked]
    usage: EmbeddingUsage


async def embeddings(call: Call) -> Reply:
    """POST /v1/embeddings."""
    body: EmbeddingBody = call.body
    entry = await call.find(body.model)
    texts = await _texts(call, entry, body.input)
    found = await embed(call, entry, texts, pooling=body.pooling or "model", normalize=body.normalize is not False)
    rows = cut(found, body.dimensions)
    form = _base64 if body.encoding_format == "base64" else _floats
    data = [Vector(index, form(row), "embedding") for index, row in enumerate(rows)]
    return Json(EmbeddingList("list", data, entry.name, EmbeddingUsage(found.prompt_tokens, found.prompt_tokens)))


async def rerank(call: Call) -> Reply:
    """POST /v1/rerank."""
    body: RerankBody = call.body
    entry = await call.find(body.model)
    texts = tuple(item if isinstance(item, str) else item.text for item in body.documents)
    found = await embed(call, entry, texts, pooling="rank", normalize=False, query=body.query)
    if found.dimensions != 1:
        raise Problem(400, f"model '{entry.name}' is no reranker: it gives vectors, not scores", code="not_supported")
    scores = [floats(row)[0] for row in cut(found, None)]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
    results = [
        Ranked(index, scores[index], Document(texts[index]) if body.return_documents else None) for index in order
    ]
    usage = EmbeddingUsage(found.prompt_tokens, found.prompt_tokens)
    return Json(RankedList(f"rerank-{call.id}", entry.name, "list", results, usage))


async def embed(
    call: Call,
    entry: ModelEntry,
    texts: tuple[str, ...],
    *,
    pooling: Literal["mean", "cls", "last", "rank", "model"] = "model",
    normalize: bool = True,
    query: str | None = None,
) -> Embeddings:
    """Run the model and count its tokens against the key."""
    request = EmbedRequest(
        model=entry.name, texts=texts, pooling=pooling, query=query, normalize=normalize,
        principal=principal_of(call), client=client_of(call),
    )  # fmt: skip
    found = await call.service.workbench.embed(request)
    call.prompt_tokens += found.prompt_tokens
    return found


def cut(found: Embeddings, dimensions: int | None) -> list[bytes]:
    """Return each row as little-endian float32 bytes, shortened and of length one again where asked."""
    width = found.dimensions * 4
    rows = [found.vectors[start : start + width] for start in range(0, found.rows * width, width)]
    if dimensions is None or dimensions == found.dimensions:
        return rows
    if dimensions > found.dimensions:
        message = f"dimensions: the model's vectors have {found.dimensions}, {dimensions} were asked for"
        raise Problem(400, message, param="dimensions", code="invalid_value")
    return [_shortened(row, dimensions) for row in rows]


def _shortened(row: bytes, dimensions: int) -> bytes:
    form = struct.Struct(f"<{dimensions}f")
    values = form.unpack_from(row)
    length = math.hypot(*values)
    return form.pack(*(value / length for value in values)) if length > 0 else form.pack(*values)


def floats(row: bytes) -> list[float]:
    """Return the numbers of one row."""
    return list(struct.unpack(f"<{len(row) // 4}f", row))


def _floats(row: bytes) -> list[float] | str:
    return floats(row)


def _base64(row: bytes) -> list[float] | str:
    return base64.b64encode(row).decode("ascii")


async def _texts(call: Call, entry: ModelEntry, given: Any) -> tuple[str, ...]:
    """Return the texts of an input; token ids become text again, which the model's tokenizer reads alike."""
    items = [given] if isinstance(given, str) else given
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    if not 0 < len(items) <= MAX_TEXTS:
        raise Problem(400, f"input: 1 to {MAX_TEXTS} texts are allowed", param="input", code="invalid_value")
    texts: list[str] = []
    for item in items:
        if isinstance(item, int):
            raise Problem(400, "input mixes token ids and texts", param="input", code="invalid_value")
        texts.append(item if isinstance(item, str) else await call.service.workbench.detokenize(entry.name, item))
    return tuple(texts)
