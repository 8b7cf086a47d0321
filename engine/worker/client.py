"""`WorkerClient`: the parent's side of one worker process, from its start to its death.

It speaks `lathe.engine.worker.messages`, spreads answers to their callers, and kills a child that falls silent, stays
in one native call for too long, or sends what is no message. Invariant: when `ended` is done the process is reaped and
every open request has been answered or has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from lathe.engine import process
from lathe.engine.catalogue.remotes import secret_of
from lathe.engine.errors import CrashedError, Failure, LatheError, UnavailableError, revive
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
from lathe.engine.process import Child, ExitCause
from lathe.engine.wire import WireError
from lathe.engine.worker import messages as m
from lathe.engine.worker.exchange import Exchange, Observer
from lathe.store.models import ModelEntry

SILENCE_S = 10.0
"""No message for this long, though the engine was listening: the worker hangs."""
LOAD_S = 60.0
"""The same until it is ready: loading a native library from a cold disk stops every thread of an interpreter."""
BUSY_S = 900.0
"""Longest native call: a full batch of a large model on a slow processor takes minutes, never a quarter of an hour."""
_TICK_S = 1.0

Answer = TypeVar("Answer")
Launch = Callable[[str, Path], Awaitable[Child]]


async def launch_worker(name: str, log_path: Path) -> Child:
    """Start the process of a model worker."""
    return await process.spawn(
        "lathe.engine.worker.child", role=f"worker {name}", log_path=log_path, env=process.eager_environment()
    )


def log_name(model: str) -> str:
    """File name of a model's worker log."""
    return f"worker-{re.sub(r'[^A-Za-z0-9._-]+', '_', model)[:80]}.log"


class WorkerClient:
    """One worker process. Use `start`; `ended` resolves to why it is gone."""

    def __init__(self, child: Child, on_change: Callable[[WorkerClient], None]) -> None:
        self.pid = child.pid
        self.progress: float | None = None
        self.stats = m.WorkerStats()
        self.info: m.WorkerInfo
        self._child = child
        self._on_change = on_change
        self._exchanges: dict[int, Exchange] = {}
        self._last_id = 0
        self._silent_s = 0.0
        self._heard = False
        self._blame: str | None = None
        self._stopping = False
        self._ready: asyncio.Future[m.WorkerInfo] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        entry: ModelEntry,
        options: m.LoadOptions,
        *,
        log_path: Path,
        on_change: Callable[[WorkerClient], None],
        launch: Launch,
    ) -> WorkerClient:
        """Start a process, load the model, and wait until it can answer.

        `on_change` is called when `progress` or `stats` has a new value.

        Raises:
            CrashedError: the process died while loading.
            LatheError: it said why it cannot load.
        """
        secret = secret_of(entry)
        client = cls(await launch(entry.name, log_path), on_change)
        try:
            with contextlib.suppress(CrashedError):  # the reader learns why, and `_ready` tells
                await client._child.send(m.Load(entry.path, entry.name, options, secret=secret))
            client.info = await client._ready
        except BaseException:
            await client.stop(grace_s=0.5)
            raise
        return client

    # -- requests ------------------------------------------------------------------------------------------------
    async def generate(
        self, request: GenerationRequest, observer: Observer | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Stream an answer; closing the generator cancels it in the worker. `observer` hears of deltas on arrival."""
        exchange = self._open(observer)
        try:
            await self._child.send(m.Generate(exchange.id, request))
            while deltas := await exchange.deltas():
                for delta in deltas:
                    yield delta
        finally:
            self._close(exchange)

    def cancel(self, number: int) -> None:
        """Stop a running request by its number; its stream ends with finish `cancelled`."""
        if number in self._exchanges:
            self._child.post(m.Cancel(number))

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Log-likelihood of continuations."""
        return list((await self._ask(lambda number: m.ScoreTexts(number, request), m.Scores)).scores)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Texts to vectors."""
        return (await self._ask(lambda number: m.Embed(number, request), m.Vectors)).embeddings

    async def tokenize(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Text to token ids."""
        return list((await self._ask(lambda number: m.Tokenize(number, text, special, bos), m.Tokens)).tokens)

    async def detokenize(self, tokens: list[int]) -> str:
        """Token ids to text."""
        return (await self._ask(lambda number: m.Detokenize(number, tuple(tokens)), m.Text)).text

    async def render(
        self,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """Apply the model's chat template."""
        return (
            await self._ask(
                lambda number: m.Render(number, tuple(messages), tools, template_args or {}, add_generation_prompt),
                m.Prompt,
            )
        ).rendered

    @property
    def gone(self) -> bool:
        """The process has ended, or cannot be spoken to any more and will; a successor may be on its way."""
        return self._reading.done() or self._child.closed

    # -- the end -------------------------------------------------------------------------------------------------
    async def ended(self) -> Failure:
        """Wait until the process is gone and every request was told; say why."""
        return await asyncio.shield(self._reading)

    async def stop(self, grace_s: float = process.GRACE_S) -> None:
        """Let the worker finish what it runs, for at most `grace_s`, then end it; harmless when it is gone."""
        self._stopping = True
        self._child.post(m.Drain())
        try:
            async with asyncio.timeout(grace_s):
                await self._child.wait()
        except TimeoutError:
            pass
        finally:
            await self._child.stop(grace_s=min(grace_s, 1.0))
            await self.ended()

    # -- inside --------------------------------------------------------------------------------------------------
    def _open(self, observer: Observer | None = None) -> Exchange:
        if self._reading.done() or self._stopping:
            raise self._gone_error(self._reading.result() if self._reading.done() else None)
        if self.gone:
            raise CrashedError(f"{self._child.role} closed its channel", hint=f"its log: {self._child.log_path}")
        self._last_id += 1
        exchange = self._exchanges[self._last_id] = Exchange(self._last_id, observer)
        return exchange

    def _close(self, exchange: Exchange) -> None:
        """Forget the caller; the child is told when it still works for it."""
        if self._exchanges.pop(exchange.id, None) is not None and not exchange.ended:
            self._child.post(m.Cancel(exchange.id))

    async def _ask(self, message: Callable[[int], object], kind: type[Answer]) -> Answer:
        exchange = self._open()
        try:
            await self._child.send(message(exchange.id))
            answer = await exchange.answer()
        finally:
            self._close(exchange)
        if not isinstance(answer, kind):
            self._condemn(f"answered {type(answer).__name__} where {kind.__name__} was due")
            raise CrashedError(f"{self._child.role} gave a wrong answer and was stopped")
        return answer

    async def _read(self) -> Failure:
        incoming: AsyncIterator[m.FromWorker] = self._child.messages(m.FromWorker)
        try:
            async for message in incoming:
                self._heard = True
                self._take(message)
        except WireError as broken:
            self._condemn(f"sent what is no message ({broken.message})")
        self._child.close()
        try:
            async with asyncio.timeout(process.GRACE_S):  # it may be printing its last words
                cause = await self._child.wait()
        except TimeoutError:
            cause = await self._child.stop(grace_s=0)
        self._watching.cancel()
        failure = self._why(cause)
        error = self._gone_error(failure)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # retrieved: `start` may have been cancelled
        for exchange in self._exchanges.values():
            exchange.end(error)
        self._exchanges.clear()
        return failure

    def _take(self, message: m.FromWorker) -> None:
        if isinstance(message, m.Beat):
            changed, self.stats = message.stats != self.stats, message.stats
            if changed:
                self._on_change(self)
        elif isinstance(message, m.Loading):
            self.progress = message.progress
            self._on_change(self)
        elif isinstance(message, m.Ready):
            if not self._ready.done():
                self._ready.set_result(message.info)
        elif isinstance(message, m.Failed) and message.id == 0:
            self._load_failed(message.failure)
        else:
            self._route(message)

    def _load_failed(self, failure: Failure) -> None:
        if self._ready.done():
            self._condemn(f"gave up: {failure.message}")
        else:
            self._ready.set_exception(revive(failure))
            self._ready.exception()

    def _route(
        self, message: m.Piece | m.Scores | m.Vectors | m.Tokens | m.Text | m.Prompt | m.Done | m.Failed
    ) -> None:
        if not 0 < message.id <= self._last_id:
            self._condemn(f"answered request {message.id}, which was never made")
            return
        exchange = self._exchanges.get(message.id)
        if exchange is None:
            return  # its caller has left; the end of it is on the way
        if isinstance(message, m.Done):
            exchange.end()
        elif isinstance(message, m.Failed):
            exchange.end(revive(message.failure))
        elif not exchange.put(message):
            self._child.post(m.Cancel(message.id))

    async def _watch(self) -> None:
        """Count seconds of silence by our own ticks, so that a suspended engine does not blame its workers."""
        while True:
            await asyncio.sleep(_TICK_S)
            if self._heard:
                self._heard, self._silent_s = False, 0.0
            else:
                self._silent_s += _TICK_S
            if self._silent_s >= (SILENCE_S if self._ready.done() else LOAD_S):
                self._condemn(f"gave no sign of life for {self._silent_s:.0f} s and was killed")
            elif self.stats.busy_s > BUSY_S:
                self._condemn(f"was stuck in one native call for {self.stats.busy_s:.0f} s and was killed")

    def _condemn(self, reason: str) -> None:
        self._blame = self._blame or reason
        self._child.kill()

    def _why(self, cause: ExitCause) -> Failure:
        if self._blame is not None:
            return Failure(
                CrashedError.code,
                f"{self._child.role} {self._blame}",
                f"its log: {self._child.log_path}",
                int(CrashedError.exit),
            )
        return cause.failure(self._child.role)

    def _gone_error(self, failure: Failure | None) -> LatheError:
        if self._stopping or failure is None:
            return UnavailableError(f"{self._child.role} was stopped", hint="load the model again", code="E_UNLOADED")
        return CrashedError(failure.message, hint=failure.hint)
