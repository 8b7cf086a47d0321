"""Duplicates and the exploration report: exact, near, bounded, and a value that fits screen and JSON."""

from __future__ import annotations

import random

import msgspec
import pytest
from lathe.engine.errors import Failure
from lathe.engine.rag.ingest.duplicates import Duplicates
from lathe.engine.rag.ingest.quality import Exploration, QualityReport, measure_lengths
from lathe.engine.rag.ingest.values import FileProblem
from lathe.engine.rag.values import Block, ParsedDocument, Passage

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


def passage(ordinal: int, body: str, **flags: int) -> Passage:
    return Passage(ordinal=ordinal, text=body, start=0, end=len(body), tokens=len(body.split()), flags=flags)


def document(path: str, *bodies: str, **more: object) -> ParsedDocument:
    joined = "\n\n".join(bodies)
    return ParsedDocument(
        path=path,
        media_type="text/plain",
        text=joined,
        blocks=(Block(0, len(joined)),),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("policy", "kept"), [("keep", 3), ("drop-exact", 2), ("drop-near", 1)])
def test_the_policy_decides_what_stays(policy: str, kept: int) -> None:
    original = text()
    exploration = Exploration(policy)  # type: ignore[arg-type]
    bodies = (original, original, changed(original, 1))
    passages = [passage(place, body) for place, body in enumerate(bodies)]
    assert len(exploration.document(document("/a", *bodies), passages)) == kept
    report = exploration.report()
    assert (report.exact_duplicates, report.near_duplicates, report.dropped) == (1, 1, 3 - kept)


def test_the_report() -> None:
    exploration = Exploration()
    shared = text()
    exploration.document(
        document("/a.md", "x", language="en", encoding="utf-8"), [passage(0, text()), passage(1, shared)]
    )
    exploration.document(
        document("/b.md", "y", flags={"email": 2}, skipped=("page 3: broken",)),
        [passage(0, text(), email=2), passage(1, shared)],
    )
    exploration.document(document("/empty.md", "z"), [])
    exploration.problem(FileProblem(path="/c.pdf", failure=Failure("E_ENCRYPTED", "a password")))
    exploration.problem(FileProblem(path="/d.png", failure=Failure("E_NOT_A_DOCUMENT", "an image"), kind="skipped"))
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
    assert msgspec.json.decode(msgspec.json.encode(report), type=QualityReport) == report


def test_lengths() -> None:
    lengths = measure_lengths([100] * 50 + [120] * 50 + [2, 3000])
    assert (lengths.least, lengths.p50, lengths.most) == (2, 120, 3000)
    assert (lengths.short_outliers, lengths.long_outliers) == (1, 1)
    assert sum(bar.count for bar in lengths.histogram) == 102
    assert all(bar.high is None or bar.low < bar.high for bar in lengths.histogram)
    assert measure_lengths([]).p50 is None
