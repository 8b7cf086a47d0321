"""Test sets and golden questions through the search that users get; tokenizers and profiles of embedders."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from lathe.engine.errors import DataError, MissingError
from lathe.engine.generation import Delta
from lathe.engine.rag.beir import read_set
from lathe.engine.rag.drafting import draft
from lathe.engine.rag.evaluating import load_corpus, measure, measure_questions
from lathe.engine.rag.profiles import is_default, profile_of
from lathe.engine.rag.requests import SearchRequest, SearchResult
from lathe.engine.rag.searching import Searcher
from lathe.engine.rag.tokens import fit
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import Question, Relevant, SplitterSettings, StoreSettings
from support.rag_embedder import WordEmbedder, count
from support.rag_stores import make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    corpus = [("d1", "Cats", "cats sleep"), ("d2", "", "dogs bark"), ("d3", "Weights", "they are quantized")]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x, "metadata": {}}) + "\n" for i, t, x in corpus)
    )
    queries = {"q1": "sleep of cats", "q2": "quantized weights", "unjudged": "x"}
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td2\t0\n")
    return folder


def whole(path: Path) -> RagStore:
    return RagStore.create(path, StoreSettings(name="e", splitter=SplitterSettings(whole=True)))


async def test_a_set_is_loaded_once_and_measured(folder: Path, tmp_path: Path) -> None:
    test = read_set(folder)
    assert set(test.queries) == {"q1", "q2"}
    embedder = WordEmbedder()
    with whole(tmp_path / "e.db") as store:
        await load_corpus(store, folder, embedder)
        assert sorted(embedder.calls) == ["Cats cats sleep", "Weights they are quantized", "dogs bark"]
        again = WordEmbedder()
        await load_corpus(store, folder, again)
        assert again.calls == []
        for mode in ("bm25", "dense", "hybrid"):
            figures = (await measure(Searcher(store, embedder), test.queries, test.judgements, mode)).figures
            assert figures["ndcg@10"] == figures["mrr@10"] == figures["recall@100"] == 1.0
            assert figures["queries"] == 2


async def test_a_question_that_stands_in_the_corpus_is_passed_over(folder: Path, tmp_path: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "q1", "text": "sleep of cats"}) + "\n")
    test = read_set(folder)
    with whole(tmp_path / "e.db") as store:
        await load_corpus(store, folder, None)
        figures = (await measure(Searcher(store), test.queries, test.judgements, "bm25")).figures
    assert figures["mrr@10"] == 1.0


async def test_the_slowest_of_twenty_questions_is_beyond_the_95th_percentile() -> None:
    class Clocked:
        seconds = 0.0

        async def search(self, request: SearchRequest) -> SearchResult:
            self.seconds += 1.0
            return SearchResult(hits=(), mode=request.mode, timings={"total": self.seconds})

    asked = {str(number): "x" for number in range(20)}
    figures = (await measure(Clocked(), asked, {}, "bm25")).figures  # type: ignore[arg-type]
    assert (figures["p50_ms"], figures["p95_ms"]) == (10_500.0, 19_000.0)


async def test_golden_questions_are_judged_by_span(folder: Path, tmp_path: Path) -> None:
    with whole(tmp_path / "e.db") as store:
        await load_corpus(store, folder, None)
        asked = [
            Question(id="hit", text="cats", relevant=(Relevant("d1", 0, 4),)),
            Question(id="elsewhere", text="dogs", relevant=(Relevant("d2", 500, 600),)),
            Question(id="document", text="quantized", relevant=(Relevant("d3"),)),
        ]
        figures = (await measure_questions(Searcher(store), asked, "bm25")).figures
        assert figures["recall@10"] == pytest.approx(2 / 3)


class Author:
    """A model that writes the same whatever it is asked; keeps what it was asked."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def generate(self, request) -> AsyncGenerator[Delta, None]:
        self.asked.append(request.messages[-1].content)
        for character in self.answer:
            yield Delta(text=character)


async def test_questions_are_drafted_for_passages_that_say_something(tmp_path: Path) -> None:
    long = "the token of the gateway is reset in the portal " + "by whoever asks " * 8
    with make(tmp_path / "s.db", {"a.md": [long, "short"], "b.md": [long + "again"]}, None) as store:
        author = Author("Sure:\nWhere is the token reset?  I wonder.")
        drafts = [question async for question in draft(author, store, "m", 5)]  # type: ignore[arg-type]
        assert sorted(question.id for question in drafts) == ["draft-1", "draft-3"]
        assert {(q.text, q.state) for q in drafts} == {("Where is the token reset?", "draft")}
        assert {(q.relevant[0].path, q.relevant[0].start) for q in drafts} == {("a.md", 0), ("b.md", 0)}
        assert all('<passage number="1"' in asked for asked in author.asked)
        again = [question.id async for question in draft(author, store, "m", 5)]  # type: ignore[arg-type]
        assert again == [question.id for question in drafts]
        assert [q async for q in draft(Author("no question"), store, "m", 5)] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("qrels/test.tsv", None, MissingError),
        ("qrels/test.tsv", "q1\td1\tx\nq1 d1 1\n", DataError),
        ("qrels/test.tsv", "a\tb\tc\nlost\td1\t1\n", DataError),
        ("queries.jsonl", '{"_id": "q1"}\n', DataError),
    ],
)
def test_broken_sets_are_named(folder: Path, file: str, text: str | None, error: type[Exception]) -> None:
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(error):
        read_set(folder)


@pytest.mark.shared
async def test_bm25_on_scifact_is_within_a_hundredth_of_the_published_figure(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "retrieval" / "scifact"
    if not folder.is_dir():
        pytest.skip("SciFact is not there")
    test = read_set(folder)
    with whole(tmp_path / "s.db") as store:
        await load_corpus(store, folder, None)
        figures = (await measure(Searcher(store), test.queries, test.judgements, "bm25")).figures
    assert figures["queries"] == 300
    assert figures["ndcg@10"] == pytest.approx(0.679, abs=0.01)


def test_texts_are_cut_to_the_room_at_white_space_or_within_a_word_that_is_too_long() -> None:
    assert fit("one two three four", 2, count) == "one two"
    assert fit("one two", 5, count) == "one two"

    def letters(texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    assert fit("abcdef", 3, letters) == "abc"
    assert fit("ab cd", 1, letters) == "a"
    assert fit("漢" * 1000 + " x", 512, letters) == "漢" * 512
    assert fit("\n" + "漢" * 1000 + " x", 512, letters) == "\n" + "漢" * 511
    assert fit("ab cd", 0, letters) == ""


def test_profiles_of_known_families(tmp_path: Path) -> None:
    assert profile_of(("nomic-embed-text-v1.5.Q8_0",)).query_prefix == "search_query: "
    assert profile_of(("x", "MiniLM L6 H384 Uncased")).max_tokens == 256
    assert profile_of(("intfloat_e5-small-v2",)).passage_prefix == "passage: "
    assert profile_of(("unheard-of",)).query_prefix == ""
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "Q: ", "document": "D: "}}')
    own = profile_of(("nomic-embed",), tmp_path)
    assert (own.query_prefix, own.passage_prefix, own.max_tokens) == ("Q: ", "D: ", 128)
    assert is_default(("all-MiniLM-L6-v2-Q8_0",)) and not is_default(("all-MiniLM-L12-v2",))
