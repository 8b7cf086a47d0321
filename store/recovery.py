"""What is left of a damaged store: every row that can still be read, in a new and sound file.

`python -m lathe.store.recovery DAMAGED.db COPY.db` does it from a shell, when nothing else starts any more.
Invariant: the damaged file is opened for reading only, and the copy appears under its name only when it is whole.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.store import driver
from lathe.store.errors import StoreCorrupt, StoreError
from lathe.store.files import discard, publish
from lathe.store.migrations import WORKSPACE, Schema, migrate
from sqlite_utils import Database as Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAST_ROW = 2**63 - 1


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """What was saved, table by table."""

    path: str
    saved: dict[str, int]
    """Table -> rows copied."""
    refused: dict[str, int]
    """Table -> rows that could be read but break a rule of the schema."""
    gaps: dict[str, int]
    """Table -> places where rows could not be read."""


def recover_copy(path: Path, target: Path, schema: Schema = WORKSPACE) -> Recovery:
    """Copy every readable row of a damaged store into a new file at `target`.

    Raises StoreCorrupt where not even the list of tables can be read, StoreError where `target` exists.
    """
    if target.exists():
        raise StoreError(f"{target} exists", hint="choose another name for the copy")
    part = target.with_name(f"{target.name}.part")
    discard(part)
    part.touch(mode=0o600)
    try:
        with closing(driver.connect(path, "ro")) as damaged, closing(driver.connect(part, "rw")) as fresh:
            # Text that is no UTF-8 must cost its own row, not the rest of the table.
            damaged.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            db = Connection(fresh, execute_plugins=False)
            migrate(db, schema, part)
            recovery = _copy(damaged, db, target)
        if not any(recovery.saved.values()) and any(recovery.gaps.values()):
            raise StoreCorrupt(f"nothing in {path} can be read", hint="restore it from a backup (`*.bak` beside it)")
        publish(part, target)
    except (driver.SqliteError, UnicodeDecodeError) as error:
        raise driver.explain(error, path) from error
    finally:
        discard(part)
    return recovery


def _copy(damaged: driver.Connection, db: Connection, target: Path) -> Recovery:
    saved: dict[str, int] = {}
    refused: dict[str, int] = {}
    gaps: dict[str, int] = {}
    for table in db.tables:
        if table.name.startswith(("sqlite_", "_sqlite_")):
            continue
        saved[table.name] = refused[table.name] = gaps[table.name] = 0
        columns = _columns(damaged, table.name)
        if not columns:
            continue  # the store is older than this table
        names = ", ".join(f'"{column}"' for column in columns)
        marks = ", ".join("?" for _ in columns)
        db.execute("BEGIN")
        for row in _readable_rows(damaged, table.name, names):
            if row is None:
                gaps[table.name] += 1
                continue
            try:
                db.execute(f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', row)  # noqa: S608 - own schema
                saved[table.name] += 1
            except (driver.SqliteError, UnicodeEncodeError):
                refused[table.name] += 1
        db.execute("COMMIT")
    return Recovery(path=str(target), saved=saved, refused=refused, gaps=gaps)


def _columns(damaged: driver.Connection, table: str) -> list[str]:
    """The columns that the damaged store itself has: an older one lacks some, which then get their defaults."""
    return [row[0] for row in damaged.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", [table])]


class _Circle(Exception):
    """Rows that should ascend do not: a damaged page leads back to one that was read."""


def _readable_rows(damaged: driver.Connection, table: str, columns: str) -> Iterator[tuple[object, ...] | None]:
    """Rows in order of rowid; None for each stretch that had to be jumped over."""
    query = f'SELECT rowid, {columns} FROM "{table}" NOT INDEXED WHERE rowid > ? ORDER BY rowid'  # noqa: S608
    last, jump = -1, 0
    while last + jump < _LAST_ROW:
        try:
            for number, *row in damaged.execute(query, [last + jump]):
                if number <= last:
                    raise _Circle
                last, jump = number, 0
                yield tuple(row)
        except (driver.SqliteError, UnicodeError, _Circle):
            if jump == 0:
                yield None
            # A damaged page hides a run of rows of unknown length: jump twice as far each time.
            jump = max(1, 2 * jump)
        else:
            return


def main(arguments: list[str]) -> int:
    """Recover from the command line."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m lathe.store.recovery DAMAGED.db COPY.db\n")
        return 2
    try:
        recovery = recover_copy(Path(arguments[0]), Path(arguments[1]))
    except StoreError as error:
        sys.stderr.write(f"{error.message}" + (f" ({error.hint})" if error.hint else "") + "\n")
        return 65
    for table, saved in recovery.saved.items():
        lost = f"{recovery.refused[table]} refused, {recovery.gaps[table]} gaps"
        sys.stdout.write(f"{table:<12} {saved:>7} rows saved, {lost}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
