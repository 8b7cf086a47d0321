"""The engine's memory of evals, over one store file that is opened on first use.

    EvalBook  <-  runner (begin, record, finish)   fronts (runs, records, aliases, reviews)
Invariant: a case counts once it is on disk, together with the answer that the next run may reuse; what waits for the
disk is bounded.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from lathe.engine.errors import BusyError, MissingError, UsageError
from lathe.engine.evals.results import EvalRun, Record
from lathe.engine.evals.values import Response
from lathe.engine.measure.history import BenchPoint, points
from lathe.store.benches import BenchRecord
from lathe.store.database import Database
from lathe.store.evals import CaseRecord, Evals, Review, RunRecord
from lathe.store.migrations import EVALS

Result = TypeVar("Result")
_COMPARED = 5000
"""Rows of the history that are looked at: enough for the earlier figures of those that are shown."""
_RUN = re.compile(r"e-(\d+)")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class Answer(msgspec.Struct, frozen=True):
    """A judged case, and under which key its response may be used again (None: not)."""

    record: Record
    key: str | None


class EvalBook:
    """Runs, records, answers, baselines and reviews of a workspace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: Database | None = None
        self._guard = threading.Lock()
        self._active: set[str] = set()
        """Runs that a job of this engine works at."""

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    # -- for the runner ------------------------------------------------------------------------------------------
    async def begin(self, run: EvalRun, key: str, fresh: bool) -> tuple[EvalRun, set[tuple[str, str, str, int]]]:
        """Enter a run, or go on with an unfinished one of the same key; also which cases it already has.

        Raises:
            BusyError: another job works at that very run.
        """

        def work(evals: Evals) -> tuple[RunRecord, set[tuple[str, str, str, int]]]:
            earlier = None if fresh else evals.unfinished(key)
            if earlier is not None:
                return earlier, evals.keys(earlier.number)
            return evals.start(_row(run, key)), set()

        row, keys = await self._write(work)
        if row.id in self._active:
            raise BusyError(f"{row.id} asks the same questions already", hint="wait for it, or ask for a fresh run")
        self._active.add(row.id)
        if not keys:
            return msgspec.structs.replace(run, id=row.id, created_at=row.created_at), keys
        former = _run(row, {})
        return msgspec.structs.replace(
            run, id=row.id, created_at=row.created_at, seconds=former.seconds, cached=former.cached
        ), keys

    def release(self, run: EvalRun) -> None:
        """No job works at the run any more."""
        self._active.discard(run.id)

    async def answers(self, keys: Sequence[str]) -> dict[str, Response]:
        """Responses that are known already."""
        found = await self._read(lambda evals: evals.answers(keys))
        decode = msgspec.json.Decoder(Response).decode
        return {key: msgspec.structs.replace(decode(body), cached=True) for key, body in found.items()}

    async def record(self, run: EvalRun, key: str, answers: Sequence[Answer]) -> None:
        """Put judged cases on disk, all or none, with the run's state."""
        number, now = _number(run.id), time.time()
        rows = [(_case(number, answer.record), answer) for answer in answers]

        def work(evals: Evals) -> None:
            evals.add(row for row, _ in rows)
            for _, answer in rows:
                response = answer.record.response
                if answer.key is not None and answer.record.failure is None and not response.cached:
                    evals.remember(answer.key, msgspec.json.encode(response).decode(), now)
            evals.save(msgspec.structs.replace(_row(run, key), number=number))

        await self._write(work)

    async def finish(self, run: EvalRun, key: str) -> None:
        """Write a run's end."""
        row = msgspec.structs.replace(_row(run, key), number=_number(run.id))
        await self._write(lambda evals: evals.save(row))

    # -- for fronts ----------------------------------------------------------------------------------------------
    async def runs(self, limit: int = 100, suite: str | None = None) -> list[EvalRun]:
        """Newest first."""

        def work(evals: Evals) -> tuple[list[RunRecord], dict[str, int]]:
            return evals.newest(limit, suite), evals.aliases()

        rows, aliases = await self._read(work)
        return [_run(row, aliases) for row in rows]

    async def run(self, reference: str) -> EvalRun:
        """One run by id (`e-12`), by a baseline's name, or `SUITE@MODEL` for its newest finished one."""

        def work(evals: Evals) -> tuple[RunRecord | None, dict[str, int]]:
            aliases = evals.aliases()
            if match := _RUN.fullmatch(reference):
                return evals.run(int(match.group(1))), aliases
            if reference in aliases:
                return evals.run(aliases[reference]), aliases
            suite, at, model = reference.rpartition("@")
            done = (row for row in evals.newest(1000, suite) if row.model == model and row.state == "done")
            return (next(done, None) if at else None), aliases

        row, aliases = await self._read(work)
        if row is None:
            raise MissingError(
                f"no eval run or baseline {reference!r}", hint="a run is `e-12`, a baseline's name, or SUITE@MODEL"
            )
        return _run(row, aliases)

    async def records(self, run: EvalRun, after: int = 0, limit: int = -1) -> list[Record]:
        """The cases of a run, in a fixed order."""
        rows = await self._read(lambda evals: evals.records(_number(run.id), after, limit))
        decode = msgspec.json.Decoder(Record).decode
        return [decode(row.body) for row in rows]

    async def case(self, run: EvalRun, task: str, case: str) -> list[Record]:
        """Every variant and repeat of one case."""
        rows = await self._read(lambda evals: evals.record(_number(run.id), task, case))
        decode = msgspec.json.Decoder(Record).decode
        return [decode(row.body) for row in rows]

    async def remove(self, reference: str) -> EvalRun:
        """Forget a run with its records."""
        run = await self.run(reference)
        await self._write(lambda evals: evals.remove(_number(run.id)))
        return run

    async def set_baseline(self, name: str, reference: str | None) -> EvalRun | None:
        """Let a name stand for a run; None forgets the name."""
        if not _ALIAS.fullmatch(name) or _RUN.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a baseline", hint="a letter, then letters, digits, `.`, `_`, `-`"
            )
        if reference is None:
            await self._write(lambda evals: evals.drop_alias(name))
            return None
        run = await self.run(reference)
        if run.state != "done":
            raise UsageError(f"{run.id} is {run.state}: only a finished run is a baseline")
        now = time.time()
        await self._write(lambda evals: evals.set_alias(name, _number(run.id), now))
        return await self.run(name)

    async def review(self, review: Review) -> Review:
        """Keep a judgement."""
        stamped = msgspec.structs.replace(review, at=review.at or time.time())
        return await self._write(lambda evals: evals.review(stamped))

    async def keep_bench(self, records: Sequence[BenchRecord]) -> None:
        """Add what a bench measured to the history."""
        await self._write(lambda evals: evals.benches.add(records))

    async def benches(self, model: str | None, limit: int) -> list[BenchPoint]:
        """The history of speed with what each figure was compared with, newest first."""
        rows = await self._read(lambda evals: evals.benches.newest(_COMPARED, model=model))
        return points(rows)[:limit]

    async def reviews(self, subject: str | None = None) -> list[Review]:
        """Judgements, oldest first."""
        return await self._read(lambda evals: evals.reviews(subject))

    # -- inside --------------------------------------------------------------------------------------------------
    def _database(self) -> Database:
        with self._guard:
            if self._opened is None:
                self._opened = Database.open(self._path, schema=EVALS)
            return self._opened

    async def _read(self, work: Callable[[Evals], Result]) -> Result:
        return await asyncio.to_thread(lambda: self._database().read(lambda db: work(Evals(db))))

    async def _write(self, work: Callable[[Evals], Result]) -> Result:
        database = await asyncio.to_thread(self._database)
        return await asyncio.wrap_future(database.write(lambda db: work(Evals(db))))


def _number(run_id: str) -> int:
    return int(run_id.removeprefix("e-"))


def _row(run: EvalRun, key: str) -> RunRecord:
    return RunRecord(
        suite=run.suite, model=run.model, key=key, state=run.state, created_at=run.created_at,  # type: ignore[arg-type]
        finished_at=run.finished_at, body=msgspec.json.encode(run).decode(),
    )  # fmt: skip


def _run(row: RunRecord, aliases: dict[str, int]) -> EvalRun:
    run = msgspec.json.decode(row.body, type=EvalRun)
    names = tuple(name for name, number in aliases.items() if number == row.number)
    return msgspec.structs.replace(run, id=row.id, state=row.state, aliases=names)


def _case(run: int, record: Record) -> CaseRecord:
    return CaseRecord(
        run=run, task=record.task, case=record.case, variant=record.variant, repeat=record.repeat,
        state="failed" if record.failure else "done", body=msgspec.json.encode(record).decode(),
    )  # fmt: skip
