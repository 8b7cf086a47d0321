"""Duplicates and the exploration report: exact, near, bounded, and a value that fits screen and JSON."""

from __future__ import annotations

import random

import msgspec
import pytest
from lathe.engine.rag.ingest.duplicates import Duplicates
from lathe.engine.rag.ingest.quality import Exploration, measure_lengths
from lathe.engine.rag.ingest.report import QualityReport
from lathe.store.rag.values import FileError, StoredDocument, StoredPassage

pytest.importorskip("rensa")
RANDOM = random.Random(7)
WORDS = [f"word{number}" for number in range(2_000)]


def text(length: int = 120) -> str:
    return " ".join(RANDOM.choices(WORDS, k=length))


def changed(original: str, count: int) -> str:
    words = original.split()
    for place in range(0, len(words), len(words) // count):
        words[place] = "other"
    return " ".join(words)


def test_exact_and_near_duplicates() -> None:
    found = Duplicates(threshold=0.8)
    originals = [text() for _ in range(300)]
    assert [found.check(key, original) for key, original in enumerate(originals)] == [None] * 300
    exact = found.check(1000, originals[17].upper().replace(" ", "\n"))
    assert exact is not None
    assert (exact.of, exact.kind, exact.similarity) == (17, "exact", 1.0)
    near = found.check(1001, changed(originals[42], 2))
    assert near is not None
    assert (near.of, near.kind) == (42, "near")
    assert 0.8 <= near.similarity < 1.0
    assert found.check(1002, changed(originals[43], 40)) is None


def test_recall_of_near_duplicates() -> None:
    found = Duplicates(threshold=0.8)
    originals = [text() for _ in range(200)]
    for key, original in enumerate(originals):
        found.check(key, original)
    hits = [found.check(1000 + key, changed(original, 3)) for key, original in enumerate(originals)]
    assert sum(hit is not None and hit.of == key for key, hit in enumerate(hits)) >= 190  # similarity about 0.86


def test_short_passages_are_compared_exactly_only() -> None:
    found = Duplicates()
    assert found.check(1, "Chapter 1") is None
    assert found.check(2, "Chapter 2") is None
    assert found.check(3, "chapter 1!") is not None
    assert found.compared == 0


def test_near_duplicates_are_found_in_a_window() -> None:
    found = Duplicates(window=50)
    first = text()
    found.check(0, first)
    for key in range(1, 45):
        found.check(key, text())
    assert found.check(500, changed(first, 1)) is not None
    for key in range(1000, 1110):
        found.check(key, text())
    assert found.check(5000, changed(first, 2)) is None  # two windows ago
    assert found.check(5001, first) is not None  # exact ones never leave


def test_text_without_spaces() -> None:
    found = Duplicates(threshold=0.8)
    chinese = "".join(chr(RANDOM.randint(0x4E00, 0x9FA5)) for _ in range(200))
    assert found.check(0, chinese) is None
    near = found.check(1, chinese[:100] + "改" + chinese[101:])
    assert near is not None
    assert near.kind == "near"


def passage(number: int, path: str, ordinal: int, body: str, **flags: int) -> StoredPassage:
    return StoredPassage(
        id=number, document=1, path=path, ordinal=ordinal, text=body, heading="", heading_path=(), start=0,
        end=len(body), page=None, kind="paragraph", tokens=len(body.split()), flags=flags,
    )  # fmt: skip


def document(path: str, **more: object) -> StoredDocument:
    fields: dict[str, object] = {
        "id": 1, "path": path, "source": "/", "sha256": "", "size": 1, "mtime_ns": 1, "media_type": "text/plain",
        "title": "", "language": None, "partition": "", "parser": "", "metadata": {}, "flags": {}, "passages": 1,
        "chars": 1, "version": 1,
    }  # fmt: skip
    return StoredDocument(**{**fields, **more})  # type: ignore[arg-type]


def test_the_report() -> None:
    exploration = Exploration()
    shared = text()
    exploration.document(document("/a.md", language="en", metadata={"charset": "utf-8"}))
    exploration.document(document("/b.md", flags={"email": 2}, metadata={"incomplete": "page 3: broken"}))
    exploration.document(document("/empty.md"))
    exploration.passages([
        passage(11, "/a.md", 0, text()), passage(12, "/a.md", 1, shared),
        passage(15, "/b.md", 0, text(), email=2), passage(16, "/b.md", 1, shared),
    ])  # fmt: skip
    exploration.problem(FileError(path="/c.pdf", code="E_ENCRYPTED", message="a password"))
    exploration.problem(FileError(path="/d.png", code="E_NOT_A_DOCUMENT", message="an image", skipped=True))
    report = exploration.report()
    assert (report.documents, report.passages, report.tokens) == (3, 4, 480)
    assert report.languages == {"unknown": 2, "en": 1}
    assert report.encodings == {"utf-8": 1}
    assert report.flags == {"email": 2}
    assert report.flagged_passages == {"email": 1}
    assert report.problems == {"E_ENCRYPTED": 1}
    assert report.skipped_files == 1
    assert report.incomplete_documents == 1
    (sample,) = report.duplicate_samples
    assert (sample.path, sample.ordinal, sample.of_path, sample.of_ordinal) == ("/b.md", 1, "/a.md", 1)
    assert [(copy.passage, copy.of, copy.kind) for copy in exploration.copies] == [(16, 12, "exact")]
    assert msgspec.json.decode(msgspec.json.encode(report), type=QualityReport) == report


def test_lengths() -> None:
    lengths = measure_lengths([100] * 50 + [120] * 50 + [2, 3000])
    assert (lengths.least, lengths.p50, lengths.most) == (2, 100, 3000)
    assert (lengths.short_outliers, lengths.long_outliers) == (1, 1)
    assert sum(bar.count for bar in lengths.histogram) == 102
    assert all(bar.high is None or bar.low < bar.high for bar in lengths.histogram)
    assert measure_lengths([]).p50 is None


@pytest.mark.parametrize(("count", "middle", "high"), [(1, 1, 1), (2, 1, 2), (19, 10, 19), (20, 10, 19), (100, 50, 95)])
def test_quantiles_are_of_the_nearest_rank(count: int, middle: int, high: int) -> None:
    lengths = measure_lengths(list(range(count, 0, -1)))
    assert (lengths.p50, lengths.p95) == (middle, high)
