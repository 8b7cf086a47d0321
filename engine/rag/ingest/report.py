"""The exploration report as values: counts, lengths, languages, duplicates, findings. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec


class Bar(msgspec.Struct, frozen=True):
    """One bar of a histogram."""

    low: int
    high: int | None
    """Exclusive; None for the last, which is open."""
    count: int


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long passages are, in tokens of the embedder; None where there are none."""

    histogram: tuple[Bar, ...] = ()
    least: int | None = None
    p50: int | None = None
    p95: int | None = None
    most: int | None = None
    short_outliers: int = 0
    long_outliers: int = 0


class DuplicateSample(msgspec.Struct, frozen=True):
    """A passage that repeats another, for people to judge the threshold by."""

    path: str
    ordinal: int
    of_path: str
    of_ordinal: int
    kind: Literal["exact", "near", "similar"]
    similarity: float
    text: str


class FlaggedSample(msgspec.Struct, frozen=True):
    """The start of a passage with a finding."""

    path: str
    ordinal: int
    kind: str
    text: str


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a store is made of; the same value on screen and as JSON."""

    version: int = 0
    """Of the corpus, as it was explored."""
    made_at: float = 0.0
    seconds: float = 0.0
    documents: int = 0
    passages: int = 0
    characters: int = 0
    tokens: int = 0
    formats: dict[str, int] = {}
    """Media type -> documents."""
    languages: dict[str, int] = {}
    """ISO 639-1 -> documents; `unknown` where none could be told."""
    encodings: dict[str, int] = {}
    """Of text files -> documents."""
    flags: dict[str, int] = {}
    """Kind of finding -> how many, as counted by documents."""
    flagged_passages: dict[str, int] = {}
    """Kind of finding -> passages that have it."""
    problems: dict[str, int] = {}
    """Error code -> files without text."""
    skipped_files: int = 0
    """Files that are no documents."""
    incomplete_documents: int = 0
    """Documents of which some part could not be read."""
    lengths: Lengths = Lengths()
    exact_duplicates: int = 0
    near_duplicates: int | None = None
    """By MinHash over shingles; None: the library for it is not installed."""
    similar_duplicates: int | None = None
    """By the cosine of their vectors alone; None: there are none, or too many to compare all with all."""
    dropped: int = 0
    """Passages that the store's policy leaves out of answers."""
    compared: int = 0
    """Passages that were compared for nearness."""
    duplicate_samples: tuple[DuplicateSample, ...] = ()
    flagged_samples: tuple[FlaggedSample, ...] = ()
