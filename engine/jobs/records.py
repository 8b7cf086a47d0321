"""The queue's memory: `Job` values in the store's `jobs` table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from lathe.engine.jobs.kinds import name_of
from lathe.engine.jobs.values import Job
from lathe.store.database import Database
from lathe.store.jobs import JobRecord, Jobs

Result = TypeVar("Result")


class StoredJobs:
    """The runner's `Records`, over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def new_id(self) -> str:
        """The next `j-N`."""
        return await self._write(lambda jobs: jobs.new_id())

    async def save(self, job: Job) -> None:
        """Write a job; returns when it is on disk."""
        record = JobRecord(
            id=job.id, kind=name_of(job.step), state=job.state, run=job.run, created_at=job.created_at,
            finished_at=job.finished_at, body=msgspec.json.encode(job).decode(),
        )  # fmt: skip
        await self._write(lambda jobs: jobs.save(record))

    async def unfinished(self) -> list[Job]:
        """Jobs saved as queued or running, oldest first."""
        records = await self._read(lambda jobs: jobs.unfinished())
        return [job for record in records if (job := _readable(record)) is not None]

    async def get(self, job_id: str) -> Job:
        """One job; raises NotFound."""
        return _job(await self._read(lambda jobs: jobs.get(job_id)))

    async def newest(self, limit: int) -> list[Job]:
        """Newest first."""
        records = await self._read(lambda jobs: jobs.newest(limit))
        return [job for record in records if (job := _readable(record)) is not None]

    async def clear_finished(self) -> int:
        """Drop ended jobs."""
        return await self._write(lambda jobs: jobs.clear_finished())

    async def with_key(self, keys: tuple[str, ...], limit: int = 500) -> list[Job]:
        """Finished jobs with one of these reuse keys, newest first, among the last `limit`."""
        records = await self._read(lambda jobs: jobs.newest(limit, ("done",)))
        likely = (record for record in records if any(key in record.body for key in keys))
        return [job for record in likely if (job := _readable(record)) is not None and job.key in keys]

    async def _read(self, work: Callable[[Jobs], Result]) -> Result:
        return await asyncio.to_thread(self._database.read, lambda db: work(Jobs(db)))

    async def _write(self, work: Callable[[Jobs], Result]) -> Result:
        return await asyncio.wrap_future(self._database.write(lambda db: work(Jobs(db))))


def _readable(record: JobRecord) -> Job | None:
    """The job, unless another release wrote what this one does not read: that must not hide the others."""
    try:
        return _job(record)
    except msgspec.MsgspecError:
        return None


def _job(record: JobRecord) -> Job:
    return msgspec.json.decode(record.body, type=Job)
