"""Upgrades, downgrades and files of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.store import driver
from lathe.store.database import Database
from lathe.store.errors import StoreCorrupt, StoreError, StoreReadOnly, StoreTooNew
from lathe.store.migrations import WORKSPACE, Schema, back_up
from sqlite_utils import Database as Connection
from support.store_work import NEW, OLD, m001_things, m002_copies, m003_no_things


def old_store(path: Path, rows: int = 3) -> Path:
    with Database.open(path, schema=OLD) as database:
        things = [{"number": number, "text": "t"} for number in range(rows)]
        database.write(lambda db: db.table("things").insert_all(things) and None).result()
    return path


def test_each_migration_runs_once_and_the_file_before_is_kept(tmp_path: Path) -> None:
    path = old_store(tmp_path / "s.db")
    with Database.open(path, schema=NEW) as database:
        assert database.migrated == ["m002_copies", "m003_no_things"]
        assert database.read(lambda db: db.execute("SELECT count(*) FROM copies").fetchone()) == (3,)
        assert database.read(lambda db: db.execute("PRAGMA user_version").fetchone()) == (3,)
    with Database.open(path, schema=NEW) as database:
        assert database.migrated == []
    with Database.open(tmp_path / "s.db.v1.bak", schema=OLD, read_only=True) as backup:
        assert backup.read(lambda db: db.execute("SELECT count(*) FROM things").fetchone()) == (3,)
    assert (tmp_path / "s.db.v1.bak").stat().st_mode & 0o777 == 0o600


def test_nobody_else_can_read_a_backup_while_it_is_written(tmp_path: Path) -> None:
    db = Connection(driver.connect(old_store(tmp_path / "s.db", rows=500), "rw"), execute_plugins=False)
    part, modes = tmp_path / "s.db.v1.bak.part", set()

    def look() -> int:
        if part.exists():
            modes.add(part.stat().st_mode & 0o777)
        return 0

    db.conn.set_progress_handler(look, 10)
    back_up(db, tmp_path / "s.db", 1)
    db.close()
    assert modes == {0o600}


def test_a_new_file_needs_no_backup(tmp_path: Path) -> None:
    Database.open(tmp_path / "s.db", schema=NEW).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.db", "s.db.lock"]


def test_a_failing_migration_changes_nothing(tmp_path: Path) -> None:
    def m003_fails(db) -> None:
        db.table("things").drop()
        raise KeyError("half done")

    path = old_store(tmp_path / "s.db")
    broken = Schema("things", OLD.application_id, (m001_things, m002_copies, m003_fails))
    with pytest.raises(KeyError, match="half done"):
        Database.open(path, schema=broken)
    with Database.open(path, schema=OLD) as database:
        assert database.read(lambda db: db.table_names()) == ["_sqlite_migrations", "things"]
        assert database.migrated == []
    with Database.open(path, schema=NEW) as database:
        assert len(database.migrated) == 2


def test_a_migration_that_breaks_a_reference_is_taken_back(tmp_path: Path) -> None:
    def m002_orphans(db) -> None:
        db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        db.execute("CREATE TABLE children (parent INTEGER REFERENCES parents(id) DEFERRABLE INITIALLY DEFERRED)")
        db.execute("INSERT INTO children VALUES (7)")

    path = old_store(tmp_path / "s.db")
    with pytest.raises(StoreError, match="broke a reference in table children"):
        Database.open(path, schema=Schema("things", OLD.application_id, (m001_things, m002_orphans)))
    with Database.open(path, schema=OLD) as database:
        assert "children" not in database.read(lambda db: db.table_names())


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = old_store(tmp_path / "s.db")
    Database.open(path, schema=NEW).close()
    content = path.read_bytes()
    with pytest.raises(StoreTooNew, match=r"newer Lathe \(schema 3, this one knows 1\)"):
        Database.open(path, schema=OLD, read_only=read_only)
    assert path.read_bytes() == content


def test_an_unknown_migration_is_a_newer_file_too(tmp_path: Path) -> None:
    def m002_other(db) -> None:
        db.execute("CREATE TABLE other (x)")

    path = tmp_path / "s.db"
    Database.open(path, schema=Schema("things", OLD.application_id, (m001_things, m002_other))).close()
    with pytest.raises(StoreTooNew):
        Database.open(path, schema=NEW)


def test_a_version_that_contradicts_the_migrations_is_damage(tmp_path: Path) -> None:
    path = old_store(tmp_path / "s.db")
    connection = driver.connect(path, "rw")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreCorrupt, match="says schema 2 but lists 1"):
        Database.open(path, schema=NEW)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_another_program_is_not_touched(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "foreign.db"
    connection = driver.sqlite3.connect(path)
    connection.execute("CREATE TABLE addresses (name)")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="of another program"):
        Database.open(path, read_only=read_only)
    assert path.read_bytes() == content
    assert not (tmp_path / "foreign.db-wal").exists()


def test_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = old_store(tmp_path / "s.db")
    with pytest.raises(StoreCorrupt, match="not a Lathe workspace"):
        Database.open(path)


def test_reading_needs_an_up_to_date_file(tmp_path: Path) -> None:
    path = old_store(tmp_path / "s.db")
    with pytest.raises(StoreReadOnly, match="needs an upgrade"):
        Database.open(path, schema=NEW, read_only=True)
    with pytest.raises(StoreError, match="does not exist"):
        Database.open(tmp_path / "none.db", read_only=True)
    assert m003_no_things.__name__ in NEW.names()


def test_names_of_migrations_are_numbered_in_order() -> None:
    assert [int(name[1:4]) for name in WORKSPACE.names()] == list(range(1, len(WORKSPACE.steps) + 1))
