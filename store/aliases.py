"""Aliases: other names for models of the registry.

A repository wraps the connection of one transaction. Invariant: an alias is never the name of a model, in any case, so
that a name means one thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from lathe.store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """One alias."""

    name: str
    target: str
    """Name of the model."""
    set_at: float = 0.0


class Aliases:
    """The aliases, within one transaction of a store."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def all(self) -> list[Alias]:
        """Every alias, by name."""
        rows = self._db.query("SELECT name, target, set_at FROM aliases ORDER BY name")
        return [Alias(**row) for row in rows]

    def target(self, name: str) -> str | None:
        """The name of the model that an alias means; None where there is no such alias."""
        rows = self._db.query("SELECT target FROM aliases WHERE name = ?", [name])
        return next((row["target"] for row in rows), None)

    def put(self, alias: Alias) -> Alias:
        """Set an alias, in place of what it meant before.

        Raises:
            StoreError: a model has that name.
        """
        if next(self._db.query("SELECT 1 FROM models WHERE name = ? COLLATE NOCASE", [alias.name]), None):
            raise StoreError(f"a model is called {alias.name!r}", hint="choose another name, or rename the model")
        self._db.execute("DELETE FROM aliases WHERE name = ?", [alias.name])
        self._db.table("aliases").insert(msgspec.structs.asdict(alias))
        return alias

    def follow(self, old: str, new: str) -> None:
        """Note that a model has another name; an alias of that very name is no longer needed."""
        self._db.execute("UPDATE aliases SET target = ? WHERE target = ? COLLATE NOCASE", [new, old])
        self._db.execute("DELETE FROM aliases WHERE name = ?", [new])

    def remove(self, name: str) -> Alias:
        """Forget an alias.

        Raises:
            NotFound: there is none of that name.
        """
        found = self.target(name)
        if found is None:
            raise NotFound(f"there is no alias {name!r}", hint="`lathe models alias` lists them")
        self._db.execute("DELETE FROM aliases WHERE name = ?", [name])
        return Alias(name=name, target=found)

    def forget(self, target: str) -> None:
        """Forget every alias of a model that is gone."""
        self._db.execute("DELETE FROM aliases WHERE target = ? COLLATE NOCASE", [target])
