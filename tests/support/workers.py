"""Pools of real worker processes on the scripted backend, for tests of everything that keeps them alive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lathe.engine.events import WorkerChanged
from lathe.engine.generation import Delta, GenerationRequest
from lathe.engine.states import Fit, Footprint, WorkerState
from lathe.engine.worker.messages import LoadOptions
from lathe.engine.worker.pool import ModelPool
from lathe.store.models import ModelEntry

GIB = 1024**3


class Machine:
    """A planner over imaginary memory: each model needs what its entry's `bytes` say."""

    def __init__(self, memory: int = 100 * GIB) -> None:
        self.memory = memory
        self.calls = 0

    def __call__(
        self, entry: ModelEntry, options: LoadOptions, held: tuple[WorkerState, ...], gone: tuple[WorkerState, ...]
    ) -> Fit:
        self.calls += 1
        used = sum(state.predicted.total for state in held if state.predicted)
        short = max(0, used + entry.bytes - self.memory)
        footprint = Footprint(weights=entry.bytes, kv_cache=0, compute=0, overhead=0, devices={"cpu": entry.bytes})
        reason = f"does not fit: short by {short / GIB:.1f} GiB of RAM" if short else ""
        return Fit(footprint=footprint, options=options, verdict="no" if short else "fits", short=short, reason=reason)


def scripted(name: str, script: str = "echo", *, size: int = GIB) -> ModelEntry:
    """A model of the scripted backend."""
    return ModelEntry(id=f"id-{name}", name=name, path=f"scripted:{script}", format="remote", bytes=size)


def ask(name: str, prompt: str = "hello world") -> GenerationRequest:
    """A request whose echo is its prompt."""
    return GenerationRequest(model=name, prompt=prompt)


@asynccontextmanager
async def pool_of(
    folder: Path, machine: Machine | None = None, drain_s: float = 10.0
) -> AsyncIterator[tuple[ModelPool, list[WorkerState]]]:
    """A pool, and every state that it publishes."""
    seen: list[WorkerState] = []

    def publish(event: WorkerChanged) -> None:
        seen.append(event.worker)

    pool = ModelPool(folder, planner=machine or Machine(), publish=publish, drain_s=drain_s)
    try:
        yield pool, seen
    finally:
        await pool.close(drain_s=0)


async def answer(pool: ModelPool, entry: ModelEntry, prompt: str = "hello world") -> str:
    """Lease, ask, and return the whole text."""
    deltas: list[Delta] = []
    async with pool.lease(entry) as client:
        async for delta in client.generate(ask(entry.name, prompt)):
            deltas.append(delta)  # noqa: PERF401 - an async comprehension would hide which delta a failure came after
    return "".join(delta.text for delta in deltas)


def strike(pool: ModelPool, name: str, number: int) -> None:
    """Send a signal to a worker's process, unless it is reaped already: by then its id may be a stranger's."""
    client = pool._workers[name]._client
    if client is not None:
        client._child._popen.send_signal(number)
