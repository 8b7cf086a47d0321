"""The exploration report: what a corpus is made of and what is wrong with it, gathered while it is ingested.

Invariant: gathering costs a few bytes per passage and keeps no text but short samples; `report()` can be asked for at
any time, also in the middle of a run.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from itertools import pairwise
from typing import Literal

import msgspec
from lathe.engine.rag.ingest.duplicates import Duplicate, Duplicates
from lathe.engine.rag.ingest.values import FileProblem
from lathe.engine.rag.values import ParsedDocument, Passage

DuplicatePolicy = Literal["keep", "drop-exact", "drop-near"]
_SAMPLES = 20
_SAMPLE_CHARS = 160
_FENCE = 3.0
"""Interquartile ranges beyond the quartiles, on a logarithmic scale, from where a length is an outlier."""
_BARS = (0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
"""Lower ends of the histogram's bars, in tokens."""


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
    kind: Literal["exact", "near"]
    similarity: float
    text: str


class FlaggedSample(msgspec.Struct, frozen=True):
    """The start of a passage with a finding."""

    path: str
    ordinal: int
    kind: str
    text: str


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ingest saw; the same value on screen and as JSON."""

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
    near_duplicates: int = 0
    dropped: int = 0
    """Passages left out by the policy."""
    compared: int = 0
    """Passages that were compared for nearness."""
    duplicate_samples: tuple[DuplicateSample, ...] = ()
    flagged_samples: tuple[FlaggedSample, ...] = ()


class Exploration:
    """Gathers the report of one run."""

    def __init__(self, policy: DuplicatePolicy = "drop-exact", threshold: float = 0.85) -> None:
        self._policy = policy
        self._duplicates = Duplicates(threshold)
        self._paths: list[str] = []
        self._starts = array("Q")  # key of each document's first passage
        self._lengths = array("I")
        self._key = 0
        self._count: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._flagged: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._duplicate_samples: list[DuplicateSample] = []
        self._flagged_samples: list[FlaggedSample] = []

    def problem(self, problem: FileProblem) -> None:
        """Take in a file that gave no text."""
        if problem.kind == "skipped":
            self._count["skipped"] += 1
        else:
            self._problems[problem.failure.code] += 1

    def document(self, document: ParsedDocument, passages: list[Passage]) -> list[Passage]:
        """Take in a document and its passages; returns those that the policy keeps."""
        self._paths.append(document.path)
        self._starts.append(self._key)
        self._count["characters"] += len(document.text)
        self._count["incomplete"] += bool(document.skipped)
        self._formats[document.media_type] += 1
        self._languages[document.language or "unknown"] += 1
        if document.encoding:
            self._encodings[document.encoding] += 1
        self._flags.update(document.flags)
        kept = [passage for passage in passages if self._passage(document.path, passage)]
        self._key += 1  # a document without passages has a key of its own
        return kept

    def _passage(self, path: str, passage: Passage) -> bool:
        key = self._key
        self._key += 1
        self._lengths.append(passage.tokens)
        for kind in passage.flags:
            self._flagged[kind] += 1
            if self._flagged[kind] <= 3 and len(self._flagged_samples) < 3 * _SAMPLES:
                sample = FlaggedSample(path, passage.ordinal, kind, passage.text[:_SAMPLE_CHARS])
                self._flagged_samples.append(sample)
        found = self._duplicates.check(key, passage.text)
        if found is None:
            return True
        self._count[found.kind] += 1
        self._sample(path, passage, found)
        drop = self._policy == "drop-near" or (self._policy == "drop-exact" and found.kind == "exact")
        self._count["dropped"] += drop
        return not drop

    def _sample(self, path: str, passage: Passage, found: Duplicate) -> None:
        if len(self._duplicate_samples) >= _SAMPLES:
            return
        place = self._document_of(found.of)
        ordinal = found.of - self._starts[place]
        self._duplicate_samples.append(
            DuplicateSample(
                path, passage.ordinal, self._paths[place], ordinal, found.kind, round(found.similarity, 3),
                passage.text[:_SAMPLE_CHARS],
            )
        )  # fmt: skip

    def _document_of(self, key: int) -> int:
        """Which document a key belongs to; keys grow with documents."""
        low, high = 0, len(self._starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts[middle] <= key else (low, middle)
        return low

    def report(self) -> QualityReport:
        """The report so far."""
        return QualityReport(
            documents=len(self._paths),
            passages=len(self._lengths),
            characters=self._count["characters"],
            tokens=sum(self._lengths),
            formats=dict(self._formats.most_common()),
            languages=dict(self._languages.most_common()),
            encodings=dict(self._encodings.most_common()),
            flags=dict(self._flags.most_common()),
            flagged_passages=dict(self._flagged.most_common()),
            problems=dict(self._problems.most_common()),
            skipped_files=self._count["skipped"],
            incomplete_documents=self._count["incomplete"],
            lengths=measure_lengths(self._lengths),
            exact_duplicates=self._count["exact"],
            near_duplicates=self._count["near"],
            dropped=self._count["dropped"],
            compared=self._duplicates.compared,
            duplicate_samples=tuple(self._duplicate_samples),
            flagged_samples=tuple(self._flagged_samples),
        )


def measure_lengths(lengths: array[int] | list[int]) -> Lengths:
    """Histogram, quantiles and outliers of lengths."""
    if not lengths:
        return Lengths()
    ordered = sorted(lengths)
    edges = (*pairwise(_BARS), (_BARS[-1], None))
    counts = Counter(_bar(length) for length in ordered)
    low, high = math.log2(1 + _quantile(ordered, 0.25)), math.log2(1 + _quantile(ordered, 0.75))
    spread = _FENCE * max(high - low, 0.25)  # a corpus of records of one length has no outliers at plus one token
    return Lengths(
        histogram=tuple(Bar(start, end, counts[place]) for place, (start, end) in enumerate(edges)),
        least=ordered[0],
        p50=_quantile(ordered, 0.5),
        p95=_quantile(ordered, 0.95),
        most=ordered[-1],
        short_outliers=sum(1 for length in ordered if math.log2(1 + length) < low - spread),
        long_outliers=sum(1 for length in ordered if math.log2(1 + length) > high + spread),
    )


def _bar(length: int) -> int:
    return sum(1 for low in _BARS[1:] if length >= low)


def _quantile(ordered: list[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
