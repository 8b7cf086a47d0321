"""Walking folders of documents: every file once, in order of name, nothing opened, every oddity a row.

Invariant: the walk ends whatever the tree looks like, never leaves the roots it was given (a link that points out of
them would carry foreign files into a store), and names each folder it could not list, so that nothing below is taken
for deleted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lathe.engine.catalogue.walk import printable
from lathe.engine.errors import describe
from lathe.engine.rag.ingest.errors import NotADocument, TooMuch
from lathe.engine.rag.ingest.values import FileProblem

MAX_DEPTH = 64
MAX_FILES = 5_000_000
_PASSED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_PSEUDO = frozenset({"/proc", "/sys", "/dev", "/run"})
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Found(NamedTuple):
    """A regular file to read."""

    path: Path
    name: str
    """The path as text: what it is called in a store."""
    file_bytes: int
    modified_ns: int


class Unlisted(NamedTuple):
    """A folder, or a root, whose files are not known; comes with a problem."""

    prefix: str
    problem: FileProblem


def walk(roots: Sequence[Path]) -> Iterator[Found | FileProblem | Unlisted]:
    """Yield every file at and below the roots; dot names and folders of dependencies are passed by."""
    walker = _Walk([Path(os.path.realpath(root)) for root in roots])
    for root, real in zip(roots, walker.roots, strict=True):
        yield from walker.root(Path(root), real)


class _Walk:
    def __init__(self, roots: list[Path]) -> None:
        self.roots = roots
        self._seen: set[tuple[int, int]] = set()
        self._files = 0

    def root(self, given: Path, real: Path) -> Iterator[Found | FileProblem | Unlisted]:
        """One root: a folder or a single file."""
        try:
            status = real.stat()
        except OSError as error:
            yield Unlisted(printable(real), problem(given, error))
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self._below(real, status)
        elif not any(other in real.parents for other in self.roots):
            yield from self._file(real, status)

    def _below(self, root: Path, status: os.stat_result) -> Iterator[Found | FileProblem | Unlisted]:
        waiting = [(root, status, 0)]
        while waiting:
            folder, status, depth = waiting.pop()
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen or str(folder) in _PSEUDO:
                continue
            self._seen.add(identity)
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries)
            except OSError as error:
                yield Unlisted(printable(folder), problem(folder, error))
                continue
            folders = []
            for name in names:
                if _is_passed(name):
                    continue
                found = self._entry(folder / name)
                if isinstance(found, tuple):
                    if depth >= MAX_DEPTH:
                        limit = TooMuch(f"folders below {MAX_DEPTH} levels are not read")
                        yield Unlisted(printable(found[0]), problem(found[0], limit))
                    else:
                        folders.append((*found, depth + 1))
                else:
                    yield from found
            waiting.extend(reversed(folders))

    def _entry(self, path: Path) -> tuple[Path, os.stat_result] | Iterator[Found | FileProblem]:
        """A folder to go into, or what one name amounts to."""
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                real = Path(os.path.realpath(path, strict=True))
                root = next((root for root in self.roots if real == root or root in real.parents), None)
                if root is None:
                    return iter((problem(path, NotADocument("a link that leads out of the folder")),))
                path, status = real, real.stat()
                if not stat.S_ISDIR(status.st_mode) and not any(map(_is_passed, real.relative_to(root).parts)):
                    return iter(())  # the walk meets it under its own name
        except OSError as error:
            return iter((problem(path, error),))
        if stat.S_ISDIR(status.st_mode):
            return path, status
        return self._file(path, status)

    def _file(self, path: Path, status: os.stat_result) -> Iterator[Found | FileProblem]:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:
            yield problem(path, NotADocument(f"{kind}, not a document"))
            return
        self._files += 1
        if self._files == MAX_FILES + 1:
            yield problem(path, TooMuch(f"only the first {MAX_FILES:,} files are read", hint="name smaller folders"))
        elif self._files <= MAX_FILES:
            yield Found(path, printable(path), status.st_size, status.st_mtime_ns)


def _is_passed(name: str) -> bool:
    return name.startswith(".") or name in _PASSED_FOLDERS


def problem(path: Path, error: Exception) -> FileProblem:
    """A row for a file that was not read."""
    skipped = isinstance(error, NotADocument)
    return FileProblem(path=printable(path), failure=describe(error), kind="skipped" if skipped else "failed")
