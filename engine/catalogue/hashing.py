"""Hashes of models: computed once per untouched file, in the background, without pushing others out of the page cache.

A model of one file has that file's sha256. A model of several has the sha256 of their list as `sha256sum` prints it,
sorted by name, so that anyone can check it with `cd FOLDER && sha256sum NAMES | sha256sum`. Invariant: a hash is
written only if the file was not touched while it was read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lathe.engine.catalogue.scan import current_id, files_of
from lathe.engine.catalogue.walk import File, look_at
from lathe.engine.errors import BusyError, Cancelled, LatheError
from lathe.quantize.progress import Report, silent
from lathe.store.database import Database
from lathe.store.errors import NotFound, StoreError
from lathe.store.hashes import Hashes, HashRecord
from lathe.store.models import ModelEntry, Models

_CHUNK = 4 << 20
_LOG = logging.getLogger("lathe.catalogue")

Remembered = Callable[[File], str | None]


def never(file: File) -> str | None:
    """Remember nothing: every file is read."""
    return None


def hash_file(file: File, report: Callable[[int], None], stopped: Callable[[], bool] = lambda: False) -> str:
    """sha256 of a file's bytes as hex; `report` gets the bytes of each chunk.

    Raises Cancelled when stopped, BusyError when the file changed meanwhile.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    with file.path.open("rb", buffering=0) as opened:
        advise = getattr(os, "posix_fadvise", None)
        position = 0
        while count := opened.readinto(buffer):
            if stopped():
                raise Cancelled("hashing was stopped")
            digest.update(memoryview(buffer)[:count])
            report(count)
            if advise is not None:
                # What was hashed is not needed again soon; loaded models' pages are.
                advise(opened.fileno(), position, count, os.POSIX_FADV_DONTNEED)
            position += count
    if look_at(file.path) != file:
        raise BusyError(f"{file.path} changed while it was read", hint="hash it again when nobody writes it")
    return digest.hexdigest()


def hash_files(
    paths: Iterable[Path],
    report: Report = silent,
    *,
    remembered: Remembered = never,
    remember: Callable[[File, str], None] = lambda file, sha256: None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """The hash of a model's files together."""
    files = sorted((look_at(path) for path in paths), key=lambda file: file.path.name)
    total, done = sum(file.size for file in files), 0
    hashes: list[tuple[str, str]] = []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("hashing", done, total, "B")

    for file in files:
        sha256 = remembered(file)
        if sha256 is None:
            sha256 = hash_file(file, advance, stopped)
            remember(file, sha256)
        else:
            advance(file.size)
        hashes.append((file.path.name, sha256))
    return combine(hashes)


def combine(hashes: Sequence[tuple[str, str]]) -> str:
    """One hash for (name, sha256) pairs in order of name; of a single file, its own."""
    if len(hashes) == 1:
        return hashes[0][1]
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()


class Hasher:
    """A thread that hashes registered models that have no hash yet, smallest first; `wake` when there may be some.

    Work survives restarts: what is pending stands in the registry, and finished files of a folder are remembered.
    """

    def __init__(self, database: Database, changed: Callable[[str], None]) -> None:
        self._database = database
        self._changed = changed
        """Called in the hasher's thread with the id of each model that got its hash."""
        self._stop = threading.Event()
        self._work = threading.Event()
        self._passed: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="hasher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for pending models, those that failed before included."""
        self._passed.clear()
        self._work.set()

    def stop(self) -> None:
        """Stop within one chunk and wait for it."""
        self._stop.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        while self._work.wait() and not self._stop.is_set():
            self._work.clear()
            try:
                while not self._stop.is_set() and (entry := self._next()) is not None:
                    self._hash(entry)
            except StoreError as error:
                _LOG.warning("hashing stopped: %s", error)

    def _next(self) -> ModelEntry | None:
        pending = self._database.read(lambda db: Models(db).pending_hash())
        return next((entry for entry in pending if entry.id not in self._passed), None)

    def _hash(self, entry: ModelEntry) -> None:
        # Whatever happens, this model is not tried again before the next `wake`.
        self._passed.add(entry.id)
        try:
            if current_id(entry) != entry.id:
                return  # touched since the scan: the next scan makes another entry of it
            sha256 = hash_files(
                files_of(entry), remembered=self._remembered, remember=self._remember, stopped=self._stop.is_set
            )
        except Cancelled:
            return
        except (LatheError, OSError) as error:
            _LOG.warning("%s was not hashed: %s", entry.name, error)
            return
        try:
            self._database.write(lambda db: Models(db).hashed(entry.id, sha256)).result()
        except NotFound:
            return  # forgotten while it was read
        self._changed(entry.id)

    def _remembered(self, file: File) -> str | None:
        return self._database.read(lambda db: Hashes(db).get(str(file.path), file.size, file.mtime_ns))

    def _remember(self, file: File, sha256: str) -> None:
        record = HashRecord(path=str(file.path), size=file.size, mtime_ns=file.mtime_ns, sha256=sha256)
        self._database.write(lambda db: Hashes(db).put(record)).result()
