"""The sources of a store, and the names that their files are cited by: `FOLDER/inside/file.md`.

Invariant: a name says which file it means as long as the store has the same sources in the same order; a file below
two of them belongs to the first folder that holds it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lathe.engine.catalogue.walk import printable
from lathe.engine.errors import MissingError


class Source(NamedTuple):
    """One folder or file."""

    given: str
    """As the store remembers it."""
    name: str
    """The short name in front of its files."""
    root: Path
    """Where it really is."""


class Sources:
    """What one build reads."""

    def __init__(self, given: Sequence[str]) -> None:
        names = source_names(given)
        self._sources = [Source(source, names[source], Path(os.path.realpath(source))) for source in given]

    @property
    def roots(self) -> list[Path]:
        """Where to walk."""
        return [source.root for source in self._sources]

    @property
    def given(self) -> list[str]:
        """The sources as the store's rows name them."""
        return [printable(Path(source.given)) for source in self._sources]

    def check(self) -> None:
        """See that every source is there.

        Raises:
            MissingError: one is not; what was read from it before is better kept than taken for deleted.
        """
        for source in self._sources:
            if not source.root.exists():
                raise MissingError(f"{printable(Path(source.given))} is not there", hint="check the path")

    def cite(self, path: str) -> tuple[str, str]:
        """The name and the source of a file by its whole path."""
        folder = next((s for s in self._sources if path.startswith(_text(s.root).rstrip("/") + "/")), None)
        found = folder or next((s for s in self._sources if path == _text(s.root)), None)
        if found is None:
            return path, ""
        return found.name + path[len(_text(found.root)) :], printable(Path(found.given))

    def path_of(self, name: str, source: str) -> str | None:
        """The whole path of a file by its name; None where its source is called otherwise by now."""
        for one in self._sources:
            if printable(Path(one.given)) == source and (name == one.name or name.startswith(one.name + "/")):
                return _text(one.root) + name[len(one.name) :]
        return None


def source_names(sources: Sequence[str]) -> dict[str, str]:
    """Short, distinct names of sources: the last part of the path, with more of it where two are alike."""
    names: dict[str, str] = {}
    for source in sources:
        parts = [part for part in Path(source).parts if part != os.sep] or ["root"]
        length = 1
        while (name := printable(Path(*parts[-length:]))) in names.values() and length < len(parts):
            length += 1
        names[source] = name
    return names


def _text(path: Path) -> str:
    return printable(path)
