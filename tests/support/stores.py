"""Stores for tests: a migrated connection in memory, and entries to put into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec
from lathe.store import driver
from lathe.store.migrations import WORKSPACE, migrate
from lathe.store.models import ModelEntry
from sqlite_utils import Database as Connection


def _connect() -> Connection:
    return Connection(driver.memory(), execute_plugins=False)


@cache
def _template() -> Connection:
    connection = _connect()
    migrate(connection, WORKSPACE, Path("memory"))
    return connection


@contextmanager
def memory_store() -> Iterator[Connection]:
    """A migrated workspace without a file, inside a transaction as repositories expect it."""
    connection = _connect()
    try:
        _template().conn.backup(connection.conn)
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def entry(number: int = 1, **changes: object) -> ModelEntry:
    """A model entry that differs from others by its number."""
    base = ModelEntry(
        id=f"{number:012x}", name=f"model-{number}", path=f"/models/{number}.gguf", format="gguf", bytes=number * 1000
    )
    return msgspec.structs.replace(base, **changes)
