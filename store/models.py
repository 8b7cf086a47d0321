"""The registry of models: `ModelEntry` and its repository `Models`.

A repository wraps the connection of one transaction: `database.read(lambda db: Models(db).all())`. Invariant: names
and paths are unique, names in any case, so that a reference means one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
from lathe.store.errors import NotFound, StoreError
from lathe.store.rows import from_row, to_row
from msgspec.structs import replace

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

ModelFormat = Literal["gguf", "safetensors", "onnx", "ggml", "remote"]


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model the workspace knows."""

    id: str
    """First 12 hex digits of sha256 over (path, size, mtime); stable while the file is untouched."""
    name: str
    path: str
    """File, or folder for checkpoints; the first shard for sharded GGUF."""
    format: ModelFormat
    bytes: int
    sha256: str | None = None
    """None until hashed in the background; for folders the hash over its sorted (name, sha256) list."""
    origin: Literal["made", "embedded", "linked", "hf-cache", "ollama", "lm-studio", "remote"] = "linked"
    """`made`: Lathe wrote it, and `rm` may delete it."""
    parent: str | None = None
    """Id of the model it was converted or quantized from."""
    recipe: dict[str, float | int | str | bool | None] = {}
    added_at: float = 0.0
    verified_at: float | None = None
    missing: bool = False
    """The file was not there at the last look."""
    card: dict[str, object] = {}
    """`lathe.quantize.card.ModelCard` as plain data: a cache of the header, rebuilt by scan."""
    measured: dict[str, float | int | str | None] = {}
    """Figures measured on this machine: perplexity, tokens_per_s, ttft_s, ..."""
    tags: tuple[str, ...] = ()


_NESTED = ("recipe", "card", "measured", "tags")
_PREFIX = 4
"""Shortest part of an id that stands for the whole."""


class Models:
    """The registry, within one transaction of a store."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._table = db.table("models")

    def all(self) -> list[ModelEntry]:
        """Every model, by name."""
        return self._where("1 ORDER BY name COLLATE NOCASE, name")

    def get(self, model_id: str) -> ModelEntry:
        """One model by its whole id; raises NotFound."""
        for entry in self._where("id = ?", model_id):
            return entry
        raise NotFound(f"no model has the id {model_id!r}", hint="`lathe models list` shows every model")

    def by_path(self, path: str) -> ModelEntry | None:
        """The model that lies at a path."""
        return next(iter(self._where("path = ?", path)), None)

    def find(self, reference: str) -> list[ModelEntry]:
        """Models that a reference names: by name, else path, else id or its beginning, else name in any case.

        More than one answer means that the reference is ambiguous.
        """
        for condition in ("name = ?", "path = ?", "id = ?"):
            if found := self._where(condition, reference):
                return found
        if len(reference) >= _PREFIX and (found := self._where("substr(id, 1, ?) = ?", len(reference), reference)):
            return found
        return self._where("name = ? COLLATE NOCASE ORDER BY name", reference)

    def children(self, model_id: str) -> list[str]:
        """Ids of the models made from one, by name."""
        return [entry.id for entry in self._where("parent = ? ORDER BY name", model_id)]

    def pending_hash(self) -> list[ModelEntry]:
        """Models that are there and not hashed yet, smallest first."""
        return self._where("sha256 IS NULL AND missing = 0 AND format != 'remote' ORDER BY bytes, name")

    def put(self, entry: ModelEntry) -> ModelEntry:
        """Enter a model, or bring the one at its path up to date; returns what now stands.

        An untouched file keeps what was learned about it. A changed file is another model that inherits the name and
        the tags only, unless its hash proves that the bytes are the same: then it also inherits everything else and
        the children.
        """
        old = self.by_path(entry.path)
        if old is not None:
            same_bytes = old.id == entry.id or (entry.sha256 is not None and entry.sha256 == old.sha256)
            entry = _merge(old, entry) if same_bytes else replace(entry, name=old.name, tags=entry.tags or old.tags)
            self._db.execute("DELETE FROM models WHERE path = ?", [entry.path])
            if same_bytes and old.id != entry.id:
                self._db.execute("UPDATE models SET parent = ? WHERE parent = ?", [entry.id, old.id])
        entry = replace(entry, name=self._free_name(entry.name, entry.id))
        self._table.insert(to_row(entry, _NESTED))
        return entry

    def rename(self, model_id: str, name: str) -> ModelEntry:
        """Give a model another name; raises StoreError where another model has it."""
        entry = replace(self.get(model_id), name=name)
        if any(other.id != model_id for other in self._where("name = ? COLLATE NOCASE", name)):
            raise StoreError(f"another model is called {name!r}", hint="choose another name")
        return self._save(entry)

    def tag(self, model_id: str, tags: tuple[str, ...]) -> ModelEntry:
        """Replace a model's tags."""
        return self._save(replace(self.get(model_id), tags=tuple(dict.fromkeys(tags))))

    def measure(self, model_id: str, figures: Mapping[str, float | int | str | None]) -> ModelEntry:
        """Merge figures measured on this machine into a model's; infinite ones are kept as unknown."""
        entry = self.get(model_id)
        self._save(replace(entry, measured={**entry.measured, **figures}))
        return self.get(model_id)

    def hashed(self, model_id: str, sha256: str, verified_at: float | None = None) -> ModelEntry:
        """Note a model's hash, and when it was compared with the recorded one."""
        entry = self.get(model_id)
        return self._save(replace(entry, sha256=sha256, verified_at=verified_at or entry.verified_at))

    def mark_missing(self, model_id: str, missing: bool) -> ModelEntry:
        """Note whether a model's file was there at the last look."""
        return self._save(replace(self.get(model_id), missing=missing))

    def remove(self, model_id: str) -> ModelEntry:
        """Forget a model; its files and its children stay."""
        entry = self.get(model_id)
        self._db.execute("DELETE FROM models WHERE id = ?", [model_id])
        return entry

    def _where(self, condition: str, *values: object) -> list[ModelEntry]:
        rows = self._db.query(f"SELECT * FROM models WHERE {condition}", values)  # noqa: S608 - conditions are ours
        return [from_row(ModelEntry, row, "models", _NESTED) for row in rows]

    def _save(self, entry: ModelEntry) -> ModelEntry:
        self._table.update(entry.id, to_row(entry, _NESTED))
        return entry

    def _free_name(self, wanted: str, model_id: str) -> str:
        """The wanted name, or the first of `wanted-2`, `wanted-3`, ... that no other model has."""
        name, number = wanted, 1
        while any(other.id != model_id for other in self._where("name = ? COLLATE NOCASE", name)):
            number += 1
            name = f"{wanted}-{number}"
        return name


def _merge(old: ModelEntry, new: ModelEntry) -> ModelEntry:
    """The same bytes seen again: what was learned stays, what the file says of itself is refreshed."""
    made_here = new.origin in ("made", "embedded")
    return replace(
        new,
        name=old.name,
        sha256=new.sha256 or old.sha256,
        origin=new.origin if made_here else old.origin,
        parent=new.parent or old.parent,
        recipe=new.recipe or old.recipe,
        added_at=old.added_at,
        verified_at=new.verified_at or old.verified_at,
        measured={**old.measured, **new.measured},
        tags=new.tags or old.tags,
    )
