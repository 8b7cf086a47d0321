"""The queue: lanes, order, states saved before published, stops that keep what was done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import BusyError, DataError, UsageError
from lathe.engine.events import Event, JobChanged, JobProgressed
from lathe.engine.jobs import kinds
from lathe.engine.jobs.runner import JobRunner
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import FINAL, Job, Lane, Outcome
from lathe.engine.paths import Home
from lathe.engine.steps import BenchStep, PerplexityStep, ScanStep, Step, TuneStep
from lathe.store.errors import NotFound, StoreFull
from lathe.store.models import ModelEntry
from support.waiting import until

Code = Callable[[Any, ServiceContext], Awaitable[Outcome]]


class Memory:
    """The runner's records in a dict; remembers in which order states were saved."""

    def __init__(self) -> None:
        self.saved: dict[str, Job] = {}
        self.history: list[tuple[str, str]] = []
        self.full = False
        self.refused: list[Job] = []

    async def new_id(self) -> str:
        return f"j-{len(self.saved) + 1}"

    async def save(self, job: Job) -> None:
        await asyncio.sleep(0)
        if self.full:
            self.refused.append(job)
            raise StoreFull("no room left")
        self.saved[job.id] = job
        if (job.id, job.state) not in self.history[-1:]:
            self.history.append((job.id, job.state))

    async def unfinished(self) -> list[Job]:
        return [job for job in self.saved.values() if job.state in ("queued", "running")]

    async def get(self, job_id: str) -> Job:
        await asyncio.sleep(0)
        if job_id not in self.saved:
            raise NotFound(f"no job {job_id}")
        return self.saved[job_id]

    async def newest(self, limit: int) -> list[Job]:
        return list(reversed(self.saved.values()))[:limit]

    async def clear_finished(self) -> int:
        ended = [job_id for job_id, job in self.saved.items() if job.state in FINAL]
        for job_id in ended:
            del self.saved[job_id]
        return len(ended)


class World:
    """Everything a runner needs, and what it did to it."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.records = Memory()
        self.events: list[Event] = []
        self.registered: list[Job] = []
        self.collected: list[str] = []
        self.collecting = asyncio.Event()
        self.collecting.set()
        self.runner = self.new_runner()

    def new_runner(self, cpu: int = 1) -> JobRunner:
        lanes: dict[Lane, int] = {"cpu": cpu, "gpu": 1, "io": 1}
        return JobRunner(self.home, self.records, self, self._hear, lanes)

    def _hear(self, event: Event) -> None:
        if isinstance(event, JobChanged):
            kept = (self.records.saved[event.job.id], *self.records.refused)
            assert event.job in kept, "published before it was saved"
        self.events.append(event)

    async def resolve(self, reference: str) -> ModelEntry:
        return ModelEntry(id="0" * 12, name=reference, path=reference, format="gguf", bytes=1)

    async def key(self, step: Step) -> str:
        return f"key of {kinds.name_of(step)}"

    async def register(self, job: Job) -> None:
        self.registered.append(job)

    async def collect(self, job: Job) -> None:
        await self.collecting.wait()
        self.collected.append(job.id)

    def workbench(self) -> None:
        return None


class Scripted:
    """A kind of step whose code is given by the test."""

    service = True

    def __init__(self, code: Code, lane: Lane = "cpu") -> None:
        self.code, self.lane = code, lane

    def load(self) -> Code:
        return self.code


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.runner.close()


def _script(monkeypatch: pytest.MonkeyPatch, code: Code, step: type = ScanStep, lane: Lane = "cpu") -> None:
    monkeypatch.setitem(kinds.KINDS, step, Scripted(code, lane))  # type: ignore[arg-type]


async def _done(step: Any, context: ServiceContext) -> Outcome:
    await context.progress("working", 1, 2, "file")
    context.log("half way")
    return Outcome(figures={"files": 2})


async def _forever(step: Any, context: ServiceContext) -> Outcome:
    await context.progress("working", 1, 10)
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_job_lives_its_life(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, _done)
    job = await world.runner.wait((await world.runner.submit(ScanStep(), run="r-1")).id)
    assert (job.state, job.outcome, job.run, job.attempts) == ("done", Outcome(figures={"files": 2}), "r-1", 1)
    assert job.key == "key of scan"
    assert [state for _, state in world.records.history] == ["queued", "running", "done"]
    assert [event.progress.done for event in world.events if isinstance(event, JobProgressed)] == [1]
    assert world.registered[0].outcome == job.outcome
    assert "half way" in (world.home.job(job.id) / "log").read_text()
    assert not world.runner.busy


async def test_an_error_is_the_jobs_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(step: Any, context: ServiceContext) -> Outcome:
        raise DataError("model.gguf: too short", hint="fetch it again")

    _script(monkeypatch, broken)
    job = await world.runner.wait((await world.runner.submit(ScanStep())).id)
    assert job.state == "failed"
    assert job.failure is not None and (job.failure.message, job.failure.exit) == ("model.gguf: too short", 65)
    assert world.collected == [job.id]


@pytest.mark.parametrize(
    "step",
    [PerplexityStep(model="m", chunks=-5), TuneStep(model="m", text="t", minutes=float("nan"))],
)
async def test_a_step_with_impossible_values_never_reaches_the_queue(world: World, step: Step) -> None:
    """Saved, it could not be read again."""
    with pytest.raises(UsageError, match=step.__struct_config__.tag):
        await world.runner.submit(step)
    assert world.records.saved == {}


async def test_a_lane_runs_one_at_a_time_in_order_and_lanes_do_not_wait_for_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[str] = []
    most, order = 0, []
    gate = asyncio.Event()

    async def slow(step: Any, context: ServiceContext) -> Outcome:
        nonlocal most
        running.append(step.model)
        order.append(step.model)
        most = max(most, len(running))
        await gate.wait()
        running.remove(step.model)
        return Outcome()

    _script(monkeypatch, slow, BenchStep)
    _script(monkeypatch, _done, ScanStep, lane="io")
    jobs = [await world.runner.submit(BenchStep(model=name)) for name in "abc"]
    scan = await world.runner.wait((await world.runner.submit(ScanStep())).id)
    assert scan.state == "done"
    gate.set()
    for job in jobs:
        assert (await world.runner.wait(job.id)).state == "done"
    assert (most, order) == (1, ["a", "b", "c"])


async def test_cancel_stops_a_queued_and_a_running_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, _forever)
    first, second = await world.runner.submit(ScanStep()), await world.runner.submit(ScanStep())
    assert (await world.runner.cancel(second.id)).state == "cancelled"
    while (await world.runner.get(first.id)).state != "running":
        await asyncio.sleep(0.001)
    job = await world.runner.cancel(first.id)
    assert job.state == "cancelled"
    assert job.failure is not None and job.failure.exit == 130
    assert f"jobs resume {first.id}" in job.failure.hint
    assert (await world.runner.cancel(first.id)).state == "cancelled", "a second cancel changes nothing"


async def test_resume_runs_the_same_job_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, _forever)
    job = await world.runner.submit(ScanStep())
    with pytest.raises(UsageError, match="j-1 is queued"):
        await world.runner.resume(job.id)
    await world.runner.cancel(job.id)
    _script(monkeypatch, _done)
    resumed = await world.runner.resume(job.id)
    ended = await world.runner.wait(resumed.id)
    assert (ended.id, ended.state, ended.failure) == (job.id, "done", None)


async def test_two_that_resume_a_job_start_it_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.runner = world.new_runner(cpu=2)
    _script(monkeypatch, _forever)
    job = await world.runner.submit(ScanStep())
    await world.runner.cancel(job.id)
    both = await asyncio.gather(world.runner.resume(job.id), world.runner.resume(job.id), return_exceptions=True)
    assert [type(answer) for answer in both] == [Job, UsageError]
    assert [state for _, state in world.records.history].count("queued") == 2
    with pytest.raises(UsageError):
        await world.runner.resume(job.id)


async def test_a_job_resumed_while_it_is_cleared_away_waits_for_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, _forever)
    job = await world.runner.submit(ScanStep())
    await until(lambda: bool(world.events and isinstance(world.events[-1], JobProgressed)))
    world.collecting.clear()
    assert (await world.runner.cancel(job.id)).state == "cancelled"
    resuming = asyncio.create_task(world.runner.resume(job.id))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not resuming.done() and not world.collected
    world.collecting.set()
    assert (await resuming).state == "queued"
    await until(lambda: world.records.saved[job.id].state == "running")
    assert (await world.runner.cancel(job.id)).state == "cancelled", "the second run can be stopped, too"
    await until(lambda: not world.runner.busy and not world.runner._tasks)


async def test_a_job_ends_though_the_store_has_no_room_and_is_saved_when_there_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def filling(step: Any, context: ServiceContext) -> Outcome:
        world.records.full = True
        return Outcome(figures={"files": 1})

    _script(monkeypatch, filling)
    job = await world.runner.submit(ScanStep())
    ended = await world.runner.wait(job.id)
    assert (ended.state, ended.outcome) == ("done", Outcome(figures={"files": 1}))
    assert await world.runner.get(job.id) == ended == (await world.runner.newest(1))[0]
    assert world.records.saved[job.id].state == "running"
    assert JobChanged(ended) in world.events and not world.runner.busy
    world.records.full = False
    await world.runner.close()
    assert world.records.saved[job.id] == ended


async def test_the_engines_end_makes_running_jobs_resumable_and_keeps_queued_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, _forever)
    first, second = await world.runner.submit(ScanStep()), await world.runner.submit(ScanStep())
    while (await world.runner.get(first.id)).state != "running":
        await asyncio.sleep(0.001)
    await world.runner.close()
    assert world.records.saved[first.id].state == "interrupted"
    assert world.records.saved[second.id].state == "queued"
    with pytest.raises(BusyError):
        await world.runner.submit(ScanStep())
    _script(monkeypatch, _done)
    world.runner = world.new_runner()
    await world.runner.recover()
    assert (await world.runner.wait(second.id)).state == "done"
    assert (await world.runner.get(first.id)).state == "interrupted"


async def test_after_a_crash_of_the_engine_nothing_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, _done)
    crashed = Job(id="j-1", step=PerplexityStep(model="m"), title="m", state="running", pid=1)
    await world.records.save(crashed)
    await world.runner.recover()
    job = await world.runner.get("j-1")
    assert job.state == "interrupted"
    assert job.failure is not None and job.failure.code == "E_INTERRUPTED"
    assert world.collected == ["j-1"]


async def test_clearing_keeps_what_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(monkeypatch, _done)
    await world.runner.wait((await world.runner.submit(ScanStep())).id)
    _script(monkeypatch, _forever)
    running = await world.runner.submit(ScanStep())
    assert await world.runner.clear_finished() == 1
    assert [job.id for job in await world.runner.newest(10)] == [running.id]


def test_every_step_has_a_kind_and_a_title() -> None:
    from typing import get_args

    assert set(kinds.KINDS) == set(get_args(Step))
    for kind in kinds.KINDS.values():
        assert kind.target.count(":") == 1
    assert kinds.title_of(BenchStep(model="/models/x.gguf")) == "x.gguf"
    assert kinds.references(PerplexityStep(model="m")) == ("m",)
