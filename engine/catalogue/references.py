"""What a reference names, by the database alone: a name, an id or its beginning, a path, an alias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lathe.store.aliases import Aliases
from lathe.store.models import ModelEntry, Models

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


def meant(db: Connection, reference: str) -> list[ModelEntry]:
    """Models that a reference names; an alias counts where no model has that very name."""
    models = Models(db)
    found = models.find(reference)
    if len(found) == 1 and reference in (found[0].name, found[0].path, found[0].id):
        return found
    target = Aliases(db).target(reference)
    return models.find(target) if target is not None else found
