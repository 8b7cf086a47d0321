"""Scanning real little files in every layout: what is entered, under which name, and what becomes a problem."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from lathe.engine.catalogue.scan import ScanResult, current_id, files_of, identify, scan
from lathe.engine.catalogue.walk import Place
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import DataError, MissingError
from lathe.quantize.errors import GgufError
from msgspec.structs import replace
from support.gguf_writer import MALFORMED, tiny_adapter, tiny_imatrix, tiny_model, tiny_shards
from support.model_trees import checkpoint, gguf, hub_repository, ollama_model


def names(result: ScanResult) -> dict[str, str]:
    return {entry.name: entry.format for entry in result.entries}


def test_every_kind_of_model_is_found_in_place(tmp_path: Path) -> None:
    root = tmp_path / "models"
    gguf(root / "llama-Q8_0.gguf", "one")
    (root / "split").mkdir()
    tiny_shards(root / "split")
    checkpoint(root / "tiny-llama")
    (root / "old.bin").write_bytes(b"tjgg" + bytes(100))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = scan([Place(root)])
    found = names(result)
    assert found["llama-Q8_0"] == found["tiny"] == "gguf"
    assert found["tiny-llama"] == "safetensors"
    shards = next(entry for entry in result.entries if entry.name == "tiny")
    assert shards.path.endswith("tiny-00001-of-00003.gguf")
    assert shards.bytes == sum(path.stat().st_size for path in (root / "split").iterdir())
    assert len(files_of(shards)) == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert all(entry.origin == "linked" and entry.card["architecture"] == "llama" for entry in result.entries)


def test_other_programs_stores(tmp_path: Path) -> None:
    hub, ollama, studio = tmp_path / "hub", tmp_path / "ollama", tmp_path / "studio"
    snapshot = hub_repository(hub, "org/Repo-GGUF", {"Repo-Q8_0.gguf": tiny_model().build(), "README.md": b"x"})
    files = {path.name: path.read_bytes() for path in checkpoint(tmp_path / "made").iterdir()}
    hub_repository(hub, "org/Repo", files)
    hub_repository(hub, "org/Repo", files | {"config.json": files["config.json"] + b" "}, revision="0" * 10)
    (hub / "models--org--Repo" / "refs" / "main").write_text("abc1234def")
    blob = ollama_model(ollama, "registry.ollama.ai/library/tiny/latest", tiny_model("qwen2").build())
    gguf(studio / "publisher" / "model" / "Studio-Q4.gguf", "studio")
    (studio / "linked").symlink_to(snapshot)
    places = [
        Place(CHECKPOINT, "embedded"),
        Place(hub, "hf-cache"),
        Place(ollama, "ollama"),
        Place(studio, "lm-studio"),
    ]
    result = scan(places)
    assert result.problems == ()
    assert {entry.name: entry.origin for entry in result.entries} == {
        "stdlib-4m": "embedded", "Repo-Q8_0": "hf-cache", "Repo": "hf-cache", "tiny:latest": "ollama",
        "Studio-Q4": "lm-studio",
    }  # fmt: skip
    by_name = {entry.name: entry for entry in result.entries}
    assert by_name["tiny:latest"].path == str(blob)
    assert by_name["Repo-Q8_0"].path == str(snapshot / "Repo-Q8_0.gguf")


def test_a_user_who_names_the_store_as_a_root_gets_the_same_names(tmp_path: Path) -> None:
    hub_repository(tmp_path / "hub", "org/Repo", {"model.gguf": tiny_model().build()})
    ollama_model(tmp_path / "ollama", "registry.ollama.ai/me/tiny/v1", tiny_model("qwen2").build())
    assert {entry.name: entry.origin for entry in scan([Place(tmp_path)]).entries} == {
        "tiny": "hf-cache", "me/tiny:v1": "ollama",
    }  # fmt: skip


def test_the_same_bytes_count_once_and_the_known_path_stays(tmp_path: Path) -> None:
    original = gguf(tmp_path / "b" / "original.gguf")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.gguf").symlink_to(original)
    os.link(original, tmp_path / "c.gguf")
    (first,) = scan([Place(tmp_path)]).entries
    assert first.name == "c"
    known = identify(original)
    (again,) = scan([Place(tmp_path)], [known]).entries
    assert again == known


def test_what_cannot_be_used_is_a_problem_and_the_rest_is_found(tmp_path: Path) -> None:
    gguf(tmp_path / "good.gguf")
    for number, (_, make) in enumerate(list(MALFORMED.values())[::12]):
        (tmp_path / f"bad-{number}.gguf").write_bytes(make())
    (tmp_path / "imatrix.gguf").write_bytes(tiny_imatrix().build())
    (tmp_path / "cut.gguf").write_bytes(tiny_model().build()[:200])
    (tmp_path / "empty.gguf").touch()
    (tmp_path / os.fsdecode(b"\xff.gguf")).write_bytes(tiny_model().put("general.name", b"").build())
    os.mkfifo(tmp_path / "pipe.gguf")
    result = scan([Place(tmp_path), Place(tmp_path / "nowhere")])
    assert set(names(result)) == {"good"}
    assert len(result.problems) == len(list(tmp_path.iterdir())) - 1 + 1
    assert all(problem.code.startswith("E_") and problem.code != "E_INTERNAL" for problem in result.problems)
    assert msgspec.json.decode(msgspec.json.encode(result), type=ScanResult) == result


def test_an_adapter_is_marked(tmp_path: Path) -> None:
    (tmp_path / "lora.gguf").write_bytes(tiny_adapter().build())
    (entry,) = scan([Place(tmp_path)]).entries
    assert entry.card["adapter"] is True


def test_missing_models_are_noticed_wherever_they_were(tmp_path: Path) -> None:
    here, elsewhere = gguf(tmp_path / "scanned" / "a.gguf"), gguf(tmp_path / "elsewhere" / "b.gguf", "b")
    first, second = identify(here), identify(elsewhere)
    remote = replace(first, id="remote", path="http://host", format="remote")
    elsewhere.unlink()
    result = scan([Place(tmp_path / "scanned")], [replace(first, missing=True), second, remote])
    assert result.missing == (second.id,)
    assert result.found_again == (first.id,)


def test_progress_counts_folders_then_models(tmp_path: Path) -> None:
    gguf(tmp_path / "x" / "a.gguf", "a"), gguf(tmp_path / "y" / "b.gguf", "b")
    reports: list[tuple[str, float, float | None, str]] = []
    assert scan([Place(tmp_path)], report=lambda *report: reports.append(report)).folders == 3
    assert [report for report in reports if report[3] == "folder"][-1] == ("looking into folders", 3, None, "folder")
    assert [report[1:3] for report in reports if report[3] == "model"] == [(0, 2), (1, 2), (2, 2)]


def test_ids_follow_path_size_and_time_of_change(tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    first = identify(path)
    assert identify(path) == first
    assert current_id(first) == first.id
    os.utime(path, ns=(1, 1))
    assert identify(path).id == current_id(first) != first.id
    copy = tmp_path / "b.gguf"
    shutil.copy2(path, copy)
    assert identify(copy).id != identify(path).id


def test_a_readme_changes_nothing_and_a_config_does(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    first = identify(folder)
    (folder / "README.md").write_text("changed " * 100)
    assert identify(folder).id == first.id
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "changed": True}))
    assert identify(folder).id != first.id


def test_identify_by_any_door(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path)
    assert {identify(shard).path for shard in shards} == {str(shards[0])}
    folder = checkpoint(tmp_path / "model")
    assert identify(folder).path == identify(folder / "model.safetensors").path == str(folder)
    blob = ollama_model(tmp_path / "ollama", "h/n/m/t", tiny_model().build())
    assert (identify(blob).path, identify(blob).origin) == (str(blob), "ollama")
    lonely = gguf(tmp_path / "alone" / "x.gguf")
    assert identify(lonely.parent).path == str(lonely)


def test_what_identify_refuses(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no file"):
        identify(tmp_path / "none.gguf")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="is no model"):
        identify(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="is no model"):
        identify(tmp_path)
    gguf(tmp_path / "a.gguf"), gguf(tmp_path / "b.gguf")
    with pytest.raises(DataError, match="holds 2 models") as caught:
        identify(tmp_path)
    assert "a.gguf, b.gguf" in caught.value.hint
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(GgufError):
        identify(tmp_path / "a.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(OSError, match="special file"):
        identify(tmp_path / "pipe.gguf")
    (tmp_path / "m-00002-of-00002.gguf").touch()
    with pytest.raises(DataError, match="1 of 2 shards"):
        identify(tmp_path / "m-00002-of-00002.gguf")


@pytest.mark.shared
def test_naughty_names_of_files_are_found_or_told(tmp_path: Path, shared_data: Path) -> None:
    texts = json.loads((shared_data / "robustness" / "blns" / "blns.json").read_text())
    written = 0
    for number, text in enumerate(texts):
        file = f"{text}.gguf"
        if Path(file).suffix and "/" not in file and "\0" not in file and len(os.fsencode(file)) < 255:
            gguf(tmp_path / str(number) / file, f"n{number}")
            written += 1
    result = scan([Place(tmp_path)])
    assert len(result.entries) + len(result.problems) == written > 250
    assert all(entry.name.isprintable() and entry.name for entry in result.entries)
    assert len(result.entries) == written


@pytest.mark.shared
def test_real_models_are_found(shared_data: Path) -> None:
    result = scan([Place(shared_data / "models")])
    assert {"TinyStories-656K", "stdlib-4m"} <= set(names(result))
