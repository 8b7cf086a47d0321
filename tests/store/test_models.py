"""The registry: unique names and paths, references, and what a changed file keeps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.store.errors import NotFound, StoreCorrupt, StoreError
from lathe.store.models import ModelEntry, Models
from msgspec.structs import replace
from support.stores import entry, memory_store

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
FIGURES = st.dictionaries(TEXT, st.none() | NUMBERS | TEXT, max_size=4)
ENTRIES = st.builds(
    ModelEntry,
    id=st.text("0123456789abcdef", min_size=12, max_size=12),
    name=TEXT,
    path=TEXT,
    format=st.sampled_from(["gguf", "safetensors", "onnx", "ggml", "remote"]),
    bytes=st.integers(0, 2**62),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    origin=st.sampled_from(["made", "embedded", "linked", "hf-cache", "ollama", "lm-studio", "remote"]),
    parent=st.none() | TEXT,
    recipe=FIGURES,
    added_at=st.floats(-1e12, 1e12),
    verified_at=st.none() | st.floats(1, 1e12),
    missing=st.booleans(),
    card=st.dictionaries(TEXT, st.none() | TEXT | st.lists(TEXT, max_size=2), max_size=3),
    measured=FIGURES,
    tags=st.lists(TEXT, max_size=3, unique=True).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(ENTRIES)
def test_what_goes_in_comes_out(model: ModelEntry) -> None:
    with memory_store() as db:
        assert Models(db).put(model) == model
        assert Models(db).get(model.id) == model
        assert Models(db).all() == [model]
        assert Models(db).by_path(model.path) == model
        assert model in Models(db).find(model.name)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, max_size=8, unique_by=(lambda model: model.id, lambda model: model.path)))
def test_names_and_paths_stay_unique_whatever_is_entered(models: list[ModelEntry]) -> None:
    with memory_store() as db:
        for model in models:
            Models(db).put(model)
        stored = Models(db).all()
        assert {model.path for model in stored} == {model.path for model in models}
        assert len({model.name for model in stored}) == len(stored)
        assert [replace(Models(db).get(model.id), name=model.name) for model in models] == models


def test_names_in_use_get_a_number() -> None:
    with memory_store() as db:
        names = [
            Models(db).put(entry(number, name=name)).name for number, name in enumerate(("llama", "Llama", "llama"))
        ]
        assert names == ["llama", "Llama-2", "llama-3"]


def test_references_by_name_path_id_and_prefix() -> None:
    with memory_store() as db:
        first = Models(db).put(entry(1, id="abcdef000001", name="qwen3"))
        second = Models(db).put(entry(2, id="abcdff000002", name="Gemma"))
        find = Models(db).find
        assert find("qwen3") == find(first.path) == find(first.id) == find("abcdef") == [first]
        assert find("gemma") == [second]
        assert find("abcd") == [first, second]
        assert find("abc") == find("") == find("nothing") == find("%") == []
        named_like_an_id = Models(db).put(entry(3, id="123456789abc", name="abcdff000002"))
        assert find("abcdff000002") == [named_like_an_id]


def test_an_untouched_file_keeps_what_was_learned() -> None:
    with memory_store() as db:
        models = Models(db)
        models.put(entry(1, origin="made", recipe={"type": "Q8_0"}, parent="p", added_at=5.0))
        models.rename(entry(1).id, "mine")
        models.tag(entry(1).id, ("good", "good", "small"))
        models.measure(entry(1).id, {"perplexity": 4.5})
        models.measure(entry(1).id, {"tokens_per_s": 20.0})
        models.hashed(entry(1).id, "a" * 64, verified_at=9.0)
        again = models.put(entry(1, added_at=99.0, card={"architecture": "llama"}))
        assert again == models.get(entry(1).id)
        assert (again.name, again.tags, again.origin) == ("mine", ("good", "small"), "made")
        assert again.measured == {"perplexity": 4.5, "tokens_per_s": 20.0}
        assert (again.sha256, again.verified_at, again.added_at) == ("a" * 64, 9.0, 5.0)
        assert (again.parent, again.recipe, again.card) == ("p", {"type": "Q8_0"}, {"architecture": "llama"})


def test_a_changed_file_is_another_model_under_the_same_name() -> None:
    with memory_store() as db:
        models = Models(db)
        old = models.put(
            entry(1, name="mine", sha256="a" * 64, origin="made", measured={"perplexity": 4.5}, tags=("t",))
        )
        child = models.put(entry(2, parent=old.id))
        new = models.put(entry(7, path=old.path, name="other"))
        assert (new.name, new.tags) == ("mine", ("t",))
        assert (new.sha256, new.measured, new.origin) == (None, {}, "linked")
        assert models.get(child.id).parent == old.id
        assert len(models.all()) == 2


def test_a_touched_file_with_the_same_hash_keeps_everything_and_its_children() -> None:
    with memory_store() as db:
        models = Models(db)
        old = models.put(entry(1, sha256="a" * 64, origin="made", measured={"perplexity": 4.5}))
        child = models.put(entry(2, parent=old.id))
        new = models.put(entry(7, path=old.path, sha256="a" * 64))
        assert (new.origin, new.measured) == ("made", {"perplexity": 4.5})
        assert models.children(new.id) == [child.id]
        assert models.children(old.id) == []


def test_renaming() -> None:
    with memory_store() as db:
        models = Models(db)
        models.put(entry(1)), models.put(entry(2))
        with pytest.raises(StoreError, match="another model is called 'MODEL-2'"):
            models.rename(entry(1).id, "MODEL-2")
        assert models.rename(entry(1).id, "Model-1").name == "Model-1"
        with pytest.raises(NotFound):
            models.rename("nothing", "x")


def test_pending_hashes_leave_out_missing_and_remote_models() -> None:
    with memory_store() as db:
        models = Models(db)
        models.put(entry(3)), models.put(entry(1))
        models.put(entry(4, missing=True)), models.put(entry(5, format="remote")), models.put(entry(6, sha256="a" * 64))
        assert [model.id for model in models.pending_hash()] == [entry(1).id, entry(3).id]
        assert models.mark_missing(entry(1).id, True).missing
        assert models.remove(entry(3).id).id == entry(3).id
        assert models.pending_hash() == []
        with pytest.raises(NotFound):
            models.get(entry(3).id)


def test_a_damaged_row_is_named() -> None:
    with memory_store() as db:
        Models(db).put(entry(1))
        for column, value in (("card", "{"), ("measured", "[]"), ("format", "exe"), ("tags", "{}")):
            before = db.execute(f"SELECT {column} FROM models").fetchone()[0]
            db.execute(f"UPDATE models SET {column} = ?", [value])
            with pytest.raises(StoreCorrupt, match=entry(1).id):
                Models(db).all()
            db.execute(f"UPDATE models SET {column} = ?", [before])
        assert Models(db).all() == [entry(1)]


def test_what_cannot_be_text_is_refused() -> None:
    with memory_store() as db, pytest.raises(StoreError, match="cannot be stored"):
        Models(db).put(entry(1, card={"name": "\udcff"}))


def test_a_figure_that_is_no_number_is_unknown() -> None:
    with memory_store() as db:
        Models(db).put(entry(1))
        Models(db).measure(entry(1).id, {"perplexity": float("inf"), "kld": float("nan")})
        assert Models(db).get(entry(1).id).measured == {"perplexity": None, "kld": None}
