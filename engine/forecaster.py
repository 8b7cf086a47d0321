"""`Forecaster`: asks the forecasting process, and adds whether the result would fit on this machine.

The process is started by the first question, kept while questions come, and replaced when a model file kills it.
Invariant: a caller that leaves costs nothing but an answer that nobody hears.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from lathe.engine.errors import revive
from lathe.engine.jobs.forecast import Answered, Asked, Planned
from lathe.engine.planner import MemoryPlanner
from lathe.engine.process import Child, spawn
from lathe.engine.states import Fit, Forecast, WorkerState
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry

IDLE_S = 120.0
"""The process ends after this long without a question."""


class Forecaster:
    """Forecasts for one workspace."""

    def __init__(
        self, home: Path, log_path: Path, planner: MemoryPlanner, held: Callable[[], tuple[WorkerState, ...]]
    ) -> None:
        """`held` lists the workers whose memory a new model cannot have."""
        self._home = home
        self._log_path = log_path
        self._planner = planner
        self._held = held
        self._child: Child | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[Child, asyncio.Future[Forecast]]] = {}
        """Question -> the process that was asked, and who waits for its answer."""
        self._idle: asyncio.TimerHandle | None = None

    async def forecast(self, step: Planned, entry: ModelEntry) -> Forecast:
        """What the step would make of the model it names.

        Raises:
            CrashedError: the file killed the process.
        """
        child = await self._ready()
        number = next(self._numbers)
        waiting: asyncio.Future[Forecast] = asyncio.get_running_loop().create_future()
        self._waiting[number] = child, waiting
        try:
            await child.send(Asked(number, step, entry, str(self._home)))
            found = await waiting
        finally:
            self._waiting.pop(number, None)
            self._rest()
        fit = await asyncio.to_thread(self._fit, step, entry, found) if found.bytes is not None else None
        return msgspec.structs.replace(found, fit=fit)

    async def close(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace_s=1.0)
        if self._listening is not None:
            await asyncio.wait({self._listening})

    def _fit(self, step: Planned, entry: ModelEntry, found: Forecast) -> Fit | None:
        """Whether the result can be run here; None where it does not run by itself."""
        made = step.to if isinstance(step, ConvertStep) else "onnx" if isinstance(step, OnnxQuantizeStep) else "gguf"
        if made == "safetensors" or entry.card.get("adapter"):
            return None
        try:
            card = msgspec.convert(entry.card, ModelCard)
        except msgspec.ValidationError:
            return None
        assert found.bytes is not None
        card = msgspec.structs.replace(
            card, format=made, bytes=found.bytes, tensor_types=found.mix, bits_per_weight=found.bits_per_weight
        )
        return self._planner.imagine(card, LoadOptions(), self._held())

    async def _ready(self) -> Child:
        async with self._starting:
            if self._child is None or self._child.exit_cause is not None:
                self._child = await spawn("lathe.engine.jobs.forecast", role="forecast", log_path=self._log_path)
                self._listening = asyncio.create_task(self._listen(self._child), name="forecast-answers")
            return self._child

    async def _listen(self, child: Child) -> None:
        """Hand answers to those who wait; when the process ends, tell them."""
        try:
            answers: AsyncIterator[Answered] = child.messages(Answered)
            async for message in answers:
                _, future = self._waiting.get(message.id, (child, None))
                if future is not None and not future.done():
                    future.set_result(message.forecast)
        finally:
            child.close()
            cause = await child.stop(grace_s=0.0)
            if self._child is child:
                self._child = None
            for asked, future in self._waiting.values():
                if asked is child and not future.done():
                    future.set_exception(revive(cause.failure("forecast")))

    def _rest(self) -> None:
        """Let the process end some time after the last question."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._sleep)

    def _sleep(self) -> None:
        if self._child is not None and not self._waiting:
            child, self._child = self._child, None
            child.close()  # it ends by itself when its channel closes
