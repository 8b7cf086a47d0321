"""The splitter: exact spans, nothing lost, nothing over budget, structure kept."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lathe.engine.rag.splitting import Splitter
from lathe.engine.rag.values import ParsedDocument, Piece, assemble
from lathe.store.rag.values import SplitterSettings


def words(texts: Sequence[str]) -> list[int]:
    """A tokenizer of words and punctuation marks; long words cost one token per four characters."""
    return [sum(-(-len(w) // 4) for w in re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def joining(texts: Sequence[str]) -> list[int]:
    """A tokenizer whose count of a whole exceeds the sum of its parts."""
    return [count + text.count(" ") + text.count("\n") for text, count in zip(texts, words(texts), strict=True)]


def parsed(*pieces: Piece, title: str = "") -> ParsedDocument:
    text, blocks = assemble(pieces)
    return ParsedDocument(path="/d", media_type="text/plain", text=text, blocks=blocks, title=title)


def make(tokens: int = 32, overlap: int = 0, count=words, **fields: bool) -> Splitter:
    return Splitter(count, SplitterSettings(tokens=tokens, overlap=overlap, **fields), 512, 0)


kinds = st.sampled_from(["heading", "paragraph", "code", "list", "row"])
paths = st.sampled_from([(), ("A",), ("A", "B"), ("C",)])
prose = st.text(st.sampled_from("ab é中.!\n\t ́x́🙂"), max_size=200) | st.text(max_size=80)
documents = st.lists(st.builds(Piece, prose, kinds, st.none() | st.integers(1, 3), paths), max_size=12)


@settings(deadline=None, max_examples=150)
@example([Piece("a"), Piece("a"), Piece("a" * 25)], 8, 1, joining, "")
@given(documents, st.integers(8, 60), st.integers(0, 12), st.sampled_from([words, joining]), st.text(max_size=20))
def test_spans_are_exact_fit_and_cover(pieces, tokens: int, overlap: int, count, title: str) -> None:
    document = parsed(*pieces, title=title)
    passages = make(tokens, overlap, count).split(document)
    covered = set()
    for number, passage in enumerate(passages):
        assert passage.ordinal == number
        assert document.text[passage.start : passage.end] == passage.text
        assert passage.text.strip() == passage.text != ""
        assert passage.tokens == count([passage.text])[0] <= tokens
        covered.update(range(passage.start, passage.end))
    visible = {i for b in document.blocks for i in range(b.start, b.end) if not document.text[i].isspace()}
    assert visible <= covered
    assert [p.end for p in passages] == sorted(p.end for p in passages)


def test_sections_are_not_mixed_and_headings_lead() -> None:
    body = "one two three four five six seven eight nine ten"
    document = parsed(
        Piece("First", "heading", heading_path=("First",)), Piece(body, heading_path=("First",)),
        Piece("Second", "heading", heading_path=("Second",)), Piece(body, page=2, heading_path=("Second",)),
    )  # fmt: skip
    first, second = make(24, headings=False).split(document)
    assert first.text.startswith("First") and second.text.startswith("Second")
    assert first.heading_path == ("First",) and second.heading_path == ("Second",)


def test_small_sections_are_joined_under_their_common_heading() -> None:
    pieces = [Piece(f"tiny {n}", heading_path=("Options", str(n))) for n in range(4)]
    passages = make(64).split(parsed(*pieces))
    assert len(passages) == 1 and passages[0].heading_path == ("Options",)


def test_overlap_repeats_the_end_within_a_section_only() -> None:
    sentences = " ".join(f"Sentence number {n} ends here." for n in range(30))
    passages = make(40, 8).split(parsed(Piece(sentences)))
    assert len(passages) > 3
    for before, after in pairwise(passages):
        shared = sentences[after.start : before.end]
        assert shared and words([shared])[0] <= 8
        assert shared.startswith("Sentence")


def test_code_is_cut_between_lines() -> None:
    code = "\n".join(f"    value_{n} = compute({n})" for n in range(40))
    passages = make(40).split(parsed(Piece(code, "code")))
    assert len(passages) > 3
    assert all(passage.text.startswith("value_") and passage.text.endswith(")") for passage in passages)


def test_the_heading_takes_its_share_of_the_budget() -> None:
    splitter = make(30)
    document = parsed(Piece("word " * 100, heading_path=("One", "Two")), title="Title")
    heading = splitter.heading("Title", ("One", "Two"))
    assert heading == "Title › One › Two"
    cost = words([heading])[0]
    assert all(passage.tokens + cost <= 30 for passage in splitter.split(document))
    assert words([splitter.heading("long title " * 50, ())])[0] <= 10
    assert make(30, headings=False).heading("Title", ()) == ""


def test_a_document_can_stay_whole() -> None:
    [passage] = make(8, whole=True).split(parsed(Piece("a " * 50), Piece("b " * 50)))
    assert passage.tokens == 100
    assert make(8, whole=True).split(parsed()) == []


@pytest.mark.parametrize("line", ["x" * 3_000_000, "ab " * 1_000_000, "中" * 1_000_000])
def test_one_endless_line_is_cut_without_counting_it_whole(line: str) -> None:
    longest = 0

    def count(texts: Sequence[str]) -> list[int]:
        nonlocal longest
        longest = max(longest, *map(len, texts), 0)
        return [1 + len(text) // 4 for text in texts]

    began = time.process_time()
    passages = make(200, count=count).split(parsed(Piece(line)))
    assert sum(len(p.text) for p in passages) >= len(line.strip()) * 0.6
    assert longest <= 200 * 12
    assert time.process_time() - began < 60
