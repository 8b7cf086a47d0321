"""Hashes: the documented value, remembered while nothing changes, never of a file that changed meanwhile."""

from __future__ import annotations

import hashlib
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.catalogue import hashing
from lathe.engine.catalogue.hashing import Hasher, hash_file, hash_files
from lathe.engine.catalogue.scan import files_of, identify
from lathe.engine.catalogue.walk import File, look_at
from lathe.engine.errors import BusyError, Cancelled
from lathe.store.database import Database
from lathe.store.models import ModelEntry, Models
from support.model_trees import checkpoint, gguf


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "lathe.db") as database:
        yield database


def enter(database: Database, path: Path) -> ModelEntry:
    return database.write(lambda db: Models(db).put(identify(path))).result()


def test_one_file_has_its_own_hash_and_a_folder_that_of_its_list(tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    assert hash_files([path]) == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = checkpoint(tmp_path / "model")
    members = [path.name for path in files_of(identify(folder))]
    assert members == ["config.json", "model.safetensors", "tokenizer.json"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in members]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert hash_files(folder / name for name in reversed(members)) == expected


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="this machine has no sha256sum")
def test_anyone_can_check_a_folders_hash(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    paths = files_of(identify(folder))
    command = ["sha256sum", *(path.name for path in paths)]
    printed = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    assert hash_files(paths) == hashlib.sha256(printed).hexdigest()


def test_progress_is_in_bytes_and_reaches_the_total(tmp_path: Path) -> None:
    reports: list[tuple[str, float, float | None, str]] = []
    (tmp_path / "a").write_bytes(bytes(9 << 20)), (tmp_path / "b").write_bytes(bytes(5))
    hash_files([tmp_path / "a", tmp_path / "b"], lambda *report: reports.append(report))
    total = (9 << 20) + 5
    assert [report[1] for report in reports] == [4 << 20, 8 << 20, 9 << 20, total]
    assert {report[2:] for report in reports} == {(total, "B")}


def test_remembered_files_are_not_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    kept: dict[File, str] = {}
    first = hash_files([tmp_path / "a", tmp_path / "b"], remember=kept.__setitem__)
    (tmp_path / "b").write_bytes(b"changed")
    read: list[float] = []
    again = hash_files(
        [tmp_path / "a", tmp_path / "b"],
        lambda _label, done, _total, _unit: read.append(done),
        remembered=kept.get,
        remember=kept.__setitem__,
    )
    assert again != first
    assert len(kept) == 3
    assert read == [1, 8]


def test_a_file_that_changes_while_it_is_read_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(9 << 20))
    with pytest.raises(BusyError, match="changed while it was read"):
        hash_file(look_at(path), lambda count: path.write_bytes(bytes(9 << 20)))


def test_hashing_stops_within_a_chunk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(20 << 20))
    seen: list[int] = []
    with pytest.raises(Cancelled):
        hash_file(look_at(tmp_path / "a"), seen.append, lambda: len(seen) == 2)
    assert len(seen) == 2


def test_the_hasher_works_through_what_is_pending(tmp_path: Path, database: Database) -> None:
    entries = [enter(database, gguf(tmp_path / f"{name}.gguf", name)) for name in "abc"]
    entries.append(enter(database, checkpoint(tmp_path / "model")))
    done: list[str] = []
    finished = threading.Event()

    def changed(model_id: str) -> None:
        done.append(model_id)
        if len(done) == len(entries):
            finished.set()

    hasher = Hasher(database, changed)
    hasher.wake()
    assert finished.wait(30)
    hasher.stop()
    assert set(done) == {entry.id for entry in entries}
    for entry in database.read(lambda db: Models(db).all()):
        assert entry.sha256 == hash_files(files_of(entry))


def test_the_hasher_passes_by_what_it_cannot_hash_until_it_is_woken_again(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    gone = enter(database, gguf(tmp_path / "gone.gguf", "1"))
    touched = enter(database, gguf(tmp_path / "touched.gguf", "2"))
    fine = enter(database, gguf(tmp_path / "z.gguf", "a longer name so that it is last"))
    Path(gone.path).unlink()
    gguf(Path(touched.path), "other content")
    done = threading.Event()
    hasher = Hasher(database, lambda model_id: done.set())
    hasher.wake()
    assert done.wait(30)
    assert {entry.id for entry in database.read(lambda db: Models(db).pending_hash())} == {gone.id, touched.id}
    done.clear()
    gguf(Path(gone.path), "1")
    restored = enter(database, Path(gone.path))
    hasher.wake()
    assert done.wait(30)
    hasher.stop()
    assert database.read(lambda db: Models(db).get(restored.id)).sha256 is not None
    assert database.read(lambda db: Models(db).get(fine.id)).sha256 is not None
    assert "gone was not hashed" in caplog.text


def test_a_model_forgotten_while_it_is_hashed_does_not_stop_the_others(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = enter(database, gguf(tmp_path / "a.gguf", "1"))
    fine = enter(database, gguf(tmp_path / "b.gguf", "a longer name so that it is last"))

    def hash_and_forget(*arguments: Any, **options: Any) -> str:
        if forgotten in database.read(lambda db: Models(db).all()):
            database.write(lambda db: Models(db).remove(forgotten.id)).result()
        return hash_files(*arguments, **options)

    monkeypatch.setattr(hashing, "hash_files", hash_and_forget)
    done: queue.Queue[str] = queue.Queue()
    hasher = Hasher(database, done.put)
    hasher.wake()
    assert done.get(timeout=30) == fine.id
    hasher.stop()


def test_a_stopped_hasher_stays_stopped(database: Database) -> None:
    hasher = Hasher(database, lambda model_id: None)
    hasher.stop()
    hasher.wake()
    assert not hasher._thread.is_alive()
