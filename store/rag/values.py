"""What a RAG store says about itself and its rows, as values. Pure."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


def is_store_name(name: str) -> bool:
    """Tell whether a text can name a store: one plain file name, the same on every file system."""
    return _NAME.match(name) is not None and not name.endswith(".")


class EmbedderIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which model made the vectors, exactly: vectors of two identities are never compared."""

    name: str
    """As the user refers to it."""
    kind: Literal["gguf", "onnx", "sentence-transformers", "scripted"]
    sha256: str
    """Of the model's files."""
    dimensions: int
    max_tokens: int
    """Longest input, special tokens included; what is longer is cut by the model."""
    pooling: str = "model"
    normalized: bool = True
    query_prefix: str = ""
    passage_prefix: str = ""


class SplitterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How documents are cut; a store holds passages of one setting only."""

    tokens: int = 256
    """Budget of one passage by the embedder's tokenizer, heading and special tokens included."""
    overlap: int = 32
    """Tokens repeated from the end of the passage before, where a block had to be cut."""
    headings: bool = True
    """Title and heading path stand before the text that is embedded and searched."""
    whole: bool = False
    """One passage per document, cut by the model: how retrieval benchmarks are scored."""


DuplicatePolicy = Literal["keep", "drop-exact", "drop-near", "drop-similar"]
"""Which copies of a passage a search leaves out: none; those with the same words; those that share nearly all
shingles as well; and those with nearly the same vector. Each includes the ones before it."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to text between reading and splitting; another recipe means that every file is read again."""

    personal: Literal["keep", "mask", "drop"] = "keep"
    """E-mail addresses, phone, card and identity numbers, secrets: counted only, masked, or their block left out."""
    injection: Literal["keep", "drop"] = "keep"
    """Text that addresses a model instead of a reader."""


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a store was made for; stands in the file."""

    name: str
    description: str = ""
    created_at: float = 0.0
    lathe: str = ""
    """Release that made it."""
    splitter: SplitterSettings = SplitterSettings()
    sources: tuple[str, ...] = ()
    """Folders and files that a refresh reads again."""
    access: tuple[str, ...] = ()
    """Principals that may search it; empty: everyone who may use the engine."""
    recipe: Recipe = Recipe()
    duplicates: DuplicatePolicy = "drop-exact"
    reembed: Literal["auto", "manual"] = "auto"
    """What a build with another embedder does: embeds anew beside the old vectors and switches, or refuses."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One set of vectors in the store: all passages, by one embedder."""

    number: int
    embedder: EmbedderIdentity
    state: Literal["building", "active", "retired"]
    created_at: float
    vectors: int = 0


class StoredDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was read."""

    id: int
    path: str
    """The name it is cited by: relative to its source folder where there is one."""
    source: str
    """Absolute path or folder it was found in."""
    sha256: str
    """Of the file's bytes."""
    size: int
    mtime_ns: int
    media_type: str
    title: str
    language: str | None
    partition: str
    parser: str
    metadata: dict[str, str]
    flags: dict[str, int]
    passages: int
    chars: int
    version: int
    """Of the corpus, in which it came or last changed."""


class NewDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document to put into a store."""

    path: str
    source: str
    sha256: str
    size: int
    mtime_ns: int
    media_type: str
    title: str = ""
    language: str | None = None
    partition: str = ""
    parser: str = ""
    metadata: dict[str, str] = {}
    flags: dict[str, int] = {}
    chars: int = 0


class NewPassage(msgspec.Struct, frozen=True, kw_only=True):
    """A passage to put into a store, with its document."""

    ordinal: int
    text: str
    heading: str
    """Title and heading path in one line; embedded and searched with the text."""
    heading_path: tuple[str, ...]
    start: int
    end: int
    page: int | None
    kind: str
    tokens: int
    flags: dict[str, int] = {}


class StoredPassage(msgspec.Struct, frozen=True, kw_only=True):
    """A passage with where it stands."""

    id: int
    document: int
    path: str
    ordinal: int
    text: str
    heading: str
    heading_path: tuple[str, ...]
    start: int
    """Code points from the start of the document's text."""
    end: int
    page: int | None
    kind: str
    tokens: int
    flags: dict[str, int]


class FileError(msgspec.Struct, frozen=True, kw_only=True):
    """A file that could not be read, and why."""

    path: str
    code: str
    message: str
    hint: str = ""
    size: int = 0
    mtime_ns: int = 0
    version: int = 0
    skipped: bool = False
    """It is no document by its nature (an image, a pipe): nothing is missing without it."""


class CorpusVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What one build or addition did to the corpus."""

    number: int
    started_at: float
    finished_at: float | None = None
    """None: it was interrupted, and the next run goes on with it."""
    added: int = 0
    changed: int = 0
    removed: int = 0
    failed: int = 0
    documents: int = 0
    passages: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One document's fate in one version."""

    version: int
    path: str
    what: Literal["added", "changed", "removed", "failed"]
    before: str = ""
    """sha256 of the bytes before; empty for a new one."""
    after: str = ""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that says what another one says."""

    passage: int
    of: int
    """The one that came first."""
    kind: Literal["exact", "near", "similar"]
    similarity: float
    """1 for the same words; else the share of shingles in common, or the cosine."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A golden question: what the store should find."""

    id: str
    text: str
    relevant: tuple[Relevant, ...] = ()
    answer: str = ""
    state: Literal["draft", "confirmed"] = "confirmed"


class Relevant(msgspec.Struct, frozen=True):
    """What answers a golden question: a document, or a span of it, so that judgements survive another splitter."""

    path: str
    start: int | None = None
    end: int | None = None
    grade: int = 1


class Filter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which passages a search may return; fields are joined by and, values within one by or."""

    paths: tuple[str, ...] = ()
    """Globs: `*`, `?` and `[...]` over the whole path."""
    media_types: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    without_flags: tuple[str, ...] = ()
    """Kinds of finding that a passage must not have, such as `injection`."""

    @property
    def empty(self) -> bool:
        """Whether everything passes."""
        return self == Filter()


class Prefilter(msgspec.Struct, frozen=True, kw_only=True):
    """The binary prefilter's one knob, and what it costs on this store's own vectors."""

    factor: int
    """Candidates per result wanted."""
    recall: float
    """At 10, against the exact scan."""
    queries: int
    """How many of the store's own vectors it was measured with."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that `verify` found."""

    table: str
    row: str
    what: str


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """A store in figures."""

    settings: StoreSettings
    documents: int
    passages: int
    errors: int
    columns: tuple[Column, ...]
    version: CorpusVersion | None
    questions: int
    bytes: int
    prefilter: Prefilter | None = None
    index: str = ""
    """`ready`, `stale`, or why there is none."""

    @property
    def active(self) -> Column | None:
        """The column that answers."""
        return next((column for column in self.columns if column.state == "active"), None)
