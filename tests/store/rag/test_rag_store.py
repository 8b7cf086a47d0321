"""A store file: documents, passages, vectors and indexes move together."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.store import driver
from lathe.store.database import Database
from lathe.store.errors import NotFound, StoreCorrupt, StoreError, StoreLocked
from lathe.store.rag import columns, documents, index, questions, versions, words
from lathe.store.rag.filters import allowed
from lathe.store.rag.resident import Resident
from lathe.store.rag.schema import RAG, m003_words
from lathe.store.rag.store import RagStore, remove_file
from lathe.store.rag.values import FileError, Filter, Question, Relevant, StoreSettings, is_store_name
from sqlite_utils import Database as Connection
from support.rag_stores import EMBEDDER, cut, document, embed, make, vector

TEXTS = {
    "a.md": ["the cat sat on the mat", "dogs chase cats in gardens"],
    "b.md": ["quantization of weights", "the scheduler batches prompts", "a cat again"],
}


@pytest.fixture
def store(tmp_path: Path):
    with make(tmp_path / "s.db", TEXTS) as made:
        yield made


def passage_texts(store: RagStore) -> dict[int, str]:
    return {p.id: p.text for batch in store.read(lambda db: list(documents.every_passage(db))) for p in batch}


def test_a_store_describes_itself(store: RagStore) -> None:
    stats = store.stats()
    assert (stats.documents, stats.passages, stats.errors) == (2, 5, 0)
    assert stats.active is not None and stats.active.embedder == EMBEDDER and stats.active.vectors == 5
    assert stats.version is not None and stats.version.added == 2 and stats.version.finished_at == 2.0
    assert stats.index == "ready"
    assert store.verify().sound


def test_words_are_found_by_stem_and_never_obeyed(store: RagStore) -> None:
    texts = passage_texts(store)
    found = store.read(lambda db: words.search(db, "CAT", 10))
    assert {texts[i] for i, _ in found} == {"the cat sat on the mat", "dogs chase cats in gardens", "a cat again"}
    assert all(score > 0 for _, score in found)
    for hostile in (
        '"',
        "NEAR(cat dog)",
        "heading:cat AND (",
        "cat*",
        "-cat",
        "text : {",
        "', 1); DROP TABLE",
        "\0cat",
    ):
        store.read(lambda db, query=hostile: words.search(db, query, 10))
    assert store.read(lambda db: words.search(db, '"" ()', 10)) == []


def found_by_itself(text: str) -> bool:
    db = Connection(driver.memory())
    m003_words(db)
    words.add(db, [(1, "", text)])
    found = all(words.search(db, term, 1) for term in words.terms(text))
    db.close()
    return found


@pytest.mark.parametrize(
    "text",
    ["Straße STRAẞE", "ŉ ΐ ΰ և", "ﬁn ﬀ ﬅ", "İSTANBUL Iğdır ı", "ΟΔΟΣ οδός ς", "ᏣᎳᎩ ꮳꮃꭹ", "Ქართული ქართული", "ǅ ʼn"],
)
def test_words_are_found_however_python_would_fold_them(text: str) -> None:
    assert found_by_itself(unicodedata.normalize("NFC", text))


@settings(deadline=None)
@given(st.lists(st.text(st.characters(categories=("L", "M", "N")), max_size=8), max_size=6))
def test_every_word_that_is_put_in_is_found_again(texts: list[str]) -> None:
    assert found_by_itself(unicodedata.normalize("NFC", " ".join(f"a{text}" for text in texts)))


def test_a_question_asks_for_each_word_once() -> None:
    assert words.terms("Cat, cat CAT dog") == ["Cat", "dog"]


def test_vectors_are_candidates_of_the_index_and_of_the_resident(store: RagStore) -> None:
    texts = passage_texts(store)
    target = next(i for i, text in texts.items() if text.startswith("quantization"))
    query = np.frombuffer(vector(texts[target]), "<f4")
    bits = index.signatures(query).tobytes()
    assert store.read(lambda db: index.nearest(db, 1, bits, 1)) == [target]
    column = store.read(columns.active)
    resident = store.read(lambda db: Resident.load(db, column))
    assert resident.exact and resident.nearest(query, 2)[0] == (target, pytest.approx(1.0))


def test_filters_bind_every_value(tmp_path: Path) -> None:
    with make(tmp_path / "f.db", {}) as store:

        def work(db) -> None:
            version = versions.begin(db, 1.0)
            author = {"author": "Ann'); --"}
            documents.put(db, document("x/a.md", metadata=author, language="en"), cut(["one"]), version)
            documents.put(db, document("y/b.pdf", media_type="application/pdf", partition="p"), cut(["two"]), version)

        store.write(work)

        def found(condition: Filter) -> set[str]:
            sql, values = allowed(condition)
            ids = store.read(lambda db: [row[0] for row in db.execute(sql, values).fetchall()])
            return {p.path for p in store.read(lambda db: documents.passages(db, ids)).values()}

        assert found(Filter(paths=("x/*",))) == {"x/a.md"}
        assert found(Filter(paths=("*.md", "*.pdf"))) == {"x/a.md", "y/b.pdf"}
        assert found(Filter(metadata={"author": "Ann'); --"})) == {"x/a.md"}
        assert found(Filter(partitions=("p",), languages=("en",))) == set()
        assert found(Filter(media_types=("application/pdf",), without_flags=("injection",))) == {"y/b.pdf"}
        many = tuple(f"other/{number}" for number in range(5000))
        assert found(Filter(paths=(*many, "x/*"), languages=(*many, "en"), without_flags=many)) == {"x/a.md"}
        assert found(Filter(metadata={"author": "Ann'); --"} | dict.fromkeys(many, "x"))) == set()


def test_a_changed_document_keeps_the_vectors_of_unchanged_passages(store: RagStore) -> None:
    def change(db) -> None:
        version = versions.begin(db, 3.0)
        documents.put(db, document("b.md", "new"), cut(["something new", *TEXTS["b.md"]]), version)
        versions.finish(db, version, 4.0)

    store.write(change)
    assert [row.text for row in store.read(lambda db: columns.missing(db, 1, 0, 10))] == ["something new"]
    assert embed(store) == 1
    assert store.verify().sound
    [newest, _] = store.read(versions.listing)
    assert (newest.added, newest.changed, newest.removed, newest.documents, newest.passages) == (0, 1, 0, 2, 6)
    [change_made] = store.read(lambda db: versions.changes(db, newest.number))
    assert change_made.path == "b.md" and change_made.before and change_made.before != change_made.after


def test_a_removed_document_leaves_nothing(store: RagStore) -> None:
    assert store.write(lambda db: documents.remove(db, "a.md", versions.begin(db, 3.0)))
    assert not store.write(lambda db: documents.remove(db, "never.md", versions.begin(db, 3.0)))
    assert len(store.read(lambda db: words.search(db, "cat", 10))) == 1
    stats = store.stats()
    assert stats.passages == 3 and stats.active is not None and stats.active.vectors == 3
    assert store.verify().sound


def test_a_file_that_turned_unreadable_is_an_error_row_until_it_is_read_again(store: RagStore) -> None:
    error = FileError(path="a.md", code="E_DATA", message="it is broken", version=1)
    store.write(lambda db: documents.fail(db, error))
    assert store.read(documents.failures) == [error]
    assert store.stats().documents == 1
    store.write(lambda db: documents.put(db, document("a.md"), cut(["mended"]), 1))
    assert store.read(documents.failures) == []


def test_another_embedder_gets_a_column_and_the_switch_is_one_step(store: RagStore) -> None:
    other = msgspec.structs.replace(EMBEDDER, name="other", sha256="cd" * 32, dimensions=12)
    number = store.write(lambda db: columns.create(db, other, 5.0))
    assert store.read(columns.active).number == 1
    embed(store)
    store.write(lambda db: columns.activate(db, number))
    states = {column.number: column.state for column in store.stats().columns}
    assert states == {1: "retired", number: "active"}
    assert store.read(lambda db: columns.of_embedder(db, msgspec.structs.replace(other, name="renamed"))).number == 2
    with pytest.raises(StoreError, match="answers"):
        store.write(lambda db: columns.drop(db, number))
    store.write(lambda db: columns.drop(db, 1))
    assert store.verify().sound


@pytest.mark.parametrize("broken", [b"", b"\0" * 60, np.full(16, np.nan, "<f4").tobytes()])
def test_a_vector_that_is_none_is_refused(tmp_path: Path, broken: bytes) -> None:
    with make(tmp_path / "v.db", {"a": ["text"]}, None) as store:
        store.write(lambda db: columns.create(db, EMBEDDER, 1.0))
        with pytest.raises(StoreError, match="finite"):
            store.write(lambda db: columns.put(db, 1, [(1, broken)]))
        assert store.stats().columns[0].vectors == 0


def test_the_index_can_be_made_again(store: RagStore) -> None:
    store.write(lambda db: db.execute("DELETE FROM index_1 WHERE passage = 2") and None)
    assert [problem.table for problem in store.verify().problems] == ["index_1"]
    assert store.rebuild_indexes() == 5
    assert store.verify().sound


def test_without_sqlite_vec_the_index_goes_stale_and_vectors_are_searched_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "s.db", TEXTS).close()
    with monkeypatch.context() as patch:
        patch.setattr(driver, "load_vectors", lambda connection: None)
        with RagStore.open(tmp_path / "s.db") as store:
            store.write(lambda db: documents.put(db, document("c.md"), cut(["a third"]), 1))
            embed(store)
            resident = store.read(lambda db: Resident.load(db, columns.active(db)))
            assert len(resident.ids) == 6
            assert store.stats().index == "sqlite-vec is not loaded"
    with RagStore.open(tmp_path / "s.db") as store:
        assert store.stats().index == "stale"
        assert store.verify().sound
        assert store.rebuild_indexes() == 6
        assert store.stats().index == "ready"


def test_two_writers_are_refused_and_readers_are_not(store: RagStore) -> None:
    with pytest.raises(StoreLocked):
        RagStore.open(store.path)
    with RagStore.open(store.path, read_only=True) as reader:
        assert reader.stats().passages == 5
        assert reader.verify().sound


def test_foreign_files_and_missing_ones_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        RagStore.open(tmp_path / "none.db")
    Database.open(tmp_path / "lathe.db").close()
    with pytest.raises(StoreCorrupt, match="another program"):
        RagStore.open(tmp_path / "lathe.db")
    (tmp_path / "text.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreCorrupt):
        RagStore.open(tmp_path / "text.db", read_only=True)


def test_a_long_read_is_ended_from_outside(store: RagStore) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    asked = iter([False, False, True])
    with pytest.raises(StoreError, match="interrupt"):
        store.read(lambda db: db.execute(endless).fetchone(), cancelled=lambda: next(asked, True))
    assert store.read(lambda db: db.execute("SELECT 1").fetchone()[0]) == 1


def test_golden_questions_live_in_the_store(store: RagStore) -> None:
    asked = Question(id="q1", text="where?", relevant=(Relevant("a.md", 0, 10, 2),), answer="on the mat")
    store.write(lambda db: questions.put(db, asked))
    store.write(lambda db: questions.put(db, Question(id="q2", text="?", state="draft")))
    assert store.read(questions.listing) == [asked]
    assert len(store.read(lambda db: questions.listing(db, drafts=True))) == 2
    store.write(lambda db: questions.remove(db, "q1"))
    with pytest.raises(NotFound):
        store.write(lambda db: questions.remove(db, "q1"))


def test_the_text_around_a_passage_comes_back_from_spans(store: RagStore) -> None:
    owner = store.read(lambda db: documents.by_path(db, "b.md"))
    around = store.read(lambda db: documents.passages_of(db, owner.id, 1, 2))
    start, text = documents.text_around(around)
    assert text == "the scheduler batches prompts  a cat again"
    for passage in around:
        assert text[passage.start - start : passage.end - start] == passage.text


def test_a_half_made_store_says_so(tmp_path: Path) -> None:
    RagStore.create(tmp_path / "h.db", StoreSettings(name="h")).close()
    with Database.open(tmp_path / "h.db", schema=RAG) as raw:
        raw.write(lambda db: db.execute("DELETE FROM meta") and None).result()
    with pytest.raises(StoreCorrupt, match="does not say"):
        RagStore.open(tmp_path / "h.db")


@pytest.mark.parametrize(
    ("name", "good"), [("handbook", True), ("a.b-c_1", True), ("../x", False), ("", False), ("A", False), ("a.", False)]
)
def test_store_names(name: str, good: bool) -> None:
    assert is_store_name(name) is good


def test_a_store_goes_with_all_that_is_its_own_and_nothing_else(tmp_path: Path) -> None:
    beside = tmp_path / "s.db.notes"
    beside.write_text("mine")
    with make(tmp_path / "s.db", TEXTS) as made, pytest.raises(StoreLocked, match="is being written by"):
        remove_file(made.path)
    assert remove_file(tmp_path / "s.db") > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.db.lock", "s.db.notes"]
    with pytest.raises(NotFound):
        remove_file(tmp_path / "s.db")
    make(tmp_path / "s.db", TEXTS).close()
    assert RagStore.open(tmp_path / "s.db", read_only=True).stats().documents == 2


def test_a_damaged_store_can_be_deleted_and_a_foreign_file_cannot(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    make(path, TEXTS).close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)
    assert remove_file(path) == 5100
    Database.open(tmp_path / "w.db").close()
    (tmp_path / "t.db").write_text("a letter")
    (tmp_path / "e.db").touch()
    make(tmp_path / "real.db", TEXTS).close()
    (tmp_path / "l.db").symlink_to(tmp_path / "real.db")
    for name in ("w", "t", "e", "l"):
        with pytest.raises(StoreError, match="no RAG store of Lathe's and stays"):
            remove_file(tmp_path / f"{name}.db")
        assert (tmp_path / f"{name}.db").is_file()
