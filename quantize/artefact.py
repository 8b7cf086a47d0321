"""New files appear whole or not at all: a part file beside the output, fsynced and renamed when it is complete.

A part is named `<output>.<pid>.part` and locked (`flock`) by its owner, so that what a crash leaves behind can be told
from a write that is still running: the kernel drops the lock with the process, the name says that the file is ours
(browsers leave `.part` files too), and the pid is the second witness should a writer have replaced the locked inode.
Invariant: the final name never shows bytes that were not completed and fsynced, and no input is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from lathe.quantize.errors import OutputError
from lathe.quantize.progress import Report, silent

HEADROOM = 1.1
"""Free space asked for, as a multiple of the expected size: metadata, alignment, a journal."""

_PART_NAME = re.compile(r"(?P<output>.+)\.(?P<pid>[1-9][0-9]*)\.part", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 1 << 20


@contextmanager
def new_artefact(
    path: Path, *, inputs: Iterable[Path] = (), expected_bytes: int | None = None, force: bool = False
) -> Iterator[Path]:
    """Yield the part file to write; publish it as `path` on a clean exit, remove it on any exception.

    `inputs` are all files that are read while `path` is written (every shard). Raises `OutputError` when `path` is one
    of them, exists without `force`, is being written by another process, cannot be created, or does not fit.
    """
    refuse_existing(path, tuple(inputs), force=force)
    require_space(path.parent, expected_bytes)
    part, lock = _claim(path)
    try:
        yield part
        _sync(part)
        refuse_existing(path, force=force)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise OutputError(
                f"no space left while writing {path}", hint="free disk space and run it again", code="E_DISK_FULL"
            ) from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def file_sha256(path: Path, progress: Report | None = None) -> str:
    """Hash a file in constant memory; `progress` hears bytes."""
    report = progress or silent
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        done = 0
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            report(f"sha256 {path.name}", done, total, "B")
    return digest.hexdigest()


def collect_parts(folder: Path) -> list[Path]:
    """Find the parts in `folder`, files or folders, whose writer is gone; safe to remove, sorted by name.

    What does not carry our name is never listed, nor is anything on a file system that has no locks; a folder that
    cannot be read, or is none, holds none of ours.
    """
    try:
        return sorted(entry for entry, name in _parts(folder) if _stale(entry, name))
    except OSError:
        return []


def remove_part(part: Path) -> None:
    """Remove what `collect_parts` listed."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def refuse_existing(path: Path, inputs: tuple[Path, ...] = (), *, force: bool) -> None:
    """Raise `OutputError` where `new_artefact` will; for work that takes long before it has something to write."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(FileNotFoundError):  # a dangling link is nobody's input
        there = path.stat()
        for source in inputs:
            if os.path.samestat(there, source.stat()):
                raise OutputError(
                    f"the output {path} is the input {source}", hint="choose another output", code="E_OUTPUT_IS_INPUT"
                )
        if not stat.S_ISREG(there.st_mode):
            raise OutputError(f"the output {path} exists and is not a file", hint="choose another output")
    if not force:
        raise OutputError(
            f"the output {path} exists", hint="choose another output, or force it", code="E_OUTPUT_EXISTS"
        )


def require_space(folder: Path, expected_bytes: int | None) -> None:
    """Raise `OutputError` unless the folder is there and has room."""
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", hint="create it first", code="E_OUTPUT_FOLDER")
    if expected_bytes is None:
        return
    needed, free = int(expected_bytes * HEADROOM), shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder} has {free:,} bytes free, the output needs about {needed:,}: {needed - free:,} short",
            hint="free disk space or write to another disk",
            code="E_DISK_FULL",
        )


def _claim(path: Path) -> tuple[Path, int]:
    """Create and lock the part; remove what a dead writer of the same output left."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        for other, name in _parts(path.parent):
            if name["output"] != path.name:
                continue
            if not _stale(other, name):
                raise OutputError(
                    f"process {name['pid']} is writing {path}", hint="wait for it, or choose another output"
                )
            remove_part(other)
        lock = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"cannot create {part}: {error.strerror}", code="E_OUTPUT_FOLDER") from error
    with contextlib.suppress(OSError):  # no locks on this file system: the pid alone protects the part
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return part, lock


def _parts(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for entry in folder.iterdir():
        if name := _PART_NAME.fullmatch(entry.name):
            yield entry, name


def _stale(part: Path, name: re.Match[str]) -> bool:
    try:
        handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(handle)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or this file system has no locks
        return False
    finally:
        os.close(handle)
    try:
        writer = psutil.Process(int(name["pid"]))
        if writer.status() == psutil.STATUS_ZOMBIE:
            return True
        started = writer.create_time()
    except (psutil.NoSuchProcess, OverflowError):
        return True
    except psutil.Error:
        return False
    return started > status.st_mtime  # the pid was given to somebody else since


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
