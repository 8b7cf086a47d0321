"""Walking folders of models: every folder once, nothing opened, every oddity reported and passed by.

Invariant: the walk ends whatever the tree looks like (loops of links, bind mounts, millions of folders), and a file
that is not a regular one is never opened, because opening a pipe or a device may never return.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

MAX_DEPTH = 12
"""Folders below a root; deeper ones are reported."""
MAX_FOLDERS = 50_000
MAX_FILES = 20_000
"""Files looked at in one folder."""

Origin = Literal["linked", "hf-cache", "ollama", "lm-studio", "embedded"]

WEIGHT_SUFFIXES = frozenset({".gguf", ".safetensors", ".onnx", ".ggml", ".bin"})
_PART_SUFFIXES = frozenset({".json", ".jinja", ".model", ".tiktoken", ".vocab", ".onnx_data", ".data"})
_PART_NAMES = frozenset({"merges.txt", "vocab.txt"})

_PSEUDO = frozenset({"/proc", "/sys", "/dev", "/run"})


class Place(NamedTuple):
    """A folder to look into."""

    path: Path
    origin: Origin = "linked"


class Problem(msgspec.Struct, frozen=True):
    """Something a scan met and passed by."""

    path: str
    """Printable stand-in where the real name is not text."""
    code: str
    message: str


class File(NamedTuple):
    """A regular file as it was at one look."""

    path: Path
    size: int
    mtime_ns: int
    inode: tuple[int, int]
    """Device and number: the same for every link to the same bytes."""


class Folder(NamedTuple):
    """One folder with those of its files that may belong to a model, by name."""

    path: Path
    origin: Origin
    files: tuple[File, ...]
    folders: tuple[str, ...]

    def names(self) -> set[str]:
        """The names of its files."""
        return {file.path.name for file in self.files}


def walk(places: Sequence[Place], is_leaf: Callable[[Folder], bool]) -> Iterator[Folder | Problem]:
    """Yield every folder at and below some places, parents first, in order of name.

    Links to folders are followed, each folder is visited once, and nothing below a folder that `is_leaf`.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(place.path, place.origin, 0) for place in reversed(places)]
    visited = 0
    while waiting:
        path, origin, depth = waiting.pop()
        if str(path) in _PSEUDO:
            continue
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
            listing = _list(path, origin)
        except OSError as error:
            yield problem(path, error)
            continue
        visited += 1
        if visited > MAX_FOLDERS:
            yield Problem(printable(path), "E_SCAN_LIMIT", f"stopped after {MAX_FOLDERS:,} folders: name smaller roots")
            return
        folder, troubles = listing
        yield from troubles
        yield folder
        if is_leaf(folder):
            continue
        below = [path / name for name in reversed(folder.folders) if not name.startswith(".")]
        if depth < MAX_DEPTH:
            waiting.extend((child, origin, depth + 1) for child in below)
        elif below:
            yield Problem(printable(path), "E_SCAN_LIMIT", f"folders below {MAX_DEPTH} levels are not searched")


def is_part(name: str) -> bool:
    """Tell what belongs to a model beside its weights; README and the like do not, so editing them changes no hash."""
    return suffix_of(name) in _PART_SUFFIXES or name in _PART_NAMES


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case; a Path for each of a million unrelated files would cost more."""
    head, _, tail = name.rpartition(".")
    return f".{tail.lower()}" if head else ""


def list_folder(path: Path, origin: Origin = "linked") -> Folder:
    """One folder alone; raises OSError."""
    return _list(path, origin)[0]


def look_at(path: Path) -> File:
    """One file, links followed.

    Raises OSError, also where it is there but not a regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a special file, not a model", str(path))
    return File(path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def problem(path: Path, error: OSError) -> Problem:
    """An error of the operating system as a row."""
    code = {"FileNotFoundError": "E_NOT_FOUND", "PermissionError": "E_PERMISSION"}.get(type(error).__name__, "E_IO")
    return Problem(printable(path), code, error.strerror or str(error))


def printable(path: Path) -> str:
    """A path as text, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _list(path: Path, origin: Origin) -> tuple[Folder, list[Problem]]:
    files: list[File] = []
    folders: list[str] = []
    problems: list[Problem] = []
    with os.scandir(path) as entries:
        for entry in entries:
            is_weights = suffix_of(entry.name) in WEIGHT_SUFFIXES
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_weights or is_part(entry.name):
                    files.append(look_at(path / entry.name))
            except OSError as error:
                if is_weights:
                    problems.append(problem(path / entry.name, error))
            if len(files) >= MAX_FILES:
                message = f"more than {MAX_FILES:,} files of models in one folder; the rest was not read"
                problems.append(Problem(printable(path), "E_SCAN_LIMIT", message))
                break
    files.sort()
    return Folder(path, origin, tuple(files), tuple(sorted(folders))), problems
