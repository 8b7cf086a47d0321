"""One file, one writer, many readers: what `Database` promises."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from pathlib import Path

import pytest
from lathe.store.database import Database
from lathe.store.driver import capabilities
from lathe.store.errors import StoreError, StoreLocked, StoreReadOnly


def insert(kind: str):
    return lambda db: db.table("jobs").insert({"kind": kind, "state": "done", "created_at": 1.0, "body": "{}"}).last_pk


def count(db) -> int:
    return db.execute("SELECT count(*) FROM jobs").fetchone()[0]


@pytest.fixture
def database(tmp_path: Path):
    with Database.open(tmp_path / "lathe.db") as database:
        yield database


def test_a_write_is_seen_by_the_next_read_and_by_the_next_opening(tmp_path: Path) -> None:
    with Database.open(tmp_path / "lathe.db") as database:
        assert database.migrated
        assert database.write(insert("scan")).result() == 1
        assert database.read(count) == 1
    with Database.open(tmp_path / "lathe.db") as database:
        assert database.migrated == []
        assert database.read(count) == 1
    assert not (tmp_path / "lathe.db-wal").exists()
    assert (tmp_path / "lathe.db").stat().st_mode & 0o777 == 0o600


def test_writes_keep_their_order_from_many_threads(database: Database) -> None:
    futures: list[Future[int]] = []

    def submit(name: str) -> None:
        futures.extend(database.write(insert(f"{name}{index}")) for index in range(50))

    threads = [threading.Thread(target=submit, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(futures)
    kinds = database.read(lambda db: [row[0] for row in db.execute("SELECT kind FROM jobs ORDER BY number")])
    for name in "abc":
        assert [kind for kind in kinds if kind[0] == name] == [f"{name}{index}" for index in range(50)]


def test_a_failing_write_leaves_nothing_and_the_next_one_works(database: Database) -> None:
    def half(db) -> None:
        insert("lost")(db)
        raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        database.write(half).result()
    with pytest.raises(StoreError, match="no such table"):
        database.write(lambda db: db.execute("INSERT INTO nowhere VALUES (1)").rowcount).result()
    database.write(insert("kept")).result()
    assert database.read(count) == 1


@pytest.mark.skipif(not capabilities().wal_safe, reason="without WAL a write waits for the reads before it")
def test_a_read_sees_one_snapshot_while_writes_go_on(database: Database) -> None:
    def twice(db) -> tuple[int, int]:
        before = count(db)
        database.write(insert("meanwhile")).result()
        return before, count(db)

    assert database.read(twice) == (0, 0)
    assert database.read(count) == 1


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StoreReadOnly):
        database.read(insert("sneaky"))
    assert database.read(count) == 0


def test_results_that_outlive_their_transaction_are_refused(database: Database) -> None:
    with pytest.raises(TypeError, match="iterator"):
        database.read(lambda db: db.table("jobs").rows)


def test_a_write_inside_a_write_is_refused_instead_of_waiting_for_itself(database: Database) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        database.write(lambda db: database.write(count)).result()


def test_a_cancelled_write_never_happens(database: Database) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(db) -> None:
        started.set()
        release.wait(10)

    first = database.write(slow)
    started.wait(10)
    second = database.write(insert("cancelled"))
    assert second.cancel()
    release.set()
    first.result()
    assert database.write(count).result() == 0


def test_a_full_queue_makes_the_next_writer_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lathe.store.database.BACKLOG", 2)
    release = threading.Event()
    with Database.open(tmp_path / "lathe.db") as database:
        blocking = database.write(lambda db: release.wait(30))
        futures: list[Future[int]] = []
        submitting = threading.Thread(target=lambda: futures.extend(database.write(insert(str(n))) for n in range(9)))
        submitting.start()
        submitting.join(0.05)
        assert submitting.is_alive()
        assert database.read(count) == 0, "readers go on meanwhile"
        release.set()
        submitting.join(30)
        assert [future.result() for future in futures] == list(range(1, 10))
        assert blocking.result() is True


def test_close_finishes_what_was_queued(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "lathe.db")
    futures = [database.write(insert("queued")) for _ in range(100)]
    database.close()
    assert all(future.done() for future in futures)
    with pytest.raises(StoreError, match="closed"):
        database.write(count)
    with pytest.raises(StoreError, match="closed"):
        database.read(count)
    with Database.open(tmp_path / "lathe.db") as again:
        assert again.read(count) == 100


def test_close_interrupts_a_long_read(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "lathe.db")
    started = threading.Event()
    errors: list[Exception] = []

    def endless(db) -> int:
        started.set()
        query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        return db.execute(query).fetchone()[0]

    def reading() -> None:
        try:
            database.read(endless)
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=reading)
    thread.start()
    started.wait(10)
    database.close()
    thread.join(30)
    assert "interrupted" in str(errors[0])


def test_the_second_writer_is_told_who_writes_and_may_read(database: Database) -> None:
    database.write(insert("first")).result()
    with pytest.raises(StoreLocked, match=r"written by process \d+") as caught:
        Database.open(database.path)
    assert "read-only" in caught.value.hint
    with Database.open(database.path, read_only=True) as reader:
        assert reader.read(count) == 1
        with pytest.raises(StoreReadOnly):
            reader.write(count)
        database.write(insert("second")).result()
        assert reader.read(count) == 2


def test_readers_are_pooled(database: Database) -> None:
    barrier = threading.Barrier(8)

    def together(db) -> None:
        barrier.wait(10)

    threads = [threading.Thread(target=database.read, args=(together,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database._idle) == 4
