"""New folders appear whole or not at all: filled under another name, fsynced, renamed when they are complete.

The part is named and locked as that of a file (`lathe.quantize.artefact`), so what a crash leaves behind is collected
with the others. Invariant: only a folder that holds a model, and nothing else, is ever replaced, only with `force`, and
never one that an input lies in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lathe.quantize.errors import OutputError

_PROOF = ("config.json", "model.onnx")
"""A folder with one of these is a model's and may be replaced."""
_PARTS = re.compile(r".+\.(json|safetensors|onnx|onnx[_.]data|model|jinja)|(vocab|merges)\.txt")
"""Files that such a folder is made of; one with others has something of the user's in it."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def new_folder(path: Path, *, inputs: Iterable[Path] = (), force: bool = False, own: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill; give it its name on a clean exit, remove it on any exception.

    Args:
        own: the folder is the workspace's, and nobody else puts anything there.

    Raises `OutputError` when `path` is or holds one of `inputs`, exists without `force`, holds anything but a model, or
    cannot be written.
    """
    _refuse_existing(path, inputs, force=force, own=own)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    lock = -1
    try:
        part.mkdir()
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # no locks on this file system: the pid alone protects the part
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield part
        for file in part.rglob("*"):
            _sync(file)
        if path.exists():
            path.rename(old)
        part.rename(path)
        _sync(path.parent)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        if error.errno in _FULL:
            raise OutputError(
                f"no space left while writing {path}", hint="free disk space and run it again", code="E_DISK_FULL"
            ) from error
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if lock >= 0:
            os.close(lock)
        for folder in (part, old):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


def _refuse_existing(path: Path, inputs: Iterable[Path], *, force: bool, own: bool) -> None:
    if not os.path.lexists(path):
        return
    target = path.resolve()
    for source in inputs:
        if source.resolve().is_relative_to(target):
            what = "is the input" if source.resolve() == target else f"holds the input {source.name}"
            raise OutputError(f"the output {path} {what}", hint="choose another output", code="E_OUTPUT_IS_INPUT")
    if not force:
        raise OutputError(f"the output {path} exists", hint="choose another, or force it", code="E_OUTPUT_EXISTS")
    if own:
        return
    if not (path.is_dir() and any((path / name).is_file() for name in _PROOF)):
        raise OutputError(f"the output {path} is no checkpoint folder: it is not replaced")
    if (foreign := _foreign(path)) is not None:
        raise OutputError(
            f"the output {path} holds {foreign.relative_to(path)}, which is no part of a model: it is not replaced",
            hint="move that away, or choose another output",
        )


def _foreign(folder: Path) -> Path | None:
    """A file below that no export would have written."""
    for root, _, names in os.walk(folder):
        for name in names:
            if _PARTS.fullmatch(name) is None:
                return Path(root, name)
    return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
