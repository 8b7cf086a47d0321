"""Evals at rest: runs, one record per case asked, answers by content, baselines by name, people's reviews.

A file of its own (`evals.db`), for it holds prompts and answers, which the workspace's own store never does. Invariant:
a run has at most one record per (task, case, variant, repeat), whatever is killed and resumed; a failure is never an
answer that is used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
from lathe.store.benches import Benches
from lathe.store.errors import NotFound
from lathe.store.rows import from_row, to_row

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

RunState = Literal["running", "done", "interrupted", "failed"]
_KEYS_AT_ONCE = 500


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a suite on a model."""

    number: int = 0
    """Given by the store."""
    suite: str
    model: str
    key: str
    """Hash over suite, model and settings: an unfinished run of the same key is gone on with."""
    state: RunState = "running"
    created_at: float
    finished_at: float | None = None
    body: str = "{}"

    @property
    def id(self) -> str:
        """`e-12`."""
        return f"e-{self.number}"


class CaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One case as it was asked and judged."""

    run: int
    task: str
    case: str
    variant: str = ""
    repeat: int = 0
    state: Literal["done", "failed"] = "done"
    body: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names it within its run."""
        return self.task, self.case, self.variant, self.repeat


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """What a person or a model judges of an answer."""

    number: int = 0
    subject: str
    """`RUN/task/case`, or `RUN|RUN/task/case` of a pair."""
    name: str
    """What was judged: `quality`, `preference`, `edit`, ..."""
    label: str
    """`accept`, `reject`, `A`, `B`, `tie`, or a tag."""
    score: float | None = None
    source: str
    """`human NAME` or `judge MODEL`."""
    explanation: str = ""
    at: float
    body: str = "{}"
    """Prompt, answers and edit as they were judged, so that an export needs no run."""


class Evals:
    """The evals of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.benches = Benches(db)

    # -- runs ----------------------------------------------------------------------------------------------------
    def start(self, run: RunRecord) -> RunRecord:
        """Enter a run under the next number."""
        row = {name: value for name, value in to_row(run).items() if name != "number"}
        number = self._db.execute(
            "INSERT INTO runs (suite, model, key, state, created_at, finished_at, body) "
            "VALUES (:suite, :model, :key, :state, :created_at, :finished_at, :body) RETURNING number",
            row,
        ).fetchone()[0]
        return msgspec.structs.replace(run, number=number)

    def save(self, run: RunRecord) -> None:
        """Write a run's state and body."""
        self._db.execute(
            "UPDATE runs SET state = :state, finished_at = :finished_at, body = :body WHERE number = :number",
            to_row(run),
        )

    def run(self, number: int) -> RunRecord:
        """One run; raises NotFound."""
        for run in self._runs("number = ?", number):
            return run
        raise NotFound(f"no eval run e-{number}", hint="`lathe eval list --runs` shows them")

    def unfinished(self, key: str) -> RunRecord | None:
        """The newest run of that key that did not end by itself."""
        found = self._runs("key = ? AND state IN ('running', 'interrupted') ORDER BY number DESC LIMIT 1", key)
        return next(iter(found), None)

    def newest(self, limit: int = 100, suite: str | None = None) -> list[RunRecord]:
        """Newest first."""
        if suite is None:
            return self._runs("1 ORDER BY number DESC LIMIT ?", limit)
        return self._runs("suite = ? ORDER BY number DESC LIMIT ?", suite, limit)

    def remove(self, number: int) -> None:
        """Forget a run with its records and aliases; answers stay."""
        self.run(number)
        self._db.execute("DELETE FROM aliases WHERE run = ?", [number])
        self._db.execute("DELETE FROM records WHERE run = ?", [number])
        self._db.execute("DELETE FROM runs WHERE number = ?", [number])

    # -- records -------------------------------------------------------------------------------------------------
    def add(self, records: Iterable[CaseRecord]) -> int:
        """Write cases that have no record yet; returns how many had none."""
        before = self._db.execute("SELECT total_changes()").fetchone()[0]
        for record in records:
            self._db.execute(
                'INSERT OR IGNORE INTO records (run, task, "case", variant, repeat, state, body) '
                "VALUES (:run, :task, :case, :variant, :repeat, :state, :body)",
                to_row(record),
            )
        return int(self._db.execute("SELECT total_changes()").fetchone()[0] - before)

    def keys(self, run: int) -> set[tuple[str, str, str, int]]:
        """The cases of a run that have a record."""
        rows = self._db.execute('SELECT task, "case", variant, repeat FROM records WHERE run = ?', [run])
        return {(row[0], row[1], row[2], row[3]) for row in rows}

    def records(self, run: int, after: int = 0, limit: int = -1) -> list[CaseRecord]:
        """Cases in the order of their suite's keys, `limit` of them after the first `after`; -1: all."""
        rows = self._db.query(
            'SELECT run, task, "case", variant, repeat, state, body FROM records WHERE run = ? '
            'ORDER BY task, "case", variant, repeat LIMIT ? OFFSET ?',
            [run, limit, after],
        )
        return [from_row(CaseRecord, row, "records") for row in rows]

    def record(self, run: int, task: str, case: str) -> list[CaseRecord]:
        """Every variant and repeat of one case."""
        rows = self._db.query(
            'SELECT run, task, "case", variant, repeat, state, body FROM records '
            'WHERE run = ? AND task = ? AND "case" = ? ORDER BY variant, repeat',
            [run, task, case],
        )
        return [from_row(CaseRecord, row, "records") for row in rows]

    # -- answers by content --------------------------------------------------------------------------------------
    def answers(self, keys: Sequence[str]) -> dict[str, str]:
        """The stored answers among `keys`."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            part = list(keys[start : start + _KEYS_AT_ONCE])
            marks = ", ".join("?" * len(part))
            rows = self._db.execute(f"SELECT key, body FROM answers WHERE key IN ({marks})", part)  # noqa: S608
            found |= {row[0]: row[1] for row in rows}
        return found

    def remember(self, key: str, body: str, now: float) -> None:
        """Keep an answer."""
        self._db.execute("INSERT OR REPLACE INTO answers (key, created_at, body) VALUES (?, ?, ?)", [key, now, body])

    def forget_answers(self) -> int:
        """Drop every kept answer; returns how many."""
        return int(self._db.execute("DELETE FROM answers").rowcount)

    # -- baselines -----------------------------------------------------------------------------------------------
    def set_alias(self, name: str, run: int, now: float) -> None:
        """Let a name stand for a run from now on; raises NotFound."""
        self.run(run)
        self._db.execute("INSERT OR REPLACE INTO aliases (name, run, set_at) VALUES (?, ?, ?)", [name, run, now])

    def drop_alias(self, name: str) -> None:
        """Forget a name; raises NotFound."""
        if not self._db.execute("DELETE FROM aliases WHERE name = ?", [name]).rowcount:
            raise NotFound(f"no baseline is called {name!r}")

    def aliases(self) -> dict[str, int]:
        """Name -> number of the run."""
        return {row[0]: row[1] for row in self._db.execute("SELECT name, run FROM aliases ORDER BY name")}

    # -- reviews -------------------------------------------------------------------------------------------------
    def review(self, review: Review) -> Review:
        """Keep a judgement."""
        row = {name: value for name, value in to_row(review).items() if name != "number"}
        number = self._db.execute(
            "INSERT INTO reviews (subject, name, label, score, source, explanation, at, body) "
            "VALUES (:subject, :name, :label, :score, :source, :explanation, :at, :body) RETURNING number",
            row,
        ).fetchone()[0]
        return msgspec.structs.replace(review, number=number)

    def reviews(self, subject: str | None = None) -> list[Review]:
        """Judgements in the order they were given; of one subject, or all."""
        condition, values = ("subject = ?", [subject]) if subject is not None else ("1", [])
        rows = self._db.query(f"SELECT * FROM reviews WHERE {condition} ORDER BY number", values)  # noqa: S608 - ours
        return [from_row(Review, row, "reviews") for row in rows]

    def _runs(self, condition: str, *values: object) -> list[RunRecord]:
        rows = self._db.query(f"SELECT * FROM runs WHERE {condition}", values)  # noqa: S608 - conditions are ours
        return [from_row(RunRecord, row, "runs") for row in rows]
