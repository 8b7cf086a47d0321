"""What killed and limited children do to a store."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

from lathe.store.database import Database
from lathe.store.errors import StoreError
from lathe.store.migrations import Schema

Report = Callable[[object], None]


def m001_things(db) -> None:
    """The first version of a store."""
    db.table("things").create({"number": int, "text": str}, pk="number", strict=True)


def m002_copies(db) -> None:
    """Moves every row, slowly enough to be killed in between."""
    db.table("copies").create({"number": int, "text": str, "length": int}, pk="number", strict=True)
    for number, text in db.execute("SELECT number, text FROM things").fetchall():
        db.table("copies").insert({"number": number, "text": text, "length": len(text)})


def m003_no_things(db) -> None:
    """Drops the old table."""
    db.table("things").drop()


OLD = Schema("things", 0x54484E47, (m001_things,))
NEW = Schema("things", 0x54484E47, (m001_things, m002_copies, m003_no_things))


def add_pair(number: int) -> Callable[[object], int]:
    """Two rows that belong together: a torn write would leave one."""

    def work(db) -> int:
        for half in "ab":
            row = {"id": f"{number}{half}", "model": "m", "client": "c", "finish": "stop", "finished_at": 0.0}
            db.table("requests").insert(row)
        return number

    return work


def append(report: Report, path: str) -> None:
    """Write pairs for ever, and report each when it is acknowledged."""
    database = Database.open(path)
    number = database.read(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()[0]) // 2
    report("open")
    while True:
        number += 1
        report(database.write(add_pair(number)).result())


def migrate(report: Report, path: str) -> None:
    """Open an old store with the new schema."""
    report("start")
    with Database.open(path, schema=NEW) as database:
        report(database.migrated)


def hold(report: Report, path: str) -> None:
    """Hold the lock until killed."""
    database = Database.open(path)
    report("held")
    time.sleep(600)
    database.close()


def fill(report: Report, path: str, limit: str) -> None:
    """Write until no file may grow any more; report what was acknowledged and how it ended."""
    with Database.open(path) as database:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        number = 0
        try:
            while True:
                number += 1
                database.write(add_pair(number)).result()
                report(number)
        except StoreError as error:
            report(f"{error.code} {error.message}")
        report(database.read(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()[0]))
        report(len(database.check()))
    report(Path(path).exists())
