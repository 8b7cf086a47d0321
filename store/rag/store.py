"""`RagStore`: one store file, open. Reads run on snapshots, writes one after another, each a transaction.

Every row's own module has the SQL; this one opens, describes and checks. Invariant: a store opened for writing holds
the file's lock, so that two processes never write it; readers need no lock and see the last committed batch.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lathe.store import driver
from lathe.store.database import Database
from lathe.store.errors import NotFound, StoreCorrupt, StoreError
from lathe.store.files import discard, sync_folder
from lathe.store.lock import StoreLock
from lathe.store.rag import columns, index, meta, versions
from lathe.store.rag import verify as checks
from lathe.store.rag.schema import RAG
from lathe.store.rag.values import Prefilter, StoreSettings, StoreStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlite_utils import Database as Connection

Result = TypeVar("Result")
_SETTINGS, PREFILTER = "settings", "prefilter"
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
"""Where SQLite's header names the application."""


class RagStore:
    """An open store file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def create(cls, path: Path, settings: StoreSettings) -> RagStore:
        """Make a store file, or open the one that is there for writing; its settings are kept then.

        Raises:
            StoreLocked: another process writes it. StoreCorrupt, StoreTooNew: it is something else or newer.
        """
        store = cls(Database.open(path, schema=RAG, prepare=_prepare))
        if store.read(lambda db: meta.get(db, _SETTINGS, StoreSettings)) is None:
            with store._closed_on_error():
                store.write(lambda db: meta.put(db, _SETTINGS, settings))
        return store

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> RagStore:
        """Open an existing store file."""
        if not path.exists():
            raise NotFound(f"there is no store {path}", hint="`lathe rag build` makes one")
        store = cls(Database.open(path, schema=RAG, read_only=read_only, prepare=_prepare))
        with store._closed_on_error():
            store.settings()
        return store

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def read_only(self) -> bool:
        """Whether it was opened without the writer's lock."""
        return self._database.read_only

    def read(self, work: Callable[[Connection], Result], *, cancelled: Callable[[], bool] | None = None) -> Result:
        """Run work on one snapshot; `cancelled` ends a long statement from another thread."""
        return self._database.read(work, cancelled=cancelled)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work as one transaction and wait until it is on disk."""
        return self._database.write(work).result()

    def settings(self) -> StoreSettings:
        """What the store was made for."""
        found = self.read(lambda db: meta.get(db, _SETTINGS, StoreSettings))
        if found is None:
            raise StoreCorrupt(f"{self.path} does not say what it is", hint="it was never finished: build it again")
        return found

    def change_settings(self, settings: StoreSettings) -> None:
        """Write the settings anew."""
        self.write(lambda db: meta.put(db, _SETTINGS, settings))

    def prefilter(self) -> Prefilter | None:
        """The calibration of the binary prefilter, where it was measured."""
        return self.read(lambda db: meta.get(db, PREFILTER, Prefilter))

    def set_prefilter(self, prefilter: Prefilter) -> None:
        """Keep a calibration."""
        self.write(lambda db: meta.put(db, PREFILTER, prefilter))

    def stats(self) -> StoreStats:
        """The store in figures."""

        def work(db: Connection) -> StoreStats:
            every = columns.all_columns(db)
            active = next((column for column in every if column.state == "active"), None)
            newest = versions.listing(db, 1)
            return StoreStats(
                settings=meta.get(db, _SETTINGS, StoreSettings) or StoreSettings(name=self.path.stem),
                documents=db.execute("SELECT count(*) FROM documents").fetchone()[0],
                passages=db.execute("SELECT count(*) FROM passages").fetchone()[0],
                errors=db.execute("SELECT count(*) FROM errors").fetchone()[0],
                columns=every,
                version=newest[0] if newest else None,
                questions=db.execute("SELECT count(*) FROM questions").fetchone()[0],
                bytes=_pragma(db, "page_count") * _pragma(db, "page_size"),
                prefilter=meta.get(db, PREFILTER, Prefilter),
                index=_index_state(db, active.number) if active else "no vectors",
            )

        return self.read(work)

    def verify(self, report: checks.Report = lambda label, done, total: None) -> checks.Verdict:
        """Read everything and compare it with its seals; a store open for writing checks its keyword index, too."""
        work: Callable[[Connection], checks.Verdict] = lambda db: checks.verify(db, report)  # noqa: E731
        return self.read(work) if self.read_only else self.write(work)

    def rebuild_indexes(self, report: Callable[[int], None] = lambda _: None) -> int:
        """Make every index again from documents and vectors; returns the vectors indexed."""
        return self.write(lambda db: checks.mend(db, report))

    def close(self) -> None:
        """Finish what was queued and let go of the file."""
        self._database.close()

    def __enter__(self) -> RagStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def remove_file(path: Path) -> int:
    """Delete a store's file for good, with what SQLite keeps beside it; returns the bytes that are free again.

    A damaged store goes, too; a link or a file that is no RAG store stays. The documents are elsewhere and untouched.

    Raises:
        StoreLocked: a process writes it. StoreError: it is something else. NotFound: it is not there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise NotFound(f"there is no store {path}", hint="`lathe rag list` shows every store") from None
    if not stat.S_ISREG(mode) or not _is_ours(path):
        raise StoreError(f"{path} is no RAG store of Lathe's and stays", hint="delete it yourself if it is not needed")
    lock = StoreLock(path)
    lock.acquire(time.time())
    try:
        free = 0
        # The file goes first: a log without its database is ignored, a database without its log is half a store.
        for name in (path.name, *(f"{path.name}-{part}" for part in ("wal", "shm", "journal"))):
            file = path.with_name(name)
            free += file.stat().st_size if file.exists() else 0
            discard(file)
        sync_folder(path.parent)
    finally:
        lock.release()
    return free


def _is_ours(path: Path) -> bool:
    """Tell a store, also a damaged one, from whatever else a file may be."""
    with path.open("rb") as file:
        header = file.read(_APPLICATION_ID.stop)
    if header.startswith(_MAGIC) and header[_APPLICATION_ID] == RAG.application_id.to_bytes(4):
        return True
    with suppress(StoreError):  # one that was killed young has its name in the log yet
        RagStore.open(path, read_only=True).close()
        return True
    return False


def _prepare(connection: Connection) -> None:
    """Load sqlite-vec where this SQLite can; without it the vectors are searched all the same."""
    if driver.capabilities().extensions:
        with suppress(ImportError):
            driver.load_vectors(connection.conn)


def _index_state(db: Connection, number: int) -> str:
    state = index.state(db, number)
    if not index.available(db):
        return "sqlite-vec is not loaded"
    return state.state if state else "none"


def _pragma(db: Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
