"""The exploration of a corpus: what it is made of and what is wrong with it, gathered passage by passage.

Invariant: gathering costs a few bytes per passage and keeps no text but short samples; `report()` can be asked for at
any time, also in the middle of a run.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from lathe.engine.rag.ingest.duplicates import Duplicate, Duplicates
from lathe.engine.rag.ingest.report import Bar, DuplicateSample, FlaggedSample, Lengths, QualityReport
from lathe.engine.rag.metrics import quantile
from lathe.store.rag.values import Copy, FileError, StoredDocument, StoredPassage

SAMPLES = 20
SAMPLE_CHARS = 160
_FENCE = 3.0
"""Interquartile ranges beyond the quartiles, on a logarithmic scale, from where a length is an outlier."""
_BARS = (0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
"""Lower ends of the histogram's bars, in tokens."""


class Exploration:
    """Gathers the report of one corpus; passages come by id."""

    def __init__(self, threshold: float = 0.85) -> None:
        self._duplicates = Duplicates(threshold)
        self._paths: list[str] = []
        self._starts = array("Q")  # id of the first passage of each path
        self._ordinals = array("I")  # and its ordinal
        self._lengths = array("I")
        self._count: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._flagged: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._duplicate_samples: list[DuplicateSample] = []
        self._flagged_samples: list[FlaggedSample] = []
        self.copies: list[Copy] = []
        """Every passage that repeats an earlier one."""

    def problem(self, error: FileError) -> None:
        """Take in a file that gave no text."""
        if error.skipped:
            self._count["skipped"] += 1
        else:
            self._problems[error.code] += 1

    def document(self, document: StoredDocument) -> None:
        """Take in a document."""
        self._count["documents"] += 1
        self._count["characters"] += document.chars
        self._count["incomplete"] += "incomplete" in document.metadata
        self._formats[document.media_type] += 1
        self._languages[document.language or "unknown"] += 1
        if encoding := document.metadata.get("charset"):
            self._encodings[encoding] += 1
        self._flags.update(document.flags)

    def passages(self, passages: Iterable[StoredPassage]) -> None:
        """Take in passages, those of a document one after another."""
        for passage in passages:
            self._passage(passage)

    def _passage(self, passage: StoredPassage) -> None:
        if not self._paths or self._paths[-1] != passage.path:
            self._paths.append(passage.path)
            self._starts.append(passage.id)
            self._ordinals.append(passage.ordinal)
        self._lengths.append(passage.tokens)
        for kind in passage.flags:
            self._flagged[kind] += 1
            if self._flagged[kind] <= 3 and len(self._flagged_samples) < 3 * SAMPLES:
                sample = FlaggedSample(passage.path, passage.ordinal, kind, passage.text[:SAMPLE_CHARS])
                self._flagged_samples.append(sample)
        found = self._duplicates.check(passage.id, passage.text)
        if found is not None:
            self._count[found.kind] += 1
            copy = Copy(passage=passage.id, of=found.of, kind=found.kind, similarity=found.similarity)
            self.copies.append(copy)
            self._sample(passage, found)

    def _sample(self, passage: StoredPassage, found: Duplicate) -> None:
        if len(self._duplicate_samples) >= SAMPLES:
            return
        place = self._document_of(found.of)
        ordinal = found.of - self._starts[place] + self._ordinals[place]
        self._duplicate_samples.append(
            DuplicateSample(
                passage.path, passage.ordinal, self._paths[place], ordinal, found.kind, round(found.similarity, 3),
                passage.text[:SAMPLE_CHARS],
            )
        )  # fmt: skip

    def _document_of(self, passage: int) -> int:
        """Which document an id belongs to; ids grow with documents."""
        low, high = 0, len(self._starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts[middle] <= passage else (low, middle)
        return low

    def report(self) -> QualityReport:
        """The report so far."""
        return QualityReport(
            documents=self._count["documents"],
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
            near_duplicates=self._count["near"] if self._duplicates.near else None,
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
    low, high = math.log2(1 + quantile(ordered, 0.25)), math.log2(1 + quantile(ordered, 0.75))
    spread = _FENCE * max(high - low, 0.25)  # a corpus of records of one length has no outliers at plus one token
    return Lengths(
        histogram=tuple(Bar(start, end, counts[place]) for place, (start, end) in enumerate(edges)),
        least=ordered[0],
        p50=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        most=ordered[-1],
        short_outliers=sum(1 for length in ordered if math.log2(1 + length) < low - spread),
        long_outliers=sum(1 for length in ordered if math.log2(1 + length) > high + spread),
    )


def _bar(length: int) -> int:
    return sum(1 for low in _BARS[1:] if length >= low)
