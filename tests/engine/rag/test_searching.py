"""Search: both sources, their fusion, filters, novelty, and what happens when one source cannot answer."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.rag.fusion import marginal_relevance, reciprocal_rank
from lathe.engine.rag.metrics import evaluate, ndcg, recall
from lathe.engine.rag.metrics import reciprocal_rank as mrr
from lathe.engine.rag.requests import SearchRequest
from lathe.engine.rag.searching import Searcher
from lathe.engine.rag.strength import background, covered, stands_out
from lathe.store.rag import columns, documents, index, knn, resident, versions, words
from lathe.store.rag.knn import Nearest, calibrate
from lathe.store.rag.values import Filter
from support.rag_embedder import IDENTITY, WordEmbedder
from support.rag_stores import make, vector

TEXTS = {
    "animals.md": ["cats sleep all day", "dogs bark at night", "cats hunt mice at night"],
    "models.md": ["weights are quantized to four bits", "the scheduler batches prompts"],
    "cooking.md": ["boil the pasta in salted water", "cats are never cooked"],
}


@pytest.fixture
async def searcher(tmp_path: Path):
    embedder = WordEmbedder()
    with make(tmp_path / "s.db", TEXTS, None) as store:
        store.write(lambda db: (columns.create(db, IDENTITY, 1.0), columns.activate(db, 1), None)[-1])
        rows = store.read(lambda db: columns.missing(db, 1, 0, 100))
        matrix = await embedder.embed([row.text for row in rows], "passage")
        store.write(lambda db: columns.put(db, 1, [(r.id, v.tobytes()) for r, v in zip(rows, matrix, strict=True)]))
        yield Searcher(store, embedder)


def ask(query: str, **fields) -> SearchRequest:
    return SearchRequest(store="s", query=query, **fields)


async def test_each_way_finds_and_explains(searcher: Searcher) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        result = await searcher.search(ask("quantized weights", k=2, mode=mode))
        assert result.hits[0].passage.text == "weights are quantized to four bits"
        assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
        assert set(result.hits[0].sources) == ({"dense", "bm25"} if mode == "hybrid" else {mode})
        assert result.timings["total"] >= 0


async def test_filters_hold_for_every_source(searcher: Searcher) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        result = await searcher.search(ask("cats", mode=mode, filter=Filter(paths=("cook*",))))
        assert {hit.passage.path for hit in result.hits} == {"cooking.md"}


async def test_novelty_moves_near_copies_down(searcher: Searcher) -> None:
    plain = await searcher.search(ask("cats at night", k=3, mode="dense"))
    varied = await searcher.search(ask("cats at night", k=3, mode="dense", mmr=0.2))
    assert plain.hits[0].passage.id == varied.hits[0].passage.id
    assert [h.passage.id for h in plain.hits] != [h.passage.id for h in varied.hits]


async def test_without_its_embedder_a_store_is_searched_by_words_and_says_so(searcher: Searcher) -> None:
    searcher.embedder = None
    result = await searcher.search(ask("cats"))
    assert result.mode == "bm25" and "words-32 is not here" in result.note and len(result.hits) == 3
    with pytest.raises(UnavailableError):
        await searcher.search(ask("cats", mode="dense"))
    searcher.embedder = WordEmbedder(msgspec.structs.replace(IDENTITY, sha256="99" * 32))
    assert "another embedder" in (await searcher.search(ask("cats"))).note


@pytest.mark.parametrize("fields", [{"k": 0}, {"k": 1001}, {"mmr": 2.0}])
async def test_parameters_outside_their_ranges_are_refused(searcher: Searcher, fields) -> None:
    with pytest.raises(UsageError):
        await searcher.search(ask("cats", **fields))


async def test_leaving_a_search_ends_its_reads(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, asked = threading.Event(), []

    def slow(query, k, condition, *, exact, cancelled):
        entered.set()
        while not cancelled():
            pass
        asked.append(cancelled())
        return []

    monkeypatch.setattr(searcher.nearest, "search", slow)
    task = asyncio.create_task(searcher.search(ask("cats", mode="dense")))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not asked:
        await asyncio.sleep(0.001)


async def test_what_is_not_there_is_told_from_what_is(searcher: Searcher) -> None:
    unrelated = await background(searcher.embedder)
    near, far = await searcher.embedder.embed(["cats sleep all day", "zyx wvu"], "query")
    assert stands_out(near, 0.99, unrelated) and not stands_out(far, float((unrelated @ far).mean()), unrelated)
    hit = (await searcher.search(ask("cats hunt", mode="bm25"))).hits[0].passage.id
    assert covered(searcher.store, "cats hunt", hit) == 1.0
    assert covered(searcher.store, "cats hunt submarines", hit) < 0.6
    assert covered(searcher.store, "???", hit) == 0.0


def test_letters_that_only_python_folds_are_covered(tmp_path: Path) -> None:
    with make(tmp_path / "s.db", {"a.md": ["Die Straße ist nass."]}, None) as store:
        [(passage, _)] = store.read(lambda db: words.search(db, "STRAẞE", 10))
        assert covered(store, "die Straße", passage) == 1.0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory):
    """3,000 clustered vectors of 64 dimensions, treated as a large column."""
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(30, 64))
    rows = centres[draw.integers(30, size=3000)] + 0.7 * draw.normal(size=(3000, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")
    texts = {f"{n}.md": [f"text {n}.{p}" for p in range(100)] for n in range(30)}
    identity = msgspec.structs.replace(IDENTITY, dimensions=64)
    with make(tmp_path_factory.mktemp("large") / "l.db", texts, None) as store:
        store.write(lambda db: (columns.create(db, identity, 1.0), columns.activate(db, 1), None)[-1])
        ids = [row.id for row in store.read(lambda db: columns.missing(db, 1, 0, 5000))]
        store.write(lambda db: columns.put(db, 1, [(i, v.tobytes()) for i, v in zip(ids, rows, strict=True)]))
        yield store, np.array(ids), rows


@pytest.fixture
def as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "EXACT_BYTES", 0)


def truth(ids: np.ndarray, rows: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return [int(i) for i in ids[np.argsort(-(rows @ query), kind="stable")[:k]]]


def test_cold_warm_exact_and_small_agree_with_brute_force(large, as_large, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ids, rows = large
    monkeypatch.setattr(knn, "DEFAULT_FACTOR", 200)
    nearest = Nearest(store)
    queries = rows[:20]
    cold = [[i for i, _ in nearest.search(query, 10)] for query in queries]
    nearest.warm()
    warm = [[i for i, _ in nearest.search(query, 10)] for query in queries]
    exact = [[i for i, _ in nearest.search(query, 10, exact=True)] for query in queries]
    assert cold == warm == exact == [truth(ids, rows, query, 10) for query in queries]
    monkeypatch.setattr(resident, "EXACT_BYTES", 1 << 30)
    assert [[i for i, _ in Nearest(store).search(query, 10)] for query in queries] == exact


def test_a_sqlite_vec_whose_chunks_are_unknown_is_asked_itself(
    large, as_large, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ids, rows = large
    monkeypatch.setattr(knn, "DEFAULT_FACTOR", 200)
    monkeypatch.setattr(index, "chunked", lambda db, number: False)
    asked = []
    monkeypatch.setattr(index, "nearest", lambda *a, nearest=index.nearest: asked.append(1) or nearest(*a))
    nearest = Nearest(store)
    for query in rows[:5]:
        assert [i for i, _ in nearest.search(query, 10)] == truth(ids, rows, query, 10)
    assert len(asked) == 5
    nearest.warm()
    assert [i for i, _ in nearest.search(rows[0], 10)] == truth(ids, rows, rows[0], 10)


@pytest.mark.parametrize("warm", [False, True])
def test_what_was_deleted_leaves_holes_that_are_never_found(
    tmp_path: Path, as_large, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    monkeypatch.setattr(knn, "DEFAULT_FACTOR", 500)
    texts = {f"{n}.md": [f"text {n}.{p}" for p in range(40)] for n in range(40)}
    with make(tmp_path / "s.db", texts) as store:
        for gone in range(0, 40, 3):
            store.write(lambda db, gone=gone: documents.remove(db, f"{gone}.md", versions.begin(db, 3.0)))
        kept = store.read(lambda db: [p for part in documents.every_passage(db) for p in part])
        stored = store.read(lambda db: columns.read(db, 1, [p.id for p in kept]))
        matrix = np.stack([np.frombuffer(stored[p.id], "<f4") for p in kept])
        nearest = Nearest(store)
        if warm:
            nearest.warm()
        for query in matrix[::200]:
            found = [i for i, _ in nearest.search(query, 10)]
            assert found == truth(np.array([p.id for p in kept]), matrix, query, 10)
        assert store.verify().sound


def test_filters_on_a_large_column(large, as_large, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ids, rows = large
    condition = Filter(paths=("1*.md",))
    inside = np.array([100 <= n < 200 or 1000 <= n < 2000 for n in range(3000)])
    expected = truth(ids[inside], rows[inside], rows[0], 10)
    for few in (4096, 1):
        monkeypatch.setattr(knn, "FEW", few)
        monkeypatch.setattr(knn, "DEFAULT_FACTOR", 110)
        nearest = Nearest(store)
        assert [i for i, _ in nearest.search(rows[0], 10, condition)] == expected
        nearest.warm()
        assert [i for i, _ in nearest.search(rows[0], 10, condition)] == expected
        assert [i for i, _ in nearest.search(rows[0], 10, condition, exact=True)] == expected


def test_calibration_says_what_the_prefilter_finds(large, as_large) -> None:
    store, ids, rows = large
    found = calibrate(store, queries=40)
    assert found is not None and found.recall >= knn.GOAL and found.factor in knn.FACTORS
    store.set_prefilter(found)
    nearest = Nearest(store)
    nearest.warm()
    hits = [len({i for i, _ in nearest.search(q, 10)} & set(truth(ids, rows, q, 10))) for q in rows[::100]]
    assert sum(hits) / (10 * len(hits)) >= 0.99


def test_small_columns_need_no_calibration(large) -> None:
    assert calibrate(large[0]) is None


def test_a_resident_column_follows_writes(tmp_path: Path) -> None:
    with make(tmp_path / "s.db", {"a": ["one", "two"]}) as store:
        nearest = Nearest(store)
        query = np.frombuffer(vector("three"), "<f4")
        assert len(nearest.search(query, 5)) == 2
        from support.rag_stores import cut, document, embed

        store.write(lambda db: documents.put(db, document("b"), cut(["three"]), versions.begin(db, 3.0)))
        embed(store)
        assert nearest.search(query, 1)[0][1] == pytest.approx(1.0)


def test_signatures_order_as_sqlite_vec_does(large) -> None:
    store, _, rows = large
    found = resident.Resident.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "EXACT_BYTES", 0)
        held = store.read(lambda db: found(db, columns.active(db)))
    for query in rows[:5]:
        bits = index.signatures(query).tobytes()
        theirs = store.read(lambda db, bits=bits: index.nearest(db, 1, bits, 50))
        ours = held.candidates(query, 50)
        packed = index.signatures(rows)
        distance = np.bitwise_count(packed ^ index.signatures(query)).sum(1)
        assert sorted(distance[np.array(theirs) - 1]) == sorted(distance[np.array(ours) - 1])


rankings = st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 20), unique=True, max_size=10), max_size=3)


@given(rankings)
def test_fusion_keeps_what_all_agree_on_first(found: dict[str, list[int]]) -> None:
    fused = reciprocal_rank(found, {})
    assert {item for item, _ in fused} == {item for ranking in found.values() for item in ranking}
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)
    firsts = {ranking[0] for ranking in found.values() if ranking}
    if found and len(firsts) == 1 and all(found.values()):
        assert fused[0][0] in firsts


def test_novelty_of_known_vectors() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert marginal_relevance([1.0, 0.99, 0.5], vectors, 3, 1.0) == [0, 1, 2]
    assert marginal_relevance([1.0, 0.99, 0.5], vectors, 2, 0.4) == [0, 2]
    assert marginal_relevance([], np.zeros((0, 2), np.float32), 3, 0.5) == []


def test_metrics_of_known_rankings() -> None:
    grades = {"a": 2, "b": 1, "c": 0}
    assert ndcg(["a", "b"], grades, 10) == 1.0
    assert ndcg(["x", "a"], grades, 10) == pytest.approx((2 / np.log2(3)) / (2 + 1 / np.log2(3)))
    assert recall(["x", "b", "b", "a"], grades, 2) == 0.5
    assert mrr(["x", "c", "a"], grades, 10) == pytest.approx(1 / 3)
    figures = evaluate({"q": ["a"]}, {"q": {"a": 1}, "missing": {"z": 1}, "empty": {"z": 0}})
    assert figures["recall@10"] == 0.5 and figures["queries"] == 2
    assert evaluate({}, {}) == {}


def test_a_query_that_is_a_document_is_not_its_own_answer() -> None:
    run, judgements = {"q1": ["q1", "d"]}, {"q1": {"d": 1}}
    assert evaluate(run, judgements)["ndcg@10"] == 1.0
    assert evaluate(run, judgements, ignore_identical_ids=False)["mrr@10"] == 0.5


def test_random_rankings_are_bounded() -> None:
    draw = random.Random(2)
    for _ in range(50):
        ranked = [draw.choice("abcdef") for _ in range(10)]
        grades = {name: draw.randrange(3) for name in "abcdefgh"}
        assert 0 <= ndcg(ranked, grades, 5) <= 1
