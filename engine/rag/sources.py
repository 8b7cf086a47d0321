"""Which files a store is made of: the walk over folders, and the names that files are cited by.

Invariant: nothing is opened here; what is not a regular file (a pipe, a device, a broken link) is reported and never
read, and a link to a folder is not followed, so that no loop exists.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from lathe.engine.errors import MissingError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
"""Besides hidden ones: never what a person means by documents."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A file that belongs to a store."""

    path: Path
    name: str
    """As it is cited: `FOLDER/inside/file.md`."""
    source: str
    """The folder or file given, absolute."""
    size: int = 0
    mtime_ns: int = 0
    problem: str = ""
    """Why it is not read, where it is not."""


def source_names(sources: Sequence[str]) -> dict[str, str]:
    """Short, distinct names of sources: the last part of the path, with more of it where two are alike."""
    names: dict[str, str] = {}
    for source in sources:
        parts = [part for part in Path(source).parts if part != os.sep] or ["root"]
        length = 1
        while (name := "/".join(parts[-length:])) in names.values() and length < len(parts):
            length += 1
        names[source] = shown(name)
    return names


def walk(source: str, name: str) -> Iterator[Found]:
    """The files of one source, in the order of their names.

    Raises:
        MissingError: the source itself is not there.
    """
    root = Path(source)
    if root.is_dir():
        yield from _folder(root, source, name)
    elif root.exists() or root.is_symlink():
        yield _found(root, source, name)
    else:
        raise MissingError(f"{shown(source)} is not there", hint="check the path")


def _folder(root: Path, source: str, name: str) -> Iterator[Found]:
    unreadable: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=unreadable.append):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _SKIPPED_FOLDERS)
        for file in sorted(files):
            if not file.startswith("."):
                path = Path(folder, file)
                yield _found(path, source, f"{name}/{shown(path.relative_to(root).as_posix())}")
        while unreadable:
            error = unreadable.pop()
            path = Path(os.fsdecode(error.filename))
            inside = shown(path.relative_to(root).as_posix()) if path != root else "."
            yield Found(
                path=path, name=f"{name}/{inside}", source=source, problem=error.strerror or "the folder is unreadable"
            )


def _found(path: Path, source: str, name: str) -> Found:
    try:
        facts = path.stat()
    except OSError as error:
        return Found(path=path, name=name, source=source, problem=error.strerror or str(error))
    if not stat.S_ISREG(facts.st_mode):
        return Found(path=path, name=name, source=source, problem="it is not a regular file")
    return Found(path=path, name=name, source=source, size=facts.st_size, mtime_ns=facts.st_mtime_ns)


def shown(name: str) -> str:
    """A file name as text that can be stored: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
