"""References, registration of jobs' outcomes, renaming, and what removal may delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lathe.engine.catalogue.catalogue import REMEMBERED, Catalogue
from lathe.engine.catalogue.register import SCAN_RESULT
from lathe.engine.catalogue.scan import identify, scan
from lathe.engine.catalogue.walk import Place
from lathe.engine.errors import DataError, MissingError, PolicyError, UsageError
from lathe.engine.jobs.values import Artefact, Outcome
from lathe.engine.steps import (
    BenchStep,
    ConvertStep,
    KldStep,
    PerplexityStep,
    QuantizeStep,
    ScanStep,
    TuneStep,
    VerifyStep,
)
from lathe.store.database import Database
from lathe.store.models import ModelEntry, Models
from msgspec.structs import replace
from support.gguf_writer import tiny_shards
from support.model_trees import checkpoint, gguf, ollama_model

NOW = 1_700_000_000.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "lathe.db") as database:
        yield database


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database, lambda: NOW)


def enter(catalogue: Catalogue, path: Path, **changes: object) -> ModelEntry:
    entry = replace(identify(path), **changes)
    return catalogue._database.write(lambda db: Models(db).put(entry)).result()


def scanned(tmp_path: Path, *roots: Path, known: list[ModelEntry] | None = None) -> Outcome:
    result = scan([Place(root) for root in roots], known or [])
    path = tmp_path / SCAN_RESULT
    path.write_bytes(msgspec.json.encode(result))
    return Outcome(artefacts=(Artefact(name=SCAN_RESULT, path=str(path), format="json", bytes=1),))


# -- references ------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_name_id_prefix_and_path(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "qwen3.gguf")
    entry = enter(catalogue, path)
    for reference in ("qwen3", "QWEN3", entry.id, entry.id[:6], str(path)):
        assert catalogue.resolve(reference) == entry


def test_a_model_is_remembered_until_anything_is_written(catalogue: Catalogue, tmp_path: Path) -> None:
    first, second = enter(catalogue, gguf(tmp_path / "first.gguf")), enter(catalogue, gguf(tmp_path / "second.gguf"))
    assert catalogue.known("first") is None
    for reference in ("first", first.id[:6], first.path):
        assert catalogue.resolve(reference) == catalogue.known(reference) == first
    catalogue.rename("first", "other")
    assert catalogue.known("first") is None
    catalogue.rename("second", "first")
    assert catalogue.resolve("first").id == second.id
    assert (known := catalogue.known("first")) is not None and known.id == second.id


def test_what_is_no_model_is_not_remembered(catalogue: Catalogue, tmp_path: Path) -> None:
    entry = enter(catalogue, gguf(tmp_path / "qwen3.gguf"))
    for number in range(REMEMBERED + 1):
        with pytest.raises(MissingError):
            catalogue.resolve(f"qwen4-{number}")
    assert not catalogue._known
    catalogue.resolve(entry.name)
    assert len(catalogue._known) == 1


def test_relative_paths_and_links_mean_the_same_model(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = enter(catalogue, gguf(tmp_path / "a.gguf"))
    monkeypatch.chdir(tmp_path)
    assert catalogue.resolve("./a.gguf") == catalogue.resolve("a.gguf") == entry
    assert len(catalogue.all()) == 1


def test_a_new_path_is_entered_in_place(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "new.gguf")
    entry = catalogue.resolve(str(path))
    assert (entry.name, entry.origin, entry.added_at, entry.path) == ("new", "linked", NOW, str(path))
    assert catalogue.all() == [entry]
    folder = checkpoint(tmp_path / "model")
    assert catalogue.resolve(f"{folder}/").format == "safetensors"


def test_what_is_not_there_comes_with_near_names(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no model is called 'qwen'") as caught:
        catalogue.resolve("qwen")
    assert "lathe models scan" in caught.value.hint
    enter(catalogue, gguf(tmp_path / "qwen3-8b-Q4_K_M.gguf", "1")), enter(catalogue, gguf(tmp_path / "gemma.gguf", "2"))
    for reference, expected in (("gema", "gemma"), ("Qwen3", "qwen3-8b-Q4_K_M"), ("qwen3-8b-q4km", "qwen3-8b-Q4_K_M")):
        with pytest.raises(MissingError) as caught:
            catalogue.resolve(reference)
        assert caught.value.hint == f"did you mean {expected}?"
    with pytest.raises(MissingError, match="there is no file"):
        catalogue.resolve(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("reference", ["", "\0", "a\0b", "x" * 100_000, "\udcff", "/\0", "~nobody/x", "*", "-h", "."])
def test_odd_references_are_refused_politely(catalogue: Catalogue, reference: str) -> None:
    with pytest.raises((MissingError, DataError)):
        catalogue.resolve(reference)


def test_an_ambiguous_prefix_is_told(catalogue: Catalogue, tmp_path: Path) -> None:
    for number in "ab":
        enter(catalogue, gguf(tmp_path / f"{number}.gguf", number), id=f"abcd0000000{number}")
    with pytest.raises(UsageError, match="means 2 models") as caught:
        catalogue.resolve("abcd")
    assert "a, b" in caught.value.hint


def test_details_say_what_is_wrong_with_the_file(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    parent = enter(catalogue, path)
    child = enter(catalogue, gguf(tmp_path / "b.gguf", "b"), parent=parent.id)
    details = catalogue.details("a")
    assert (details.card.architecture, details.children, details.problem) == ("llama", (child.id,), None)
    path.write_bytes(b"GGUF damaged")
    details = catalogue.details("a")
    assert details.card.architecture == "llama"
    assert details.problem.code.startswith("E_GGUF")
    path.unlink()
    assert catalogue.details("a").problem.code == "E_NOT_FOUND"


def test_the_header_of_an_untouched_file_is_not_read_again(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = enter(catalogue, gguf(tmp_path / "a.gguf"))
    enter(catalogue, gguf(tmp_path / "b.gguf", "b"), card={})

    def reading(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("lathe.engine.catalogue.catalogue.read_card", reading)
    monkeypatch.setattr("lathe.engine.catalogue.scan.read_card", reading)
    assert catalogue.details("a").card.name == "tiny"
    assert scan([Place(tmp_path)], [entry]).entries == (entry,)
    with pytest.raises(AssertionError, match=r"b\.gguf was read"):
        catalogue.details("b")


def test_the_embedded_model_is_entered_once_and_follows_an_upgrade(catalogue: Catalogue) -> None:
    entry = catalogue.enter_embedded()
    assert (entry.name, entry.origin, entry.format) == ("stdlib-4m", "embedded", "safetensors")
    assert catalogue.enter_embedded() == entry == catalogue.resolve("stdlib-4m")
    older = replace(entry, id="000000000000", card={})
    catalogue._database.write(lambda db: (Models(db).remove(entry.id), Models(db).put(older))).result()
    assert catalogue.enter_embedded() == entry
    assert len(catalogue.all()) == 1
    moved = replace(entry, id="111111111111", path="/an/older/installation/stdlib-4m", missing=True)
    catalogue._database.write(lambda db: (Models(db).remove(entry.id), Models(db).put(moved))).result()
    assert catalogue.enter_embedded().path == entry.path
    assert [(known.name, known.path) for known in catalogue.all()] == [("stdlib-4m", entry.path)]
    catalogue._database.write(lambda db: (Models(db).rename(entry.id, "second"), Models(db).put(moved))).result()
    assert catalogue.enter_embedded().name == "stdlib-4m"


def test_renaming_and_tagging(catalogue: Catalogue, tmp_path: Path) -> None:
    enter(catalogue, gguf(tmp_path / "a.gguf", "a")), enter(catalogue, gguf(tmp_path / "b.gguf", "b"))
    assert catalogue.rename("a", "fine").name == "fine"
    with pytest.raises(UsageError, match="another model is called 'b'"):
        catalogue.rename("fine", "b")
    for bad, good in (("", "model"), ("two words", "two-words"), ("--force", "force"), ("x\x1b[2J", "x-2J")):
        with pytest.raises(UsageError, match="cannot be a name") as caught:
            catalogue.rename("fine", bad)
        assert caught.value.hint == f"{good!r} could"
    assert catalogue.tag("fine", ("good", "very good")).tags == ("good", "very-good")


# -- outcomes of jobs ------------------------------------------------------------------------------------------------


def test_a_scan_is_entered_and_entered_again_changes_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    root = tmp_path / "models"
    gguf(root / "a" / "same.gguf", "a"), gguf(root / "b" / "same.gguf", "b"), checkpoint(root / "c")
    outcome = scanned(tmp_path, root)
    assert len(catalogue.register(ScanStep(), outcome)) == 3
    assert [entry.name for entry in catalogue.all()] == ["c", "same", "same-2"]
    assert {entry.added_at for entry in catalogue.all()} == {NOW}
    before = catalogue.all()
    assert catalogue.register(ScanStep(), outcome) == []
    assert catalogue.all() == before


def test_vanished_and_returned_models_are_marked(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "models" / "a.gguf")
    entry = enter(catalogue, path)
    hidden = path.rename(tmp_path / "hidden")
    (changed,) = catalogue.register(ScanStep(), scanned(tmp_path, tmp_path / "models", known=catalogue.all()))
    assert (changed.id, changed.missing) == (entry.id, True)
    hidden.rename(path)
    (changed,) = catalogue.register(ScanStep(), scanned(tmp_path, tmp_path / "models", known=catalogue.all()))
    assert (changed.id, changed.missing) == (entry.id, False)
    assert catalogue.all() == [entry]


def test_a_scan_does_not_resurrect_what_was_forgotten_meanwhile(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "models" / "a.gguf")
    enter(catalogue, path)
    path.unlink()
    outcome = scanned(tmp_path, tmp_path / "models", known=catalogue.all())
    catalogue.remove("a")
    assert catalogue.register(ScanStep(), outcome) == []
    assert catalogue.all() == []


def test_what_a_job_made_is_entered_as_made(catalogue: Catalogue, tmp_path: Path) -> None:
    source = enter(catalogue, checkpoint(tmp_path / "src"))
    path = gguf(tmp_path / "models" / "out-Q8_0.gguf")
    artefact = Artefact(
        name="nice name", path=str(path), format="gguf", bytes=path.stat().st_size, sha256="a" * 64, parent=source.id,
        recipe={"type": "Q8_0", "threads": 2},
    )  # fmt: skip
    log = Artefact(name="report", path=str(tmp_path / "report.json"), format="json", bytes=1)
    step = QuantizeStep(model="src", type="Q8_0")
    (entry,) = catalogue.register(step, Outcome(artefacts=(artefact, log)))
    assert (entry.name, entry.origin, entry.parent, entry.sha256) == ("nice-name", "made", source.id, "a" * 64)
    assert (entry.recipe, entry.added_at) == ({"type": "Q8_0", "threads": 2}, NOW)
    assert catalogue.details("src").children == (entry.id,)
    catalogue.register(ScanStep(), scanned(tmp_path, tmp_path / "models"))
    assert catalogue.resolve("nice-name") == entry
    again = gguf(path, "other bytes")
    catalogue.register(ConvertStep(model="src"), Outcome(artefacts=(replace(artefact, sha256="b" * 64),)))
    assert catalogue.resolve("nice-name").id == identify(again).id != entry.id


def test_figures_are_merged_into_the_model_that_was_measured(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path)
    figures = {"perplexity": 7.5, "chunks": 4, "text": "wiki", "finished": True, "nothing": None}
    catalogue.register(PerplexityStep(model="a"), Outcome(figures=figures))
    (entry,) = catalogue.register(BenchStep(model=str(path)), Outcome(figures={"tokens_per_s": 30.0}))
    assert entry.measured == {"perplexity": 7.5, "chunks": 4, "tokens_per_s": 30.0}
    compared = {"mean_kld": 0.01, "same_top_p": 0.97, "perplexity": 9.0, "tokens": 4096}
    (entry,) = catalogue.register(KldStep(model="a", base="b"), Outcome(figures=compared))
    assert entry.measured == {
        "perplexity": 7.5, "chunks": 4, "tokens_per_s": 30.0, "mean_kld": 0.01, "same_top_p": 0.97
    }, "on another text perplexity means something else"  # fmt: skip
    catalogue.remove("a")
    assert catalogue.register(BenchStep(model="a"), Outcome(figures={"tokens_per_s": 30.0})) == []


def test_what_a_search_made_knows_how_close_it_is(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "models" / "a-MIX.gguf")
    made = Artefact(name="a-MIX", path=str(path), format="gguf", bytes=path.stat().st_size)
    figures = {"mean_kld": 0.02, "bytes": 7, "chosen": "mix"}
    (entry,) = catalogue.register(TuneStep(model="a", text="t"), Outcome(artefacts=(made,), figures=figures))
    assert entry.measured == {"mean_kld": 0.02}


def test_a_verified_model_gets_hash_and_date(catalogue: Catalogue, tmp_path: Path) -> None:
    enter(catalogue, gguf(tmp_path / "a.gguf"))
    (entry,) = catalogue.register(VerifyStep(model="a"), Outcome(figures={"sha256": "c" * 64}))
    assert (entry.sha256, entry.verified_at) == ("c" * 64, NOW)


# -- removal ---------------------------------------------------------------------------------------------------------


def test_forgetting_leaves_every_file(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path, origin="made")
    assert catalogue.remove("a") == []
    assert path.exists()
    assert catalogue.all() == []


def test_what_lathe_made_may_be_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    path = gguf(folder / "a.gguf")
    enter(catalogue, path, origin="made")
    assert catalogue.remove("a", delete_files=True) == [str(path)]
    assert list(folder.iterdir()) == []
    shards = tiny_shards(folder)
    enter(catalogue, shards[0], origin="made", name="shards")
    assert sorted(catalogue.remove("shards", delete_files=True)) == [str(shard) for shard in shards]
    made = checkpoint(folder / "made")
    enter(catalogue, made, origin="made")
    deleted = catalogue.remove("made", delete_files=True)
    assert (made / "README.md").exists(), "what does not belong to the model stays"
    assert len(deleted) == 3
    assert folder.exists()


@pytest.mark.parametrize("origin", ["linked", "hf-cache", "ollama", "lm-studio"])
def test_foreign_files_are_deleted_by_force_only(catalogue: Catalogue, tmp_path: Path, origin: str) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path, origin=origin)
    with pytest.raises(PolicyError, match="Lathe did not make a"):
        catalogue.remove("a", delete_files=True)
    assert path.exists()
    assert len(catalogue.all()) == 1
    assert catalogue.remove("a", delete_files=True, force=True) == [str(path)]
    assert not path.exists()


def test_the_embedded_model_is_never_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path, origin="embedded")
    with pytest.raises(PolicyError, match="part of Lathe"):
        catalogue.remove("a", delete_files=True, force=True)
    assert path.exists()


def test_a_made_file_that_others_changed_is_foreign(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path, origin="made")
    gguf(path, "something else entirely")
    with pytest.raises(PolicyError, match="was changed since Lathe made it"):
        catalogue.remove("a", delete_files=True)
    assert path.exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(PolicyError, match="not a any more"):
        catalogue.remove("a", delete_files=True, force=True)
    assert path.is_dir()


def test_only_the_link_is_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    real = gguf(tmp_path / "real" / "a.gguf")
    link = tmp_path / "link.gguf"
    link.symlink_to(real)
    enter(catalogue, link)
    assert catalogue.remove("link", delete_files=True, force=True) == [str(link)]
    assert real.exists()
    assert not link.is_symlink()


def test_missing_files_are_forgotten_without_fuss(catalogue: Catalogue, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    enter(catalogue, path, origin="made")
    path.unlink()
    assert catalogue.remove("a", delete_files=True) == []
    blob = ollama_model(tmp_path / "ollama", "h/n/m/t", b"GGUF")
    assert blob.exists()
    assert catalogue.all() == []
