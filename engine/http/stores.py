"""`/v1/stores` and `/v1/stores/NAME/search`: what can be searched, and passages with where they stand.

Invariant: a store outside a key's allow-list, or whose own access list leaves the key out, looks exactly like one that
does not exist.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from lathe.engine.http.access import LOCAL
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.problems import Problem
from lathe.engine.http.wire import ModelName
from lathe.engine.rag.requests import Hit, SearchRequest
from lathe.engine.rag.stores import may_search
from lathe.store.rag.values import Filter, StoredPassage, StoreStats, is_store_name
from msgspec import Meta

MAX_HITS = 200
MAX_GLOB = 4096
_FRESH_S = 1.0
StoreName = Annotated[str, Meta(max_length=64)]
Question = Annotated[str, Meta(min_length=1, max_length=16_384)]


class StoreBody(msgspec.Struct):
    """One store."""

    id: str
    object: Literal["store"]
    created: int
    description: str
    documents: int
    passages: int
    embedder: str | None
    """None: it is searched by words alone."""
    dimensions: int | None
    version: int
    """Of its corpus."""


class StoreList(msgspec.Struct):
    """The stores a key may search."""

    object: Literal["list"]
    data: list[StoreBody]


class StoreFilter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which passages may be found; fields are joined by and, values within one by or."""

    paths: list[Annotated[str, Meta(max_length=MAX_GLOB)]] = []
    """Globs over the whole path."""
    media_types: list[str] = []
    languages: list[str] = []
    partitions: list[str] = []
    metadata: dict[str, str] = {}
    without_flags: list[str] = []
    """Findings that a passage must not have, such as `injection`."""


class StoreSearchBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/stores/NAME/search` takes."""

    query: Question
    k: Annotated[int, Meta(ge=1, le=MAX_HITS)] = 10
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    filter: StoreFilter | None = None
    mmr: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Trade between relevance (1) and novelty (0)."""
    reranker: ModelName | None = None


class SourceBody(msgspec.Struct):
    """What one way of searching thought of a passage."""

    rank: int
    score: float


class PassageBody(msgspec.Struct, omit_defaults=True):
    """A passage with where it stands."""

    id: int
    path: str
    start: int
    """Characters from the start of the document's text."""
    end: int
    text: str
    page: int | None = None
    heading: list[str] = []
    flags: dict[str, int] = {}


class HitBody(msgspec.Struct):
    """One passage found."""

    rank: int
    score: float
    passage: PassageBody
    sources: dict[str, SourceBody]


class SearchAnswer(msgspec.Struct):
    """Passages, best first."""

    object: Literal["list"]
    store: str
    mode: str
    note: str
    """Why less was done than asked for, where it was."""
    data: list[HitBody]
    timings: dict[str, float]
    """Seconds by phase."""


async def list_stores(call: Call) -> Reply:
    """GET /v1/stores."""
    return Json(StoreList("list", [_store(stats) for stats in await _stores(call) if _visible(call, stats)]))


async def show_store(call: Call) -> Reply:
    """GET /v1/stores/NAME."""
    return Json(_store(await find(call, call.argument)))


async def search(call: Call) -> Reply:
    """POST /v1/stores/NAME/search."""
    stats = await find(call, call.argument)
    body: StoreSearchBody = call.body
    reranker = await call.find(body.reranker) if body.reranker is not None else None
    request = SearchRequest(
        store=stats.settings.name, query=body.query, k=body.k, mode=body.mode, mmr=body.mmr,
        reranker=reranker.name if reranker else None, filter=as_filter(body.filter), principal=asker(call),
    )  # fmt: skip
    result = await call.service.workbench.search_store(request)
    hits = [_hit(hit) for hit in result.hits]
    return Json(SearchAnswer("list", request.store, result.mode, result.note, hits, result.timings))


async def find(call: Call, name: str) -> StoreStats:
    """The store a client means, within what its key may search.

    Raises:
        Problem: 404.
    """
    for stats in await _stores(call) if is_store_name(name) else ():
        if stats.settings.name == name and _visible(call, stats):
            return stats
    raise Problem(404, f"no store '{name[:100]}' can be searched here", param="store", code="store_not_found")


async def _stores(call: Call) -> list[StoreStats]:
    """Every store, looked at once a second at most: counting a large one's passages takes longer than searching it.

    The engine itself checks a store's access list at every search.
    """
    service = call.service
    now = time.monotonic()
    if now - service.stores[0] >= _FRESH_S:
        service.stores = (now, await service.workbench.stores())
    return service.stores[1]


def asker(call: Call) -> str:
    """Whose search it is, for the store's own access list; a server without keys acts for the user of this machine."""
    return "local" if call.principal is LOCAL else f"key:{call.principal.name}"


def as_filter(body: StoreFilter | None) -> Filter:
    """The engine's filter."""
    if body is None:
        return Filter()
    return Filter(
        paths=tuple(body.paths), media_types=tuple(body.media_types), languages=tuple(body.languages),
        partitions=tuple(body.partitions), metadata=body.metadata, without_flags=tuple(body.without_flags),
    )  # fmt: skip


def passage_body(passage: StoredPassage) -> PassageBody:
    """A passage as clients see it."""
    return PassageBody(
        passage.id, passage.path, passage.start, passage.end, passage.text, passage.page, list(passage.heading_path),
        passage.flags,
    )  # fmt: skip


def _visible(call: Call, stats: StoreStats) -> bool:
    allowed = call.principal.stores
    return (not allowed or stats.settings.name in allowed) and may_search(stats.settings, asker(call))


def _store(stats: StoreStats) -> StoreBody:
    embedder = stats.active.embedder if stats.active else None
    return StoreBody(
        stats.settings.name, "store", int(stats.settings.created_at), stats.settings.description, stats.documents,
        stats.passages, embedder.name if embedder else None, embedder.dimensions if embedder else None,
        stats.version.number if stats.version else 0,
    )  # fmt: skip


def _hit(hit: Hit) -> HitBody:
    sources = {name: SourceBody(source.rank, source.score) for name, source in hit.sources.items()}
    return HitBody(hit.rank, hit.score, passage_body(hit.passage), sources)
