"""What can be asked of stores, and what comes back: the values of search and ask. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.generation import FinishReason, Message, Sampling, Timing, Usage
from lathe.engine.jobs.values import Job
from lathe.store.rag.values import (
    Change,
    CorpusVersion,
    FileError,
    Filter,
    StoredDocument,
    StoredPassage,
    StoreStats,
)

Mode = Literal["hybrid", "dense", "bm25"]


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question to a store."""

    store: str
    query: str
    k: int = 10
    mode: Mode = "hybrid"
    filter: Filter = Filter()
    mmr: float | None = None
    """Trade between relevance (1) and novelty (0); None: relevance alone."""
    reranker: str | None = None
    """A cross-encoder that orders the best of the pool again."""
    exact: bool = False
    """Score every vector, whatever it takes."""
    principal: str = "local"


class SourceScore(msgspec.Struct, frozen=True):
    """What one source thought of a passage."""

    rank: int
    score: float
    """Cosine, BM25, or the reranker's own."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One passage found."""

    rank: int
    score: float
    """Of the last stage that ordered it."""
    passage: StoredPassage
    sources: dict[str, SourceScore] = {}
    """`dense`, `bm25`, `rerank`: those that found it."""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what it took."""

    hits: tuple[Hit, ...]
    mode: Mode
    """As it was done, which may be less than what was asked for."""
    note: str = ""
    timings: dict[str, float] = {}
    """Seconds: `embed`, `dense`, `bm25`, `fuse`, `rerank`, `total`."""


class AskRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question for a model to answer from a store."""

    store: str
    question: str
    model: str
    history: tuple[Message, ...] = ()
    """Earlier turns of the conversation, given to the model between its instructions and the passages."""
    k: int = 6
    """Passages offered to the model, as far as they fit."""
    mode: Mode = "hybrid"
    filter: Filter = Filter()
    reranker: str | None = None
    mmr: float | None = None
    """Trade between relevance (1) and novelty (0); None: relevance alone."""
    max_tokens: int = 256
    sampling: Sampling = Sampling(temperature=0.0)
    support: bool = True
    quote: bool = False
    """Hold the model to sentences of the passages, word for word."""
    always: bool = False
    """Let the model answer even when what was found is weak."""
    principal: str = "local"


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """What `[n]` in an answer opens."""

    number: int
    passage: StoredPassage


class Retrieved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First: what was found, and which of it the model is given."""

    result: SearchResult
    given: tuple[Citation, ...]
    weak: bool = False
    """What was found does not stand out from chance."""


class Said(msgspec.Struct, frozen=True, tag=True):
    """A piece of the answer."""

    text: str


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The whole answer."""

    text: str
    cited: tuple[int, ...] = ()
    finish: FinishReason = "stop"
    in_documents: bool = True
    usage: Usage | None = None
    timing: Timing | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Last, where support was asked for: what each sentence rests on."""

    sentences: tuple[SentenceSupport, ...] = ()
    problem: str = ""
    """Why it could not be measured."""


class SentenceSupport(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of an answer and what it rests on."""

    text: str
    start: int
    end: int
    gain: float
    """Nats per token that the passages together add."""
    passages: tuple[float, ...]
    """Nats per token lost without each passage, in the order of the citations."""
    supported: bool


AskEvent = Retrieved | Said | Answered | Checked


class StoreDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One store with what stands in it."""

    stats: StoreStats
    documents: tuple[StoredDocument, ...] = ()
    """The first ones by path."""
    errors: tuple[FileError, ...] = ()
    versions: tuple[CorpusVersion, ...] = ()
    """Newest first."""
    changes: tuple[Change, ...] = ()
    """Of the newest version."""
    flags: dict[str, int] = {}
    """Kind of finding -> passages that have it."""


class PassageView(msgspec.Struct, frozen=True, kw_only=True):
    """A passage in its surroundings: what a citation opens."""

    passage: StoredPassage
    text: str
    """The passages around it put together."""
    start: int
    """Where the passage begins and ends in `text`."""
    end: int
    source: str
    """The file or folder it came from."""


class StoreDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What came between two versions of a corpus."""

    store: str
    before: int
    after: int
    changes: tuple[Change, ...] = ()
    """One per document, by path; what came and went in between is not in it."""


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One round of watching a store's folders."""

    added: tuple[str, ...] = ()
    """Whole paths, as they were noticed."""
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    job: Job
    """The build that followed, in its final state."""
