"""Which SQLite runs, what it may do, and what an old one falls back to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlite_utils.utils
import sqlite_vec
from lathe.store import driver
from lathe.store.database import Database
from lathe.store.errors import StoreError
from support.store_work import add_pair


def test_sqlite_utils_and_we_use_one_sqlite() -> None:
    chosen = sqlite_utils.utils.sqlite3.sqlite_version
    assert chosen == driver.capabilities().version == driver.sqlite3.sqlite_version
    assert issubclass(sqlite_utils.utils.OperationalError, driver.SqliteError)


def test_capabilities_say_what_this_sqlite_can_do() -> None:
    capabilities = driver.capabilities()
    assert capabilities.driver == ("pysqlite3" if sys.modules.get("pysqlite3") else "sqlite3")
    connection = driver.sqlite3.connect(":memory:")
    assert hasattr(connection, "enable_load_extension") == capabilities.extensions
    if capabilities.fts5:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
    connection.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [((3, 40, 1), False), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 4), True), ((4, 0, 0), True)],
)
def test_the_version_gate_of_the_wal_bug(version: tuple[int, ...], safe: bool) -> None:
    assert driver.is_wal_safe(version) is safe


@pytest.mark.parametrize(("safe", "mode", "synchronous"), [(True, "wal", 2), (False, "delete", 3)])
def test_the_journal_follows_the_gate_even_for_a_file_made_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool, mode: str, synchronous: int
) -> None:
    Database.open(tmp_path / "lathe.db").close()
    capabilities = driver.capabilities()
    changed = driver.Capabilities(
        driver=capabilities.driver, version="x", extensions=capabilities.extensions, fts5=True, wal_safe=safe
    )
    monkeypatch.setattr(driver, "capabilities", lambda: changed)
    with Database.open(tmp_path / "lathe.db") as database:
        pragmas = ("journal_mode", "synchronous", "trusted_schema", "foreign_keys", "cell_size_check", "mmap_size")
        values = database.write(lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]).result()
        assert values == [mode, synchronous, 0, 1, 1, 0]
        assert database.write(add_pair(1)).result() == 1
        assert database.read(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()) == (2,)
    Database.open(tmp_path / "lathe.db").close()


@pytest.mark.skipif(not driver.capabilities().extensions, reason="this SQLite cannot load extensions")
def test_extensions_load_by_absolute_path_and_the_door_closes_again() -> None:
    connection = driver.sqlite3.connect(":memory:")
    driver.load_vectors(connection)
    assert connection.execute("SELECT vec_version()").fetchone()[0] == f"v{sqlite_vec.__version__}"
    with pytest.raises(driver.SqliteError, match="not authorized"):
        connection.execute("SELECT load_extension(?)", [sqlite_vec.loadable_path()])
    with pytest.raises(ValueError, match="absolute"):
        driver.load_extension(connection, Path("vec0"))
    with pytest.raises(StoreError, match="does not load"):
        driver.load_extension(connection, Path(__file__))
    with pytest.raises(driver.SqliteError, match="not authorized"):
        connection.execute("SELECT load_extension(?)", [sqlite_vec.loadable_path()])
    connection.close()


def test_a_driver_without_extensions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without = driver.Capabilities(driver="sqlite3", version="3.40.1", extensions=False, fts5=True, wal_safe=False)
    monkeypatch.setattr(driver, "capabilities", lambda: without)
    with pytest.raises(StoreError, match="cannot load SQLite extensions") as caught:
        driver.load_vectors(None)
    assert "pysqlite3" in caught.value.hint


def test_a_malicious_schema_cannot_call_functions_with_effects(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    Database.open(path).close()
    connection = driver.connect(path, "rw")
    connection.execute("CREATE VIEW v AS SELECT fts3_tokenizer('simple') AS t")
    with pytest.raises(driver.SqliteError, match=r"unsafe use|not authorized|no such function"):
        connection.execute("SELECT * FROM v").fetchall()
    connection.close()
