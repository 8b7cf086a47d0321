"""`Supervisor`: keeps one model's worker alive, and answers for it while it restarts.

    stopped -> starting -> ready -> draining -> stopping -> stopped
                  ^   |      |
                  |   |      '--- crash: back-off, then starting again
                  |   '---------- failed: it said why it cannot load, or died while loading for the first time
                  '-------------- quarantined after three crashes in five minutes

Requests that had streamed nothing when the worker died are asked once more of its successor; the others end with
`CrashedError`. Invariant: every transition publishes the state, and `ready` returns or raises whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from lathe.engine.errors import CrashedError, Failure, UnavailableError, describe, revive
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
)
from lathe.engine.process import GRACE_S
from lathe.engine.states import Fit, WorkerPhase, WorkerState
from lathe.engine.worker.client import Launch, WorkerClient
from lathe.engine.worker.exchange import Observer
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.store.models import ModelEntry

_log = logging.getLogger(__name__)
CRASH_LIMIT, CRASH_WINDOW_S = 3, 300.0
_BACK_OFF_S = 0.25

Answer = TypeVar("Answer")
Plan = Callable[[], Awaitable[Fit]]


class CrashRecord:
    """When a model's workers died, on the monotonic clock; it outlives the supervisors of that model."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=CRASH_LIMIT)
        self.quarantine: Failure | None = None
        """Set at the third crash in the window, and only `clear` takes it back."""

    def add(self, name: str, failure: Failure) -> None:
        """Note a crash that happened now."""
        self._times.append(time.monotonic())
        if self.recent >= CRASH_LIMIT:
            self.quarantine = quarantine(name, failure)

    def clear(self) -> None:
        """Lift the quarantine."""
        self._times.clear()
        self.quarantine = None

    @property
    def recent(self) -> int:
        """Crashes within the window."""
        since = time.monotonic() - CRASH_WINDOW_S
        return sum(moment > since for moment in self._times)

    @property
    def back_off_s(self) -> float:
        """How long to wait before the next start: 0.25 s, then 1 s."""
        return _BACK_OFF_S * 4.0 ** max(0, self.recent - 1)


class Supervisor:
    """One model in memory. `start` it once; `stop` ends it for good."""

    def __init__(
        self,
        entry: ModelEntry,
        requested: LoadOptions,
        plan: Plan,
        *,
        crashes: CrashRecord,
        log_path: Path,
        launch: Launch,
        publish: Callable[[WorkerState], None],
    ) -> None:
        self.entry = entry
        self.requested = requested
        """The options as asked; the plan fills in what they leave open."""
        self.leases = 0
        self.used = 0
        """Times it was leased; tells a timer whether it was used since."""
        self.used_at = time.monotonic()
        self._plan = plan
        self._crashes = crashes
        self._log_path = log_path
        self._launch = launch
        self._publish = publish
        self._client: WorkerClient | None = None
        self._last_words = Failure(CrashedError.code, "")
        self._notice = ""
        self._running: asyncio.Task[None] | None = None
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.state = WorkerState(
            name=entry.name, model_id=entry.id, path=entry.path, phase="stopped", options=requested, since=time.time()
        )

    # -- life ----------------------------------------------------------------------------------------------------
    def start(self, fit: Fit) -> None:
        """Begin to load with the options of `fit`; `ready` tells how it went."""
        self._apply(fit)
        self._enter("starting")
        self._running = asyncio.create_task(self._run(), name=f"worker-{self.entry.name}")

    async def ready(self) -> WorkerClient:
        """Wait until the worker can answer, through restarts.

        Raises:
            LatheError: why it cannot: the load failed, it is quarantined, or it was unloaded.
        """
        while True:
            client = self._client
            if client is not None and not client.gone and self.state.phase in ("ready", "draining"):
                return client
            if self.state.phase in ("failed", "quarantined") and self.state.failure is not None:
                raise revive(self.state.failure)
            if self.state.phase in ("stopping", "stopped"):
                raise UnavailableError(f"model {self.entry.name} was unloaded", hint="load it again", code="E_UNLOADED")
            await self.changed()

    @property
    def alive(self) -> bool:
        """It serves, or will as soon as it has started."""
        return self.state.phase in ("starting", "ready")

    @property
    def idle(self) -> bool:
        """It may be taken out of memory without disturbing anybody."""
        return self.state.phase == "ready" and self.leases == 0

    def drain(self) -> None:
        """Accept no new leases from this moment on."""
        if self.alive:
            self._enter("draining")

    async def unused(self, limit_s: float | None = None) -> bool:
        """Wait until nobody holds a lease or it has stopped; False when `limit_s` passed first."""
        try:
            async with asyncio.timeout(limit_s):
                while self.leases and self.state.phase != "stopped":
                    await self.changed()
        except TimeoutError:
            return False
        return True

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End the worker now; requests that still run fail. Calling it again waits for the same end."""
        if self.state.phase == "stopped":
            return
        if self.state.phase == "stopping":
            await self.gone()
            return
        self._enter("stopping")
        try:
            if self._client is not None:
                await self._client.stop(grace_s)
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait([self._running])
        finally:
            self._client = None
            self._set(info=None, pid=None, progress=None)
            self._enter("stopped")

    async def gone(self) -> None:
        """Wait until it has stopped."""
        while self.state.phase != "stopped":
            await self.changed()

    async def changed(self) -> None:
        """Wait for the next change of phase or of the number of leases."""
        await asyncio.shield(self._turn)

    def lease(self, step: int) -> None:
        """Count users: +1 or -1."""
        self.leases += step
        self.used += step > 0
        self.used_at = time.monotonic()
        self._set(leases=self.leases, last_used_at=time.time())
        self._wake()

    # -- requests ------------------------------------------------------------------------------------------------
    async def generate(
        self, request: GenerationRequest, observer: Observer | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Stream an answer; closing the generator cancels it. `observer` hears of deltas the moment they arrive."""
        for last_try in (False, True):
            stream = (await self.ready()).generate(request, observer)
            silent = True
            try:
                async for delta in stream:
                    silent = False
                    yield delta
                return
            except CrashedError:
                if last_try or not silent:
                    raise
            finally:
                await stream.aclose()

    def cancel(self, number: int) -> None:
        """Stop a running request by the number its observer was told; its stream ends with finish `cancelled`."""
        if self._client is not None:
            self._client.cancel(number)

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Log-likelihood of continuations."""
        return await self._twice(lambda client: client.score(request))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Texts to vectors."""
        return await self._twice(lambda client: client.embed(request))

    async def tokenize(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Text to token ids."""
        return await self._twice(lambda client: client.tokenize(text, special, bos))

    async def detokenize(self, tokens: list[int]) -> str:
        """Token ids to text."""
        return await self._twice(lambda client: client.detokenize(tokens))

    async def render(
        self,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """Apply the model's chat template."""
        return await self._twice(lambda client: client.render(messages, tools, template_args, add_generation_prompt))

    async def _twice(self, ask: Callable[[WorkerClient], Awaitable[Answer]]) -> Answer:
        try:
            return await ask(await self.ready())
        except CrashedError:
            return await ask(await self.ready())

    # -- inside --------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        """Load, watch, and load again after a crash, until stopped, failed or quarantined."""
        served = False
        while True:
            try:
                await self._serve_until_dead()
                served = True
            except CrashedError as error:
                failure = describe(error)
            except Exception as error:  # noqa: BLE001 - nobody else would tell those who wait for `ready`
                self._fail("failed", describe(error))
                return
            else:
                failure = self._last_words
            if self.state.phase == "stopping":
                return
            self._crashes.add(self.entry.name, failure)
            _log.warning("%s", failure.message)
            if self._crashes.quarantine is not None:
                self._fail("quarantined", self._crashes.quarantine)
                return
            if not served or self.state.phase == "draining":
                self._fail("failed", failure)
                return
            self._set(failure=failure, restarts=self.state.restarts + 1)
            self._enter("starting")
            await asyncio.sleep(self._crashes.back_off_s)
            if not await self._replan():
                return

    async def _serve_until_dead(self) -> None:
        self._client = None
        client = await WorkerClient.start(
            self.entry, self.state.options, log_path=self._log_path, on_change=self._refresh, launch=self._launch
        )
        self._client = client
        notice = self._notice or _placement(self.state.options, client.info)
        self._set(info=client.info, pid=client.pid, progress=None, failure=None, notice=notice)
        self._enter("ready" if self.state.phase == "starting" else self.state.phase)
        self._last_words = await client.ended()
        self._client = None
        self._set(info=None, pid=None)

    async def _replan(self) -> bool:
        """Look at the machine again: the device may be gone, or taken by others (FAULTS R12, F29)."""
        try:
            self._apply(await self._plan())
        except Exception as error:  # noqa: BLE001 - as in `_run`: the planner reads files and devices
            self._fail("failed", describe(error))
            return False
        return True

    def _apply(self, fit: Fit) -> None:
        self._notice = "" if fit.verdict == "unknown" else fit.reason
        self._set(options=fit.options, predicted=fit.footprint)

    def _fail(self, phase: WorkerPhase, failure: Failure) -> None:
        self._client = None
        self._set(failure=failure, info=None, pid=None, progress=None)
        self._enter(phase)

    def _refresh(self, client: WorkerClient) -> None:
        self._set(stats=client.stats, progress=client.progress)
        self._publish(self.state)

    def _enter(self, phase: WorkerPhase) -> None:
        self._set(phase=phase, since=time.time())
        self._publish(self.state)
        self._wake()

    def _set(self, **changes: object) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)

    def _wake(self) -> None:
        turn, self._turn = self._turn, asyncio.get_running_loop().create_future()
        turn.set_result(None)


def _placement(options: LoadOptions, info: WorkerInfo) -> str:
    """Say what the worker did with the layers where it is not what was planned: never a silent fall to the CPU."""
    planned, layers = options.gpu_layers or 0, info.layers
    if planned < 0 and layers is not None:
        planned = layers
    if info.gpu_layers >= planned:
        return ""
    return f"{planned} layers were meant for the GPU, {info.gpu_layers} are there (`lathe doctor` says why)"


def quarantine(name: str, last: Failure) -> Failure:
    """The answer of a model that keeps crashing."""
    return Failure(
        "E_QUARANTINED",
        f"{name} crashed {CRASH_LIMIT} times in {CRASH_WINDOW_S / 60:.0f} minutes and is quarantined; "
        f"the last time it {last.message.partition(name)[2].strip() or last.message}",
        f"`lathe models verify {name}` checks the file; loading it with --force lifts the quarantine",
        int(UnavailableError.exit),
    )
