"""Rows and values: nested fields stand in a row as JSON text, everything else as columns.

Invariant: a row that does not decode to its type is damage, reported with its table and key, never half a value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec
from lathe.store.errors import HOW_TO_RECOVER, StoreCorrupt, StoreError

Value = TypeVar("Value")


def to_row(value: msgspec.Struct, nested: Collection[str] = ()) -> dict[str, Any]:
    """Spread a value over columns."""
    row = {name: getattr(value, name) for name in value.__struct_fields__}
    for name in nested:
        row[name] = to_json(row[name])
    return row


def from_row(kind: type[Value], row: Mapping[str, Any], table: str, nested: Collection[str] = ()) -> Value:
    """Build a value from its columns."""
    fields = dict(row)
    try:
        for name in nested:
            fields[name] = msgspec.json.decode(fields[name])
        # Lax, because SQLite has no booleans; the columns' types are checked by STRICT tables.
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        key = next(iter(fields.values()), "?")
        raise StoreCorrupt(f"row {key!r} of table {table} is damaged: {error}", hint=HOW_TO_RECOVER) from error


def to_json(value: object) -> str:
    """Encode a nested field; JSON has no infinities, so they become unknown."""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, TypeError) as error:
        raise StoreError(f"a value cannot be stored as text: {error}") from error
