"""The registry of models as the engine uses it: references become entries, jobs' outcomes become rows.

Calls block on the disk for milliseconds, so the event loop calls them in a thread; `known` alone does not. Invariant:
a reference names one model or raises an error that says which ones it could mean.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urldefrag

import msgspec
from lathe.engine.catalogue import register, removal
from lathe.engine.catalogue.naming import clean
from lathe.engine.catalogue.references import meant
from lathe.engine.catalogue.remotes import KEY, checked, remote_path
from lathe.engine.catalogue.scan import current_id, identify
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import LatheError, MissingError, UsageError, describe
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import Step
from lathe.engine.workbench import ModelAlias, ModelDetails
from lathe.quantize.card import ModelCard
from lathe.quantize.cards import read_card
from lathe.quantize.errors import QuantizeError
from lathe.store.aliases import Alias, Aliases
from lathe.store.database import Database
from lathe.store.errors import StoreError
from lathe.store.hashes import Hashes
from lathe.store.models import ModelEntry, Models

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


REMEMBERED = 256
"""References whose models are remembered; clients choose the names, so there is a bound."""


class Catalogue:
    """The models of one workspace."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now
        self._known: dict[str, tuple[int, ModelEntry]] = {}
        """Reference -> the database's count of commits when it was resolved, and what it meant."""

    def all(self) -> list[ModelEntry]:
        """Every model, by name."""
        return self._database.read(lambda db: Models(db).all())

    def resolve(self, reference: str) -> ModelEntry:
        """The model that a name, an id, its beginning or a path means; a model at a new path is entered.

        Raises MissingError with near names, UsageError where it means several, DataError and the errors of formats
        where the path holds no usable model.
        """
        if not _is_text(reference):
            raise self._missing(reference)
        commits = self._database.commits
        found = self._database.read(lambda db: meant(db, reference))
        if len(found) == 1:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[reference] = (commits, found[0])
            return found[0]
        if found:
            names = ", ".join(entry.name for entry in found[:5])
            raise UsageError(f"{reference!r} means {len(found)} models", hint=f"name one of them: {names}")
        path = _as_path(reference)
        if path is not None:
            return self._adopt(path)
        raise self._missing(reference)

    def known(self, reference: str) -> ModelEntry | None:
        """What `resolve` would return, where it did since anything was last written; does not block."""
        commits, entry = self._known.get(reference, (-1, None))
        return entry if commits == self._database.commits else None

    def enter_embedded(self) -> ModelEntry:
        """Make sure that the model which travels with Lathe is known, and only where this installation has it."""
        left = [
            entry.id
            for entry in self._database.read(lambda db: Models(db).all())
            if entry.origin == "embedded" and entry.path != str(CHECKPOINT) and not Path(entry.path).exists()
        ]
        if left:
            self._database.write(lambda db: [Models(db).remove(model_id) for model_id in left]).result()
        known = self._database.read(lambda db: Models(db).by_path(str(CHECKPOINT)))
        if known is None or known.origin != "embedded" or current_id(known) != known.id:
            entry = msgspec.structs.replace(identify(CHECKPOINT), origin="embedded", added_at=self._now())
            known = self._database.write(lambda db: Models(db).put(entry)).result()
        if (
            left
            and known.name != CHECKPOINT.name
            and not self._database.read(lambda db: Models(db).find(CHECKPOINT.name))
        ):
            model_id = known.id
            known = self._database.write(lambda db: Models(db).rename(model_id, CHECKPOINT.name)).result()
        return known

    def details(self, reference: str) -> ModelDetails:
        """One model with its header, its children, and what is wrong with its file if anything is."""
        entry = self.resolve(reference)
        children = tuple(self._database.read(lambda db: Models(db).children(entry.id)))
        card = msgspec.convert(entry.card, ModelCard) if entry.card else None
        problem = None
        try:
            if entry.format != "remote" and (current_id(entry) != entry.id or card is None):
                card = read_card(Path(entry.path))
        except (QuantizeError, LatheError, OSError) as error:
            problem = describe(error)
        card = card or ModelCard(format=entry.format)
        return ModelDetails(entry=entry, card=card, children=children, problem=problem)

    def rename(self, reference: str, name: str) -> ModelEntry:
        """Give a model another name, which its aliases follow; raises UsageError where the name is taken or no name."""
        entry = self.resolve(reference)

        def work(db: Connection) -> ModelEntry:
            renamed = Models(db).rename(entry.id, _name(name))
            Aliases(db).follow(entry.name, name)
            return renamed

        try:
            return self._database.write(work).result()
        except StoreError as error:
            raise UsageError(error.message, hint=error.hint) from error

    # -- aliases and remote models -------------------------------------------------------------------------------
    def aliases(self) -> list[ModelAlias]:
        """Every alias and every remote model, by name."""
        kept = [ModelAlias(name=alias.name, target=alias.target) for alias in self._aliases()]
        kept += [_remote(entry) for entry in self.all() if entry.origin == "remote"]
        return sorted(kept, key=lambda alias: alias.name.casefold())

    def set_alias(self, alias: ModelAlias) -> ModelAlias:
        """Let a name stand for a model, in place of what it stood for; raises UsageError where a model has it."""
        if alias.remote:
            return _remote(self._enter_remote(alias))
        target = self.resolve(alias.target)
        if target.name == alias.name:
            raise UsageError(f"{alias.name} cannot stand for itself", hint="name another model")
        kept = Alias(name=_name(alias.name), target=target.name, set_at=self._now())

        def work(db: Connection) -> Alias:
            # The name of a remote model is an alias, too, which may come home.
            for entry in Models(db).find(kept.name):
                if entry.origin == "remote" and entry.name == kept.name:
                    Models(db).remove(entry.id)
                    Aliases(db).follow(kept.name, kept.target)
            return Aliases(db).put(kept)

        try:
            self._database.write(work).result()
        except StoreError as error:
            raise UsageError(error.message, hint=error.hint) from error
        return ModelAlias(name=kept.name, target=kept.target)

    def remove_alias(self, name: str) -> ModelAlias:
        """Forget an alias or a remote model; raises NotFound where there is neither."""

        def work(db: Connection) -> ModelAlias:
            for entry in Models(db).find(name):
                if entry.origin == "remote" and entry.name == name:
                    Models(db).remove(entry.id)
                    Aliases(db).forget(name)
                    return _remote(entry)
            removed = Aliases(db).remove(name)
            return ModelAlias(name=removed.name, target=removed.target)

        return self._database.write(work).result()

    def _aliases(self) -> list[Alias]:
        return self._database.read(lambda db: Aliases(db).all())

    def _enter_remote(self, alias: ModelAlias) -> ModelEntry:
        """Enter a model of an OpenAI-compatible server, or change the one of that name.

        Raises:
            UsageError: the URL or the key's reference is none, or a model that is no remote one has the name.
        """
        name, path = _name(alias.name), remote_path(alias.target, alias.model)
        recipe: dict[str, float | int | str | bool | None] = {} if alias.key is None else {KEY: checked(alias.key)}
        entry = ModelEntry(
            id=hashlib.sha256(f"{path}\0{alias.key}".encode()).hexdigest()[:12], name=name, path=path, format="remote",
            bytes=0, origin="remote", recipe=recipe, added_at=self._now(),
        )  # fmt: skip

        def work(db: Connection) -> ModelEntry:
            models = Models(db)
            for old in models.all():
                same = old.name.casefold() == name.casefold()
                if same and old.origin != "remote":
                    raise StoreError(f"a model is called {old.name!r}", hint="choose another name, or rename the model")
                if same or old.path == path:
                    models.remove(old.id)
            Aliases(db).follow(name, name)
            return models.put(entry)

        try:
            return self._database.write(work).result()
        except StoreError as error:
            raise UsageError(error.message, hint=error.hint) from error

    def tag(self, reference: str, tags: tuple[str, ...]) -> ModelEntry:
        """Replace a model's tags."""
        entry = self.resolve(reference)
        wanted = tuple(clean(tag) for tag in tags)
        return self._database.write(lambda db: Models(db).tag(entry.id, wanted)).result()

    def remove(self, reference: str, *, delete_files: bool = False, force: bool = False) -> list[str]:
        """Forget a model and, when asked, delete its files; returns the paths deleted.

        Raises PolicyError as `removal.deletable` does. Files go first: a crash in between leaves a row that says
        `missing`, never files that nobody knows.
        """
        entry = self.resolve(reference)
        deleted = removal.delete(entry, removal.deletable(entry, force=force)) if delete_files else []

        def work(db: Connection) -> None:
            Models(db).remove(entry.id)
            Aliases(db).forget(entry.name)
            Hashes(db).forget(entry.path)

        self._database.write(work).result()
        return deleted

    def register(self, step: Step, outcome: Outcome) -> list[ModelEntry]:
        """Enter what a finished step found, made or measured; returns the entries that are new or changed."""
        return register.register(self._database, step, outcome, self._now())

    def _adopt(self, path: Path) -> ModelEntry:
        entry = msgspec.structs.replace(identify(path), added_at=self._now())
        known = self._database.read(lambda db: Models(db).by_path(entry.path))
        if known is not None and known.id == entry.id:
            return known
        return self._database.write(lambda db: Models(db).put(entry)).result()

    def _missing(self, reference: str) -> MissingError:
        names = {entry.name.casefold(): entry.name for entry in self.all()}
        names |= {alias.name.casefold(): alias.name for alias in self._aliases()}
        near = [names[name] for name in difflib.get_close_matches(reference.casefold(), names, n=3, cutoff=0.5)]
        near += [name for folded, name in names.items() if reference.casefold() in folded and name not in near][:3]
        hint = f"did you mean {', '.join(near[:3])}?" if near else "`lathe models scan` finds what is on this machine"
        return MissingError(f"no model is called {reference!r}", hint=hint)


def _name(name: str) -> str:
    if clean(name) != name:
        raise UsageError(f"{name!r} cannot be a name", hint=f"{clean(name)!r} could")
    return name


def _remote(entry: ModelEntry) -> ModelAlias:
    url, model = urldefrag(entry.path)
    key = entry.recipe.get(KEY)
    return ModelAlias(name=entry.name, target=url, model=model, key=key if isinstance(key, str) else None)


def _is_text(reference: str) -> bool:
    try:
        reference.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in reference


def _as_path(reference: str) -> Path | None:
    """The path a reference names, if something is there or it can be nothing but a path."""
    try:
        path = Path(reference).expanduser()
        if path.exists() or reference.startswith(("/", "./", "../", "~")):
            return path
    except (OSError, RuntimeError):  # too long; the home of somebody who does not exist
        pass
    return None
