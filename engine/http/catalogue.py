"""Which models the server offers, and what a client's `model` means.

Clients name models by registered name or id; a path never reaches the workbench, so a request cannot make the engine
open a file. Invariant: a model outside a key's allow-list looks exactly like one that does not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from difflib import get_close_matches

from lathe.engine.http.problems import Problem
from lathe.engine.workbench import Workbench
from lathe.store.models import ModelEntry

FRESH_S = 1.0
SERVABLE = frozenset({"gguf", "onnx", "ggml", "remote"})


class Catalogue:
    """The offered models, read again when older than a second."""

    def __init__(
        self,
        workbench: Workbench,
        offered: frozenset[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workbench = workbench
        self._offered = offered
        """Ids; None: every registered model."""
        self._clock = clock
        self._entries: list[ModelEntry] = []
        self._aliases: dict[str, str] = {}
        """Alias -> name of its model."""
        self._read_at: float | None = None

    async def entries(self, allowed: frozenset[str] = frozenset()) -> list[ModelEntry]:
        """Return what a key with this allow-list may see, by name."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= FRESH_S:
            found = await self._workbench.models()
            self._entries = [entry for entry in found if self._serves(entry)]
            names = {entry.name for entry in self._entries}
            aliases = await self._workbench.aliases()
            self._aliases = {alias.name: alias.target for alias in aliases if alias.target in names}
            self._read_at = now
        if not allowed:
            return self._entries
        named = allowed | {target for alias, target in self._aliases.items() if alias in allowed}
        return [entry for entry in self._entries if entry.name in named or entry.id in named]

    async def aliases(self, allowed: frozenset[str] = frozenset()) -> list[tuple[str, ModelEntry]]:
        """Return the other names under which such a key may use models."""
        entries = {entry.name: entry for entry in await self.entries(allowed)}
        return [(alias, entries[target]) for alias, target in self._aliases.items() if target in entries]

    async def find(self, reference: str | None, allowed: frozenset[str] = frozenset()) -> ModelEntry:
        """Return the model a client means; without a name, the only one there is.

        Raises:
            Problem: 404 for an unknown name, 400 where a name is needed.
        """
        entries = await self.entries(allowed)
        if not reference:
            return await self._only(entries)
        named = dict(await self.aliases(allowed))
        for name in (reference, reference.removesuffix(":latest")):
            for entry in entries:
                if name in (entry.name, entry.id):
                    return entry
            if name in named:
                return named[name]
        near = get_close_matches(reference[:100], [*(entry.name for entry in entries), *named], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Problem(404, f"no model '{reference[:100]}' is served here{hint}", param="model", code="model_not_found")

    async def _only(self, entries: list[ModelEntry]) -> ModelEntry:
        if len(entries) > 1:
            loaded = {worker.model_id for worker in (await self._workbench.snapshot()).workers}
            entries = [entry for entry in entries if entry.id in loaded]
        if len(entries) != 1:
            message = "name a model: none is served here, or more than one"
            raise Problem(400, message, param="model", code="missing_required_parameter")
        return entries[0]

    def _serves(self, entry: ModelEntry) -> bool:
        if entry.missing or entry.format not in SERVABLE or entry.card.get("adapter"):
            return False
        return self._offered is None or entry.id in self._offered
