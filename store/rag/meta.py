"""Small facts of a store, by name: settings, counts, the prefilter's calibration. Typed on the way in and out."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from lathe.store.errors import HOW_TO_RECOVER, StoreCorrupt
from lathe.store.rows import to_json
from sqlite_utils import Database as Connection

Value = TypeVar("Value", bound=msgspec.Struct)


def get(db: Connection, key: str, kind: type[Value]) -> Value | None:
    """A value by its name; None where it was never put."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
    if row is None:
        return None
    try:
        return msgspec.json.decode(row[0], type=kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"row {key!r} of table meta is damaged: {error}", hint=HOW_TO_RECOVER) from error


def put(db: Connection, key: str, value: msgspec.Struct) -> None:
    """Set a value."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, to_json(value)])


def remove(db: Connection, key: str) -> None:
    """Forget a value."""
    db.execute("DELETE FROM meta WHERE key = ?", [key])
