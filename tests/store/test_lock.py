"""One writer per file: who holds it, and what forged, stale or foreign records can do (nothing)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from lathe.store import lock as lock_module
from lathe.store.database import Database
from lathe.store.errors import StoreError, StoreLocked, StoreReadOnly
from lathe.store.lock import Holder, StoreLock, boot_id, file_system, read_holder, start_time

MYSELF = Holder.myself(5.0)
RECORDS = {
    "empty": b"",
    "garbage": b"\x00\xff" * 50,
    "huge": b'{"pid": 1, "boot": "' + b"x" * 10_000_000,
    "wrong types": b'{"pid": "me", "boot": 1}',
    "deep": b"[" * 4000,
    "pid 1": msgspec.json.encode(Holder(pid=1, boot=boot_id(), started=start_time(1) or "", since=1.0, program="init")),
    "ourselves": msgspec.json.encode(MYSELF),
    "another boot": msgspec.json.encode(msgspec.structs.replace(MYSELF, boot="another")),
    "negative pid": msgspec.json.encode(msgspec.structs.replace(MYSELF, pid=-1)),
    "enormous pid": msgspec.json.encode(msgspec.structs.replace(MYSELF, pid=2**62)),
    "escapes": msgspec.json.encode(msgspec.structs.replace(MYSELF, program="\x1b]52;c;aGk=\x07")),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_a_forged_record_neither_keeps_the_store_closed_nor_opens_it(tmp_path: Path, record: bytes) -> None:
    path, owner = tmp_path / "lathe.db", tmp_path / "lathe.db.owner"
    owner.write_bytes(record)
    with Database.open(path):
        assert read_holder(owner).pid == os.getpid()
        owner.write_bytes(record)
        with pytest.raises(StoreLocked, match="is being written by") as caught:
            Database.open(path)
        assert caught.value.message.isprintable()
    assert not owner.exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_records_that_are_no_files_are_ignored(tmp_path: Path, make) -> None:
    make(tmp_path / "lathe.db.owner")
    assert read_holder(tmp_path / "lathe.db.owner") is None
    with Database.open(tmp_path / "lathe.db") as database:
        assert database.former is None


def test_a_lock_file_that_is_a_link_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.db.lock").symlink_to(tmp_path / "victim")
    (tmp_path / "b.db.lock").mkdir()
    for name in ("a.db", "b.db"):
        with pytest.raises(StoreReadOnly, match="lock"):
            Database.open(tmp_path / name)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_clean_end_leaves_no_former_holder_and_a_crash_does(tmp_path: Path) -> None:
    first, second = StoreLock(tmp_path / "lathe.db"), StoreLock(tmp_path / "lathe.db")
    assert first.acquire(1.0) is None
    first.release()
    first.release()
    assert second.acquire(2.0) is None
    crashed = msgspec.structs.replace(MYSELF, pid=12345678)
    (tmp_path / "lathe.db.owner").write_bytes(msgspec.json.encode(crashed))
    second._lock.release()  # what the kernel does for a dead process: the record stays
    assert first.acquire(3.0) == crashed
    assert not crashed.is_alive()
    first.release()


def test_a_holder_is_known_by_boot_and_start_not_by_pid_alone() -> None:
    assert MYSELF.is_alive()
    for change in ({"pid": 1}, {"boot": "x"}, {"started": "1"}, {"started": ""}, {"pid": 2**40}, {"pid": -5}):
        assert not msgspec.structs.replace(MYSELF, **change).is_alive()


def test_start_times_do_not_move_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = start_time(os.getpid())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    assert start_time(os.getpid()) == before
    assert MYSELF.is_alive()


def test_network_file_systems_are_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "NFS4"), (str(tmp_path / "local"), "tmpfs")]
    known = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts]
    monkeypatch.setattr(lock_module.psutil, "disk_partitions", lambda **_: known)
    (tmp_path / "local").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "local")
    assert [file_system(tmp_path / name) for name in ("", "remote", "local", "link")] == [
        "nfs4",
        "nfs4",
        "tmpfs",
        "tmpfs",
    ]
    assert file_system(Path("/")) == "ext4"
    with pytest.raises(StoreError, match="network file system") as caught:
        Database.open(tmp_path / "lathe.db")
    assert "LATHE_HOME" in caught.value.hint
    assert not (tmp_path / "lathe.db").exists()
    Database.open(tmp_path / "lathe.db", allow_network=True).close()
    Database.open(tmp_path / "lathe.db", read_only=True).close()
    Database.open(tmp_path / "local" / "lathe.db").close()


def test_a_failed_opening_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "lathe.db"
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="not a database"):
            Database.open(path)
    path.unlink()
    Database.open(path).close()


def test_a_store_opened_in_one_thread_is_let_go_by_another(tmp_path: Path) -> None:
    opened: list[Database] = []
    thread = threading.Thread(target=lambda: opened.append(Database.open(tmp_path / "lathe.db")))
    thread.start()
    thread.join()
    opened[0].close()
    Database.open(tmp_path / "lathe.db").close()
