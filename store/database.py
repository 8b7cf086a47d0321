"""A store file: one thread writes, many read, and every error has a name.

    write(work) -> queue -> writer thread: BEGIN, work, COMMIT -> Future      (one transaction per call, in order)
    read(work)  -> an idle connection: BEGIN, work, ROLLBACK -> result        (one snapshot per call)

Invariant: when a write's future has its result, the transaction is on disk (synchronous=FULL in WAL, EXTRA in
rollback-journal mode: a workbench writes a few rows a second, and an answer that a power cut takes back is worse than
the two milliseconds of an fsync). `work` gets an `sqlite_utils.Database`, returns plain values and keeps nothing.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Literal, TypeVar

from lathe.store import driver
from lathe.store.errors import StoreCorrupt, StoreError, StoreReadOnly
from lathe.store.lock import Holder, StoreLock
from lathe.store.migrations import WORKSPACE, Schema, inspect, migrate
from sqlite_utils import Database as Connection

Result = TypeVar("Result")

BACKLOG = 1024
"""Writes that may wait; the next caller blocks until there is room, so nothing is lost or reordered."""
IDLE_READERS = 4
"""Connections kept between reads; more readers at once open more."""
READS_END_MS = 60_000
PROGRESS_STEPS = 20_000
"""Virtual machine instructions between two looks at whether the store was closed: under a millisecond."""
JOURNAL_LIMIT = 64 * 1024 * 1024
"""Bytes to which the write-ahead log shrinks back after a burst."""


class _Write(Generic[Result]):
    """One queued transaction."""

    def __init__(self, work: Callable[[Connection], Result]) -> None:
        self.work = work
        self.future: Future[Result] = Future()


class Database:
    """An open store file; `open` makes one, `close` finishes what was queued."""

    def __init__(
        self, path: Path, lock: StoreLock | None, former: Holder | None, prepare: Callable[[Connection], None]
    ) -> None:
        self.path = path
        self.read_only = lock is None
        self.former = former
        """Who held the file before and ended without closing it; None after a clean end."""
        self.migrated: list[str] = []
        """Names of the migrations that this opening applied."""
        self.commits = 0
        """Transactions written since opening: what was read at one count is still so while it stays the same."""
        self._lock = lock
        self._prepare = prepare
        self._idle: list[Connection] = []
        self._guard = threading.Lock()
        self._order = threading.Lock()
        self._closed = False
        self._writes: queue.Queue[_Write[object] | None] = queue.Queue(BACKLOG)
        self._writer: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        read_only: bool = False,
        schema: Schema = WORKSPACE,
        allow_network: bool = False,
        prepare: Callable[[Connection], None] = lambda _: None,
    ) -> Database:
        """Open a store file, made and migrated as needed; `prepare` sees every connection first (extensions).

        Raises StoreLocked (another process writes it), StoreReadOnly (no permission), StoreTooNew, StoreCorrupt
        (damaged or foreign) and StoreFull. After the first two, `read_only=True` still shows what is there.
        """
        path = Path(path).absolute()
        _refuse_special(path)
        if read_only:
            if not path.exists():
                raise StoreError(f"{path} does not exist", hint="the first writer makes it")
            database = cls(path, None, None, prepare)
        else:
            lock = StoreLock(path)
            database = cls(path, lock, lock.acquire(time.time(), allow_network=allow_network), prepare)
        try:
            database._start(schema)
        except BaseException:
            database.close()
            raise
        return database

    def read(self, work: Callable[[Connection], Result], *, cancelled: Callable[[], bool] | None = None) -> Result:
        """Run `work` on one consistent snapshot; it cannot write.

        Once `cancelled` says so, from any thread, a running statement ends with StoreError within a millisecond.
        """
        with self._faults(), self._reader() as connection:
            if cancelled is not None:
                self._watch(connection, lambda: self._closed or cancelled())
            connection.execute("BEGIN")
            try:
                result = work(connection)
            finally:
                connection.rollback()
                if cancelled is not None:
                    self._watch(connection, lambda: self._closed)
        return _plain(result)

    def write(self, work: Callable[[Connection], Result]) -> Future[Result]:
        """Queue `work` as one transaction; the future holds its result once it is on disk.

        Cancelling the future before its turn drops the write. Blocks while BACKLOG writes wait.
        """
        if self.read_only:
            raise StoreReadOnly(f"{self.path} is open for reading only", hint="another process writes it")
        if threading.current_thread() is self._writer:
            raise RuntimeError("a write must not queue another write: it would wait for itself")
        item = _Write(work)
        with self._order:
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            self._writes.put(item)  # type: ignore[arg-type]
        return item.future

    def check(self) -> list[str]:
        """Read the whole file and return what SQLite finds wrong with it; empty for a sound one."""

        def work(db: Connection) -> list[str]:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
            broken = [f"row {row[1]} of {row[0]} refers to nothing" for row in db.execute("PRAGMA foreign_key_check")]
            return [line for line in found if line != "ok"] + broken

        return self.read(work)

    def close(self) -> None:
        """Finish queued writes, stop running reads, and let go of the file."""
        with self._order, self._guard:
            if self._closed:
                return
            self._closed = True
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join()
        for connection in self._idle:
            connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, schema: Schema) -> None:
        if self.read_only:
            if self.read(lambda db: inspect(db, schema, self.path)):
                raise StoreReadOnly(f"{self.path} needs an upgrade to be read", hint="open it for writing once")
            return
        _create(self.path)
        with self._faults():
            connection = self._connect("rw")
            try:
                inspect(connection, schema, self.path)  # before anything that would touch a foreign file
                _set_journal(connection)
                self.migrated = migrate(connection, schema, self.path)
            except BaseException:
                connection.close()
                raise
        self._writer = threading.Thread(target=self._run, args=(connection,), name="store-writer", daemon=True)
        self._writer.start()

    def _run(self, connection: Connection) -> None:
        while (item := self._writes.get()) is not None:
            if item.future.set_running_or_notify_cancel():
                try:
                    with self._faults():
                        result = self._transact(connection, item.work)
                except BaseException as error:  # noqa: BLE001 - reported to the caller, who holds the future
                    item.future.set_exception(error)
                else:
                    item.future.set_result(result)
            del item
        # Leaves one plain file behind; a failure here loses nothing, because the log holds it.
        with suppress(driver.SqliteError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _transact(self, connection: Connection, work: Callable[[Connection], Result]) -> Result:
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = _plain(work(connection))
            if not connection.conn.in_transaction:
                raise RuntimeError("the work ended its own transaction")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        self.commits += 1
        return result

    @contextmanager
    def _reader(self) -> Iterator[Connection]:
        with self._guard:
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            connection = self._idle.pop() if self._idle else self._connect_reader()
        try:
            yield connection
        finally:
            with self._guard:
                keep = not self._closed and len(self._idle) < IDLE_READERS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _connect(self, mode: Literal["ro", "rw"]) -> Connection:
        # Plugins of sqlite-utils are code of whatever else is installed; a store runs none.
        connection = Connection(driver.connect(self.path, mode), execute_plugins=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_reader(self) -> Connection:
        connection = self._connect("ro" if self.read_only else "rw")
        connection.execute("PRAGMA query_only = ON")
        self._watch(connection, lambda: self._closed)
        return connection

    @staticmethod
    def _watch(connection: Connection, ended: Callable[[], bool]) -> None:
        # Asked again and again while a statement runs, this ends it soon after `close`, without the race that an
        # interrupt from outside loses when it comes just before the statement.
        connection.conn.set_progress_handler(ended, PROGRESS_STEPS)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (driver.SqliteError, UnicodeDecodeError) as error:
            raise driver.explain(error, self.path) from error


def _set_journal(connection: Connection) -> None:
    if driver.capabilities().wal_safe:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    else:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        # Without WAL a commit waits for running reads, which are ours and end.
        connection.execute(f"PRAGMA busy_timeout = {READS_END_MS:d}")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT:d}")
    # Only macOS knows the difference: there fsync alone leaves data in the drive's cache.
    connection.execute("PRAGMA fullfsync = ON")


def _create(path: Path) -> None:
    """Make an empty file that only its owner may read; an existing one stays."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreReadOnly(
            f"{path} cannot be made: {error.strerror}", hint=f"check the permissions of {path.parent}"
        ) from error


def _refuse_special(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreCorrupt(f"{path} is not a file", hint="move it away or choose another")


def _plain(result: Result) -> Result:
    """Refuse cursors and generators, which would read after their transaction has ended."""
    if isinstance(result, Iterator):
        raise TypeError("return a list, not an iterator: its rows end with the transaction")
    return result
