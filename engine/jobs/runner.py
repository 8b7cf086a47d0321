"""The queue: starts jobs when their lane is free, follows them, stops them, remembers them.

    submit -> queued -> (lane free) -> child or service -> register outcome -> done
Effects reach the world through `Records` (the store), `publish` (the bus) and `Setting` (catalogue and workbench), so
the queue itself is tested without any of them. Invariant: every change of a job's state is saved before it is
published (an end that the store has no room for is told all the same), a job runs once at a time, and one that was
running when the engine died is `interrupted`, never lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from lathe.engine.errors import BusyError, Failure, UsageError, describe, revive
from lathe.engine.events import Event, JobChanged, JobProgressed
from lathe.engine.jobs import child as wire_values
from lathe.engine.jobs.kinds import Kind, kind_of, name_of, references, title_of
from lathe.engine.jobs.pace import Pace
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import FINAL, Job, JobSpec, JobState, Lane, Outcome, Progress
from lathe.engine.paths import Home
from lathe.engine.process import Child, spawn
from lathe.engine.steps import Step
from lathe.store.errors import StoreError
from lathe.store.models import ModelEntry

_LOG = logging.getLogger("lathe.jobs")
_SAVE_INTERVAL_S = 2.0
"""Progress is saved this often; state changes are saved at once."""


class Records(Protocol):
    """What the queue needs of the store."""

    async def new_id(self) -> str:
        """The next `j-N`."""

    async def save(self, job: Job) -> None:
        """Write a job; returns when it is on disk."""

    async def unfinished(self) -> list[Job]:
        """Jobs saved as queued or running, oldest first."""

    async def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            NotFound: no job has that id."""

    async def newest(self, limit: int) -> list[Job]:
        """Newest first."""

    async def clear_finished(self) -> int:
        """Drop ended jobs; returns how many."""


class Setting(Protocol):
    """What jobs need of the rest of the engine."""

    async def resolve(self, reference: str) -> ModelEntry:
        """The model a reference names."""

    async def key(self, step: Step) -> str:
        """The reuse key of a step, over the contents of its inputs as they are now."""

    async def register(self, job: Job) -> None:
        """Enter a finished job's artefacts and figures into the catalogue."""

    async def collect(self, job: Job) -> None:
        """Remove parts that a killed job left."""

    def workbench(self) -> Any:
        """The facade, for services."""


class JobRunner:
    """The queue of one workspace."""

    def __init__(
        self, home: Home, records: Records, setting: Setting, publish: Callable[[Event], None], lanes: dict[Lane, int]
    ) -> None:
        self._home = home
        self._records = records
        self._setting = setting
        self._publish = publish
        self._free = dict(lanes)
        self._queue: list[Job] = []
        self._active: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._children: dict[str, Child] = {}
        self._services: dict[str, asyncio.Task[Outcome]] = {}
        self._stopping: dict[str, JobState] = {}
        self._saved_at: dict[str, float] = {}
        self._resuming: set[str] = set()
        self._unsaved: dict[str, Job] = {}
        """Ended jobs that could not be saved; the store takes them for running."""
        self._changed = asyncio.Condition()
        self._closing = False

    async def recover(self) -> None:
        """After a restart: what was running is interrupted, what was queued goes on."""
        for job in await self._records.unfinished():
            if job.state == "queued":
                self._queue.append(job)
                continue
            failure = Failure(
                "E_INTERRUPTED", "the engine stopped while the job ran", f"`lathe jobs resume {job.id}`", 75
            )
            await self._finish(job, "interrupted", failure=failure)
            await self._setting.collect(job)
        self._dispatch()

    @property
    def busy(self) -> bool:
        """Whether anything is queued or running."""
        return bool(self._queue or self._active)

    def pids(self) -> dict[str, int]:
        """Job id -> process id, of jobs that run in children."""
        return {job_id: child.pid for job_id, child in self._children.items()}

    async def submit(self, step: Step, run: str | None = None) -> Job:
        """Queue a step; one that names an unknown model or has impossible values is refused here, not in the queue."""
        self._refuse_when_closing()
        _check(step)
        names = {named: (await self._setting.resolve(named)).name for named in references(step)}
        kind = kind_of(step)
        job = Job(
            id=await self._records.new_id(),
            step=step,
            title=title_of(step, names),
            lane=kind.lane,
            created_at=time.time(),
            run=run,
        )
        await self._enqueue(job)
        return job

    async def resume(self, job_id: str) -> Job:
        """Queue a stopped job again under its own id; its checkpoint is used."""
        self._refuse_when_closing()
        if job_id in self._resuming:
            raise _not_stopped(job_id, "queued")
        self._resuming.add(job_id)
        try:
            job = await self.get(job_id)
            if job.state not in FINAL:
                raise _not_stopped(job_id, job.state)
            if job_id in self._tasks:  # it has ended, and what it left is being cleared away
                await asyncio.wait({self._tasks[job_id]})
                self._refuse_when_closing()
            again = msgspec.structs.replace(
                job,
                state="queued",
                failure=None,
                outcome=None,
                finished_at=None,
                started_at=None,
                progress=Progress(),
                pid=None,
            )
            await self._enqueue(again)
        finally:
            self._resuming.discard(job_id)
        return again

    async def cancel(self, job_id: str, force: bool = False) -> Job:
        """Stop a job, at once with `force`; a second cancel of a running job forces, too."""
        job = await self.get(job_id)
        if job_id not in self._tasks:
            if job.state != "queued":
                return job
            self._queue = [queued for queued in self._queue if queued.id != job_id]
            return await self._finish(job, "cancelled")
        again = job_id in self._stopping
        self._stopping[job_id] = "cancelled"
        await self._stop(job_id, force or again)
        return await self.wait(job_id)

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        live = self._active.get(job_id) or next((job for job in self._queue if job.id == job_id), None)
        return live or self._unsaved.get(job_id) or await self._records.get(job_id)

    async def newest(self, limit: int) -> list[Job]:
        """Jobs, newest first, live progress included."""
        saved = await self._records.newest(limit)
        return [self._active.get(job.id) or self._unsaved.get(job.id, job) for job in saved]

    async def clear_finished(self) -> int:
        """Drop ended jobs from the list."""
        await self._save_late()
        return await self._records.clear_finished()

    async def wait(self, job_id: str) -> Job:
        """Wait for a final state."""
        async with self._changed:
            while (job := await self.get(job_id)).state not in FINAL:
                await self._changed.wait()
        return job

    async def close(self) -> None:
        """Stop every running job resumably; queued ones stay queued in the store."""
        self._closing = True
        for job_id in tuple(self._tasks):
            self._stopping.setdefault(job_id, "interrupted")
        await asyncio.gather(*(self._stop(job_id) for job_id in tuple(self._tasks)), return_exceptions=True)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._save_late()

    # -- inside --------------------------------------------------------------------------------------------------

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise BusyError("the engine is stopping", hint="try again when it runs")

    async def _enqueue(self, job: Job) -> None:
        await self._save(job)
        self._queue.append(job)
        self._dispatch()

    def _dispatch(self) -> None:
        """Start every queued job whose lane has room, in order of submission."""
        if self._closing:
            return
        for job in tuple(self._queue):
            if self._free[job.lane] < 1:
                continue
            self._free[job.lane] -= 1
            self._queue.remove(job)
            self._active[job.id] = job
            self._tasks[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")

    async def _run(self, job: Job) -> None:
        kind = kind_of(job.step)
        try:
            job = msgspec.structs.replace(
                job, state="running", started_at=time.time(), last_event_at=time.time(), attempts=job.attempts + 1
            )
            self._active[job.id] = job
            await self._save(job)
            job = self._active[job.id] = msgspec.structs.replace(job, key=await self._setting.key(job.step))
            outcome = await (self._serve(kind, job) if kind.service else self._follow(job))
            await self._setting.register(msgspec.structs.replace(self._active[job.id], outcome=outcome))
            await self._finish(self._active[job.id], "done", outcome=outcome)
        except asyncio.CancelledError:
            await self._end_stopped(job)
        except Exception as error:  # noqa: BLE001 - the boundary of a job: its error becomes its result
            if job.id in self._stopping:
                await self._end_stopped(job)
            else:
                await self._finish(self._active[job.id], "failed", failure=describe(error))
                await self._setting.collect(job)
        finally:
            self._free[job.lane] += 1
            self._tasks.pop(job.id, None)
            self._stopping.pop(job.id, None)
            self._saved_at.pop(job.id, None)
            self._dispatch()

    async def _end_stopped(self, job: Job) -> None:
        """A job that was told to stop: `cancelled` by the user or `interrupted` by the engine's end."""
        state = self._stopping.get(job.id, "interrupted")
        hint = f"`lathe jobs resume {job.id}` goes on from its checkpoint"
        message = "stopped by the user" if state == "cancelled" else "the engine stopped while the job ran"
        failure = Failure(f"E_{state.upper()}", message, hint, 130 if state == "cancelled" else 75)
        await self._finish(self._active.get(job.id, job), state, failure=failure)
        await self._setting.collect(job)

    async def _follow(self, job: Job) -> Outcome:
        """Run the job in a child and listen to it."""
        models = {reference: await self._setting.resolve(reference) for reference in references(job.step)}
        work_dir = self._home.job(job.id)
        work_dir.mkdir(parents=True, exist_ok=True)
        child = await spawn("lathe.engine.jobs.child", role=f"{name_of(job.step)} {job.id}", log_path=work_dir / "log")
        self._children[job.id] = child
        self._active[job.id] = msgspec.structs.replace(self._active[job.id], pid=child.pid)
        answer: wire_values.Finished | wire_values.Broke | None = None
        pace = Pace(time.monotonic())
        try:
            if job.id in self._stopping:
                raise asyncio.CancelledError
            await child.send(JobSpec(job=job, home=str(self._home.root), work_dir=str(work_dir), models=models))
            incoming: AsyncIterator[wire_values.FromJob] = child.messages(wire_values.FromJob)
            async for message in incoming:
                if isinstance(message, wire_values.Reported):
                    await self._progressed(job.id, pace.update(message.progress, time.monotonic()))
                else:
                    answer = message
        finally:
            self._children.pop(job.id, None)
            cause = await (child.wait() if answer else child.stop())
            child.close()
        if isinstance(answer, wire_values.Finished):
            return answer.outcome
        failure = answer.failure if answer else cause.failure(child.role)
        raise revive(failure)

    async def _serve(self, kind: Kind, job: Job) -> Outcome:
        """Run the job as a coroutine of the engine: its native work happens in model workers."""
        pace = Pace(time.monotonic())
        work_dir = self._home.job(job.id)
        work_dir.mkdir(parents=True, exist_ok=True)

        async def report(progress: Progress) -> None:
            await self._progressed(job.id, pace.update(progress, time.monotonic()))

        run: Callable[..., Awaitable[Outcome]] = kind.load()
        with ServiceContext(self._setting.workbench(), work_dir / "log", report) as context:
            service = self._services[job.id] = asyncio.ensure_future(run(job.step, context))
            try:
                if job.id in self._stopping:
                    service.cancel()
                return await service
            finally:
                del self._services[job.id]

    async def _progressed(self, job_id: str, progress: Progress) -> None:
        job = self._active[job_id]
        now = time.time()
        new_stage = progress.stage != job.progress.stage or progress.label != job.progress.label
        self._active[job_id] = job = msgspec.structs.replace(job, progress=progress, last_event_at=now)
        self._publish(JobProgressed(job_id, progress))
        if new_stage or now - self._saved_at.get(job_id, 0.0) > _SAVE_INTERVAL_S:
            self._saved_at[job_id] = now
            await self._records.save(job)

    async def _stop(self, job_id: str, force: bool = False) -> None:
        """Stop whatever runs the job; what has not begun yet sees `_stopping` when it does."""
        child, service = self._children.get(job_id), self._services.get(job_id)
        if service is not None:
            service.cancel()
        elif child is not None and force:
            child.kill()
        elif child is not None:
            await child.stop()

    async def _finish(
        self, job: Job, state: JobState, *, outcome: Outcome | None = None, failure: Failure | None = None
    ) -> Job:
        ended = msgspec.structs.replace(
            job, state=state, outcome=outcome, failure=failure, finished_at=time.time(), pid=None
        )
        try:
            await self._save(ended)
        except Exception as error:  # noqa: BLE001 - whatever keeps it out of the store, the job has ended
            self._unsaved[job.id] = ended
            self._publish(JobChanged(ended))
            _LOG.warning("%s is %s, which could not be saved: %s", job.id, state, error)
        finally:
            self._active.pop(job.id, None)
            async with self._changed:
                self._changed.notify_all()
        return ended

    async def _save(self, job: Job) -> None:
        await self._records.save(job)
        self._unsaved.pop(job.id, None)
        self._publish(JobChanged(job))

    async def _save_late(self) -> None:
        """Try again to save what could not be saved when it ended."""
        for job in tuple(self._unsaved.values()):
            with suppress(StoreError):
                await self._save(job)


def _check(step: Step) -> None:
    """Raise `UsageError` for values outside their ranges: structs check them only where they are decoded."""
    try:
        msgspec.json.decode(msgspec.json.encode(step), type=Step)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name_of(step)}: {error}", hint="`lathe VERB --help` lists what it takes") from error


def _not_stopped(job_id: str, state: str) -> UsageError:
    return UsageError(f"{job_id} is {state}", hint="only a stopped job can be resumed")
