"""How a store file gets the tables that this program knows.

One list of named functions per kind of file; each runs once, ever. Invariant: a file holds either all of its pending
migrations or none, because they and the version number share one transaction; a copy of the file as it was stands
beside it before the first change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lathe.store import driver
from lathe.store.errors import HOW_TO_RECOVER, StoreCorrupt, StoreError, StoreTooNew
from lathe.store.files import discard, publish
from sqlite_utils import Database as Connection
from sqlite_utils import Migrations


class Schema(NamedTuple):
    """One kind of store file."""

    name: str
    application_id: int
    """Stands in the file's header, so that a foreign SQLite file is never touched."""
    steps: tuple[Callable[[Connection], None], ...]
    """Migrations in order; their number is the schema's version. Only ever appended to."""

    def names(self) -> list[str]:
        """The migrations by name, as they are recorded in the file."""
        return [step.__name__ for step in self.steps]

    def migrations(self) -> Migrations:
        """The same list as sqlite-utils wants it."""
        migrations = Migrations(self.name)
        for step in self.steps:
            migrations()(step)
        return migrations


def inspect(db: Connection, schema: Schema, path: Path) -> list[str]:
    """Return the names of pending migrations; refuse files that are foreign or newer than this program."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and owner == 0:
        return schema.names()
    if owner != schema.application_id:
        raise StoreCorrupt(
            f"{path} is an SQLite file of another program, not a {schema.name}", hint="move it away or choose another"
        )
    known = schema.names()
    rows = db.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ? ORDER BY id", [schema.name])
    applied = [row[0] for row in rows]
    if version > len(known) or not set(applied) <= set(known):
        raise StoreTooNew(
            f"{path} was written by a newer Lathe (schema {version}, this one knows {len(known)})",
            hint="update Lathe; the file was left as it is",
        )
    if applied != known[:version]:
        raise StoreCorrupt(f"{path} says schema {version} but lists {len(applied)} migrations", hint=HOW_TO_RECOVER)
    for table, columns in _expected(schema, version).items():
        if _columns(db, table) != columns:
            raise StoreCorrupt(
                f"table {table} of {path} does not have the columns of schema {version}", hint=HOW_TO_RECOVER
            )
    return known[version:]


@cache
def _expected(schema: Schema, version: int) -> dict[str, list[tuple[object, ...]]]:
    """Tables and columns that a sound file of some version has: what its migrations make of an empty one."""
    db = Connection(driver.memory(), execute_plugins=False)
    try:
        schema._replace(steps=schema.steps[:version]).migrations().apply(db)
        return {table: _columns(db, table) for table in db.table_names()}
    finally:
        db.close()


def _columns(db: Connection, table: str) -> list[tuple[object, ...]]:
    query = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?) ORDER BY cid'
    return [tuple(row) for row in db.execute(query, [table])]


def migrate(db: Connection, schema: Schema, path: Path) -> list[str]:
    """Bring a file up to date; returns the names of the migrations applied."""
    pending = inspect(db, schema, path)
    if not pending:
        return []
    if len(pending) < len(schema.names()):
        back_up(db, path, len(schema.names()) - len(pending))
    db.execute("BEGIN IMMEDIATE")
    try:
        schema.migrations().apply(db)
        db.execute(f"PRAGMA application_id = {schema.application_id:d}")
        db.execute(f"PRAGMA user_version = {len(schema.names()):d}")
        if broken := db.execute("PRAGMA foreign_key_check").fetchone():
            raise StoreError(f"migrating {path} broke a reference in table {broken[0]}")
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise
    return pending


def back_up(db: Connection, path: Path, version: int) -> Path:
    """Copy a store as it is now to `NAME.vN.bak`, whole or not at all."""
    target = path.with_name(f"{path.name}.v{version}.bak")
    part = target.with_name(f"{target.name}.part")
    discard(part)
    try:
        part.touch(mode=0o600)  # before there is anything in it
        db.execute("VACUUM INTO ?", [str(part)])
        publish(part, target)
    finally:
        discard(part)
    return target


def m001_models(db: Connection) -> None:
    """The registry of models."""
    db.table("models").create(
        {
            "id": str, "name": str, "path": str, "format": str, "bytes": int, "sha256": str, "origin": str,
            "parent": str, "recipe": str, "added_at": float, "verified_at": float, "missing": int, "card": str,
            "measured": str, "tags": str,
        },
        pk="id",
        not_null={"name", "path", "format", "bytes", "origin", "recipe", "added_at", "missing", "card", "measured",
                  "tags"},
        strict=True,
    )  # fmt: skip
    db.table("models").create_index(["name"], unique=True)
    db.table("models").create_index(["path"], unique=True)
    db.table("models").create_index(["parent"])


def m002_jobs(db: Connection) -> None:
    """The queue and its history; ids are never given twice."""
    db.execute("""
        CREATE TABLE jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL, state TEXT NOT NULL, run TEXT,
            created_at REAL NOT NULL, finished_at REAL, body TEXT NOT NULL
        ) STRICT""")
    db.table("jobs").create_index(["state"])
    db.table("jobs").create_index(["run"])


def m003_requests(db: Connection) -> None:
    """Sizes and timings of finished requests, never their text."""
    db.table("requests").create(
        {
            "number": int, "id": str, "model": str, "client": str, "finish": str, "finished_at": float,
            "prompt_tokens": int, "cached_tokens": int, "generated": int, "queue_s": float, "ttft_s": float,
            "total_s": float,
        },
        pk="number",
        not_null={"id", "model", "client", "finish", "finished_at"},
        strict=True,
    )  # fmt: skip


def m004_samples(db: Connection) -> None:
    """Telemetry in ever coarser buckets."""
    db.table("samples").create(
        {"number": int, "width_s": int, "bucket": int, "figures": str},
        pk="number",
        not_null={"width_s", "bucket", "figures"},
        strict=True,
    )
    db.table("samples").create_index(["width_s", "bucket"], unique=True)


def m005_runs(db: Connection) -> None:
    """Batch runs and the results of their steps."""
    db.table("runs").create(
        {"number": int, "id": str, "plan": str, "state": str, "exit": int, "created_at": float, "finished_at": float},
        pk="number",
        not_null={"id", "plan", "state", "created_at"},
        strict=True,
    )
    db.table("runs").create_index(["id"], unique=True)
    db.table("run_steps").create(
        {"number": int, "run": str, "name": str, "key": str, "state": str, "job": str, "result": str},
        pk="number",
        not_null={"run", "name", "key", "state", "result"},
        foreign_keys=[("run", "runs", "id")],
        strict=True,
    )
    db.table("run_steps").create_index(["run", "name"], unique=True)
    db.table("run_steps").create_index(["key"])


def m006_api_keys(db: Connection) -> None:
    """The HTTP API's keys; secrets as SHA-256 only."""
    db.table("api_keys").create(
        {
            "name": str, "digest": str, "created_at": float, "scopes": str, "models": str,
            "requests_per_minute": int, "tokens_per_minute": int,
        },
        pk="name",
        not_null={"digest", "created_at", "scopes", "models"},
        strict=True,
    )  # fmt: skip
    db.table("api_keys").create_index(["digest"], unique=True)


def m007_hashes(db: Connection) -> None:
    """Hashes of files that were not touched since."""
    db.table("hashes").create(
        {"path": str, "size": int, "mtime_ns": int, "sha256": str},
        pk="path",
        not_null={"size", "mtime_ns", "sha256"},
        strict=True,
    )


def m008_key_stores(db: Connection) -> None:
    """Which RAG stores a key may search."""
    db.execute("ALTER TABLE api_keys ADD COLUMN stores TEXT NOT NULL DEFAULT '[]'")


def m009_aliases(db: Connection) -> None:
    """Other names of models."""
    db.execute("""
        CREATE TABLE aliases (
            name TEXT PRIMARY KEY COLLATE NOCASE, target TEXT NOT NULL, set_at REAL NOT NULL
        ) STRICT""")


WORKSPACE = Schema(
    "Lathe workspace",
    0x4C415448,
    (
        m001_models,
        m002_jobs,
        m003_requests,
        m004_samples,
        m005_runs,
        m006_api_keys,
        m007_hashes,
        m008_key_stores,
        m009_aliases,
    ),
)
"""`lathe.db`: models, jobs, runs, requests, samples, API keys, aliases."""


def e001_evals(db: Connection) -> None:
    """Evals: runs, records, answers, baselines and reviews."""
    db.execute("""
        CREATE TABLE runs (
            number INTEGER PRIMARY KEY AUTOINCREMENT, suite TEXT NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL,
            state TEXT NOT NULL, created_at REAL NOT NULL, finished_at REAL, body TEXT NOT NULL
        ) STRICT""")
    db.table("runs").create_index(["key", "state"])
    db.execute("""
        CREATE TABLE records (
            number INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(number) ON DELETE CASCADE,
            task TEXT NOT NULL, "case" TEXT NOT NULL, variant TEXT NOT NULL, repeat INTEGER NOT NULL,
            state TEXT NOT NULL, body TEXT NOT NULL,
            UNIQUE (run, task, "case", variant, repeat)
        ) STRICT""")
    db.table("answers").create(
        {"key": str, "created_at": float, "body": str}, pk="key", not_null={"created_at", "body"}, strict=True
    )
    db.table("aliases").create(
        {"name": str, "run": int, "set_at": float}, pk="name", not_null={"run", "set_at"},
        foreign_keys=[("run", "runs", "number")], strict=True,
    )  # fmt: skip
    db.table("reviews").create(
        {"number": int, "subject": str, "name": str, "label": str, "score": float, "source": str, "explanation": str,
         "at": float, "body": str},
        pk="number", not_null={"subject", "name", "label", "source", "explanation", "at", "body"}, strict=True,
    )  # fmt: skip
    db.table("reviews").create_index(["subject"])


def e002_benches(db: Connection) -> None:
    """Benches: one row per test timed, per machine."""
    columns = {
        "number": int, "at": float, "job": str, "machine": str, "model": str, "model_key": str, "test": str,
        "setting": str, "rate": float, "deviation": float, "samples": int, "body": str,
    }  # fmt: skip
    db.table("benches").create(columns, pk="number", not_null=set(columns) - {"number"}, strict=True)
    db.table("benches").create_index(["machine", "model_key", "test", "setting"])


EVALS = Schema("Lathe evals", 0x4C544556, (e001_evals, e002_benches))
"""`evals.db`: what was asked, answered, judged and timed; apart, for it holds prompts and answers."""
