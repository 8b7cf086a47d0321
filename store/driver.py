"""Which SQLite this process uses, what it can do, and what its errors mean.

sqlite-utils takes pysqlite3 where it is importable and the standard library's module elsewhere; the same rule here
keeps one SQLite build per process. Every SQLite before 3.51.3 can corrupt a WAL database that two connections write
or checkpoint, so `wal_safe` decides the journal mode. Invariant: nothing but these functions opens a connection, and
extension loading is off outside `load_extension`.
"""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from lathe.store.errors import HOW_TO_RECOVER, StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreReadOnly

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        sqlite3 = importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        import sqlite3

Connection = sqlite3.Connection
SqliteError = sqlite3.Error

WAL_SAFE_SINCE = (3, 51, 3)
BUSY_TIMEOUT_S = 5.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the SQLite of this process can do; the doctor shows it."""

    driver: Literal["pysqlite3", "sqlite3"]
    version: str
    extensions: bool
    """Extensions can be loaded, so sqlite-vec can be used."""
    fts5: bool
    wal_safe: bool
    """Free of the WAL-reset bug; else stores use journal_mode=DELETE."""


@cache
def capabilities() -> Capabilities:
    """Ask the SQLite of this process what it can do."""
    connection = memory()
    try:
        options = {row[0] for row in connection.execute("PRAGMA compile_options")}
        fts5 = connection.execute("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'").fetchone()[0] > 0
    finally:
        connection.close()
    return Capabilities(
        driver="pysqlite3" if sqlite3.__name__.startswith("pysqlite3") else "sqlite3",
        version=sqlite3.sqlite_version,
        extensions=hasattr(sqlite3.Connection, "enable_load_extension") and "OMIT_LOAD_EXTENSION" not in options,
        fts5=fts5,
        wal_safe=is_wal_safe(sqlite3.sqlite_version_info),
    )


def is_wal_safe(version: tuple[int, ...]) -> bool:
    """Tell whether WAL may be used; vendors' backports of the fix cannot be recognised, so the number decides."""
    return version >= WAL_SAFE_SINCE


def connect(path: Path, mode: Literal["ro", "rw"]) -> Connection:
    """Open an existing file with the settings that every connection of ours has.

    The connection may move between threads, one at a time, and begins no transaction by itself.
    """
    options = f"mode={mode}"
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not _size(path.with_name(f"{path.name}-wal")):
        # Reading a WAL file needs a shared-memory file beside it; where none can be made, nobody writes either.
        options = "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # A schema is foreign text: views and triggers may only call innocuous functions, and sizes of cells are
        # checked before they are followed. mmap turns a damaged or truncated file into SIGBUS.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def memory() -> Connection:
    """Open an empty database without a file."""
    return sqlite3.connect(":memory:", isolation_level=None)


def load_extension(connection: Connection, path: Path) -> None:
    """Load one extension by its absolute path; SQL itself can never load any.

    Raises StoreError where the driver cannot load extensions or the file is not one.
    """
    if not path.is_absolute():
        raise ValueError(f"an extension is named by its absolute path, not {path}")
    if not capabilities().extensions:
        raise StoreError(
            f"the {capabilities().driver} module of this Python cannot load SQLite extensions",
            hint="install pysqlite3, or search runs without the vector index",
        )
    connection.enable_load_extension(True)
    try:
        connection.load_extension(str(path))
    except sqlite3.Error as error:
        raise StoreError(f"the SQLite extension {path} does not load: {error}") from error
    finally:
        connection.enable_load_extension(False)


def load_vectors(connection: Connection) -> None:
    """Load sqlite-vec from its package."""
    import sqlite_vec

    load_extension(connection, Path(sqlite_vec.loadable_path()).resolve())


_CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_SCHEMA", "SQLITE_MISMATCH", "SQLITE_TOOBIG")


def explain(error: Exception, path: Path) -> StoreError:
    """Turn an error of SQLite into one of ours that says what to do."""
    if isinstance(error, StoreError):
        return error
    name: str = getattr(error, "sqlite_errorname", None) or ""
    text = "".join(character if character.isprintable() else "?" for character in str(error))
    if name.startswith(_CORRUPT) or isinstance(error, UnicodeError) or "decode to UTF-8" in text:
        return StoreCorrupt(f"{path} is damaged or is not a store: {text}", hint=HOW_TO_RECOVER)
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _no_room(path)):
        return StoreFull(f"no room left to write {path}", hint="free disk space; nothing of this write was kept")
    if name.startswith("SQLITE_READONLY"):
        return StoreReadOnly(f"{path} cannot be written: {text}", hint="check the permissions of the file and folder")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return StoreLocked(f"{path} is in use by another program: {text}", hint="close it there and try again")
    if name.startswith("SQLITE_CANTOPEN"):
        return StoreError(f"{path} cannot be opened: {text}", hint="check the path and the permissions")
    return StoreError(f"{path}: {text}")


def _no_room(path: Path) -> bool:
    """Tell whether an I/O error was a full disk: SQLite says so for ENOSPC, but not for quotas and size limits."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            # As long as the store itself, so that a limit on file size shows; sparse, so that it costs nothing.
            probe.seek(max(path.stat().st_size, _size(path.with_name(f"{path.name}-wal"))))
            probe.write(b"\0" * 65536)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in _FULL
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
