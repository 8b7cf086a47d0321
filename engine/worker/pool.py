"""`ModelPool`: which models are in memory, for whom, and which must make room.

One worker per model name. Requests hold leases; a worker is taken out of memory only when nobody holds one, and from
that moment on nobody gets one (FAULTS S06). Loads are admitted one at a time against the memory estimate; idle workers,
least recently used first, give way when that makes the difference. Invariant: between the check that a worker is idle
and its `draining` there is no await, so no request can slip in between.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from lathe.engine.errors import DoesNotFit, UnavailableError, revive
from lathe.engine.events import WorkerChanged
from lathe.engine.process import GRACE_S
from lathe.engine.states import Fit, WorkerState
from lathe.engine.worker.client import Launch, launch_worker, log_name
from lathe.engine.worker.messages import LoadOptions
from lathe.engine.worker.supervisor import CrashRecord, Supervisor
from lathe.store.models import ModelEntry

DRAIN_S = 60.0
"""How long running requests may hold up an unload before they are cut off."""

_CUT_S = 0.2
"""Grace for a worker whose requests have outlasted the drain."""

IN_MEMORY = frozenset({"starting", "ready", "draining", "stopping"})

Planner = Callable[[ModelEntry, LoadOptions, tuple[WorkerState, ...], tuple[WorkerState, ...]], Fit]
"""(entry, options, workers that stay, workers imagined gone) -> fit. It reads devices and files: called in a thread."""


class ModelPool:
    """Workers by model name."""

    def __init__(
        self,
        log_folder: Path,
        *,
        planner: Planner,
        publish: Callable[[WorkerChanged], None],
        launch: Launch = launch_worker,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._log_folder = log_folder
        self._planner = planner
        self._publish = publish
        self._launch = launch
        self._drain_s = drain_s
        self._workers: dict[str, Supervisor] = {}
        self._names: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._admission = asyncio.Lock()
        self._crashes: defaultdict[str, CrashRecord] = defaultdict(CrashRecord)
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    def states(self) -> tuple[WorkerState, ...]:
        """Every worker that is, or should be, in memory."""
        return tuple(worker.state for worker in self._workers.values())

    def state(self, name: str) -> WorkerState | None:
        """One worker."""
        worker = self._workers.get(name)
        return worker.state if worker else None

    async def estimate(self, entry: ModelEntry, options: LoadOptions | None = None) -> Fit:
        """Predict the memory of a load beside what is loaded now."""
        own = self._workers.get(entry.name)
        return await self._plan(entry, options or LoadOptions(), gone=(own.state,) if own else ())

    async def load(self, entry: ModelEntry, options: LoadOptions | None = None, force: bool = False) -> WorkerState:
        """Bring a model into memory and wait until it is ready.

        With `options` unlike those it was loaded with, it is drained and loaded anew. `force` skips the fit check and
        lifts a quarantine.

        Raises:
            DoesNotFit: naming what is short, also after idle models have given way.
            LatheError: why the worker could not load it.
        """
        async with self._names[entry.name]:
            worker = await self._usable(entry, options, force)
        await worker.ready()
        self._expire_later(worker)
        return worker.state

    async def unload(self, name: str) -> None:
        """Drain and stop a worker; a load that no request waits for is stopped at once. Unknown names are fine."""
        worker = self._workers.get(name)
        if worker is not None:
            await self._retire(worker)

    @asynccontextmanager
    async def lease(self, entry: ModelEntry, options: LoadOptions | None = None) -> AsyncIterator[Supervisor]:
        """Hold a model in memory for the time of a request, loading it (with `options`) where it is not there."""
        async with self._names[entry.name]:
            loaded = self._workers.get(entry.name)
            keep = loaded is not None and loaded.alive and loaded.entry.id == entry.id
            worker = loaded if keep and loaded is not None else await self._usable(entry, options, force=False)
            worker.lease(+1)
        try:
            await worker.ready()
            yield worker
        finally:
            worker.lease(-1)
            self._expire_later(worker)

    async def close(self, drain_s: float = 5.0) -> None:
        """Let requests end for `drain_s`, then stop every worker."""
        self._closed = True
        await asyncio.gather(*(self._retire(worker, drain_s) for worker in list(self._workers.values())))
        if self._retiring:
            await asyncio.wait(self._retiring)

    # -- inside --------------------------------------------------------------------------------------------------
    async def _usable(self, entry: ModelEntry, options: LoadOptions | None, force: bool) -> Supervisor:
        """The worker that fits the wish, started if need be. Called under the name's lock."""
        worker = self._workers.get(entry.name)
        crashes = self._crashes[entry.id]
        if force:
            crashes.clear()
        elif crashes.quarantine is not None:
            raise revive(crashes.quarantine)
        if worker is not None:
            if worker.entry.id == entry.id:
                if worker.alive and options in (None, worker.requested):
                    return worker
                options = options or worker.requested
            await self._retire(worker)
        return await self._admit(entry, options or LoadOptions(), force)

    async def _admit(self, entry: ModelEntry, options: LoadOptions, force: bool) -> Supervisor:
        """Make room if that is what it takes, and start the worker; one admission at a time."""
        async with self._admission:
            fit = await self._plan(entry, options, gone=())
            if fit.verdict == "no" and not force:
                fit = await self._make_room(entry, options, fit)
            if self._closed:
                raise UnavailableError("the engine is stopping")
            worker = Supervisor(
                entry,
                options,
                lambda: self._plan_or_refuse(entry, options),
                crashes=self._crashes[entry.id],
                log_path=self._log_folder / log_name(entry.name),
                launch=self._launch,
                publish=lambda state: self._publish(WorkerChanged(state)),
            )
            self._workers[entry.name] = worker
            worker.start(fit)
            return worker

    async def _make_room(self, entry: ModelEntry, options: LoadOptions, fit: Fit) -> Fit:
        """Evict idle workers, least recently used first, but none if even all of them would not do."""
        idle = sorted((worker for worker in self._workers.values() if worker.idle), key=lambda worker: worker.used_at)
        hopeful = await self._plan(entry, options, gone=tuple(worker.state for worker in idle))
        if hopeful.verdict == "no":
            raise _refusal(entry, fit, self.states())
        for worker in idle:
            if not worker.idle:
                continue  # somebody leased it while another was being stopped
            await self._retire(worker)
            fit = await self._plan(entry, options, gone=())
            if fit.verdict != "no":
                return fit
        raise _refusal(entry, fit, self.states())

    async def _plan_or_refuse(self, entry: ModelEntry, options: LoadOptions) -> Fit:
        fit = await self._plan(entry, options, gone=())
        if fit.verdict == "no":
            raise _refusal(entry, fit, self.states())
        return fit

    async def _plan(self, entry: ModelEntry, options: LoadOptions, gone: tuple[WorkerState, ...]) -> Fit:
        leaving = {state.name for state in gone}
        held = tuple(
            state for state in self.states() if state.name not in leaving | {entry.name} and state.phase in IN_MEMORY
        )
        return await asyncio.to_thread(self._planner, entry, options, held, gone)

    async def _retire(self, worker: Supervisor, drain_s: float | None = None) -> None:
        """Drain, stop and forget; whoever asks for the name meanwhile waits for it.

        A caller that leaves does not stop it: half retired, a worker would hold its memory and answer nobody.
        """
        await asyncio.shield(self._retirement(worker, drain_s))

    def _retirement(self, worker: Supervisor, drain_s: float | None = None) -> asyncio.Task[None]:
        worker.drain()
        task = asyncio.create_task(self._stop(worker, self._drain_s if drain_s is None else drain_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _stop(self, worker: Supervisor, drain_s: float) -> None:
        unused = await worker.unused(drain_s)
        await worker.stop(GRACE_S if unused else _CUT_S)
        if self._workers.get(worker.entry.name) is worker:
            del self._workers[worker.entry.name]

    def _expire_later(self, worker: Supervisor) -> None:
        """Unload `ttl_s` after the last use, unless it is used again."""
        if worker.requested.ttl_s is not None and not worker.leases:
            loop = asyncio.get_running_loop()
            loop.call_later(worker.requested.ttl_s, self._expire, worker, worker.used)

    def _expire(self, worker: Supervisor, used: int) -> None:
        if worker.used != used or self._workers.get(worker.entry.name) is not worker:
            return
        if worker.idle:
            self._retirement(worker)
        elif worker.alive:
            self._expire_later(worker)  # it is restarting; nobody waits for it


def _refusal(entry: ModelEntry, fit: Fit, states: tuple[WorkerState, ...]) -> DoesNotFit:
    busy = ", ".join(state.name for state in states if state.phase in IN_MEMORY)
    hint = "use a smaller context, a smaller KV type or a stronger quantization; --force loads it anyway"
    return DoesNotFit(f"{entry.name} {fit.reason}", hint=f"{hint}; in memory now: {busy}" if busy else hint)
