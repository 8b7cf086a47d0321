"""The error tree of the store floor.

StoreError
|- StoreLocked     another process writes this store (who, since when)
|- StoreReadOnly   a write was asked of a store opened read-only
|- StoreCorrupt    SQLite or our own checks say that the bytes are damaged, or the file is something else
|- StoreTooNew     written by a newer Lathe: reading would guess
|- StoreFull       the disk has no room; nothing of the transaction was kept
'- NotFound        no row with that name
"""

from __future__ import annotations

HOW_TO_RECOVER = "save what can be read: python -m lathe.store.recovery DAMAGED.db COPY.db"


class StoreError(Exception):
    """Base of everything this floor raises on purpose."""

    code = "E_STORE"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StoreLocked(StoreError):
    """Another process holds the writer's lock."""

    code = "E_STORE_LOCKED"


class StoreReadOnly(StoreError):
    """A write was asked of a store that is open for reading."""

    code = "E_STORE_READ_ONLY"


class StoreCorrupt(StoreError):
    """The file is damaged or is not a Lathe store."""

    code = "E_STORE_CORRUPT"


class StoreTooNew(StoreError):
    """The schema is newer than this program."""

    code = "E_STORE_TOO_NEW"


class StoreFull(StoreError):
    """The disk is full; the transaction was rolled back."""

    code = "E_STORE_FULL"


class NotFound(StoreError):
    """No row has that name."""

    code = "E_NOT_FOUND"
