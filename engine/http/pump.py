"""Carries deltas from the workbench to a client: streamed or whole, with pings, counting and clean leaving.

    workbench.generate --delta--> meter --delta--> writer --bytes--> client        (Streamed)
                                        '--delta--> folder --value--> one answer   (Whole)

Invariant: whichever way this ends, the workbench's stream has been closed before control returns, and closing it is
what frees its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec
from lathe.engine.generation import Delta, GenerationRequest
from lathe.engine.http import problems
from lathe.engine.http.call import Call, Streamed, Whole
from lathe.engine.http.exchange import Exchange
from lathe.engine.http.limits import Limits
from lathe.engine.http.metrics import Meter
from lathe.engine.http.problems import Problem

PARALLEL = 16
"""Prompts of one HTTP request that are with the engine at once."""
_AHEAD = 64
"""Deltas that prompts of one request may run ahead of the client."""
CANCELLED = "cancelled"
"""Code of an answer that somebody stopped on the server."""


class Silence:
    """Starts a stream that has nothing to say yet, and pings one that has fallen silent."""

    def __init__(self, beat: Callable[[], asyncio.Task[None]], first_s: float, ping_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._beat = beat
        self._ping_s = ping_s
        self._patience_s = first_s
        self._spoken_at = self._loop.time()
        self._running: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(first_s, self._look)

    def spoken(self) -> None:
        """Note that data went out."""
        self._spoken_at = self._loop.time()
        self._patience_s = self._ping_s

    async def stop(self, *, begun: bool) -> None:
        """End the pings and wait for one that is on its way; one that would begin the answer is dropped."""
        self._timer.cancel()
        if self._running is not None:
            if not begun:
                self._running.cancel()
            await asyncio.wait({self._running})

    def _look(self) -> None:
        if self._loop.time() >= self._spoken_at + self._patience_s:
            self._running = self._beat()
            self.spoken()
        self._timer = self._loop.call_at(self._spoken_at + self._patience_s, self._look)


async def stream(exchange: Exchange, call: Call, reply: Streamed, meter: Meter, limits: Limits,
                 headers: list[tuple[str, str]]) -> Problem | None:  # fmt: skip
    """Send a stream; errors after its start are told inside it, and returned.

    Raises:
        Problem: before anything was sent.
    """
    writer = reply.writer
    began = False
    problem: Problem | None = None

    async def say(data: bytes) -> None:
        nonlocal began
        if not began:
            began = True
            kind = [("content-type", writer.media_type), ("cache-control", "no-store")]
            await exchange.start(200, [*headers, *kind])
            data = writer.open() + data
        if data:
            await exchange.write(data)

    silence = Silence(lambda: asyncio.create_task(say(writer.ping)), limits.first_byte_s, limits.ping_s)
    try:
        async with aclosing(deltas(call, reply)) as answer:
            ending = Ending(reply.requests)
            async for delta in answer:
                ending.check(delta)
                meter.feed(delta, delta.index)
                if not began:
                    await say(b"")
                if data := writer.feed(delta):
                    await say(data)
                    silence.spoken()
            ending.complete()
        last = writer.close()
    except Exception as error:
        problem = problems.of(error)
        if not began:
            raise problem from error
        last = writer.fail(problem)
    finally:
        await silence.stop(begun=began)
    await exchange.end(last)
    return problem


async def whole(call: Call, reply: Whole, meter: Meter) -> object:
    """Return the complete answer."""
    async with aclosing(deltas(call, reply)) as answer:
        ending = Ending(reply.requests)
        async for delta in answer:
            ending.check(delta)
            meter.feed(delta, delta.index)
            reply.folder.feed(delta)
        ending.complete()
    return reply.folder.result()


class Ending:
    """Tells an answer that is complete from one that was broken off, which must not pass for a short answer."""

    def __init__(self, requests: tuple[GenerationRequest, ...]) -> None:
        self._left = sum(request.n for request in requests)

    def check(self, delta: Delta) -> None:
        """Take a delta; refuse one that breaks the answer off."""
        if delta.finish == "cancelled":
            raise _cancelled()
        if delta.finish == "error":
            raise Problem(500, "the model failed while it worked on this", code="engine_error")
        self._left -= delta.finish is not None

    def complete(self) -> None:
        """Refuse a stream that ended while choices were open: someone cancelled it on the server."""
        if self._left > 0:
            raise _cancelled()


def _cancelled() -> Problem:
    return Problem(503, "the request was cancelled on the server", code=CANCELLED)


def deltas(call: Call, reply: Streamed | Whole) -> AsyncGenerator[Delta, None]:
    """Run the requests; with several, indices of the i-th are shifted by i times its n."""
    requests = reply.requests
    if reply.source is not None:
        return reply.source()
    if len(requests) == 1:
        return call.service.workbench.generate(requests[0])
    return _merged(call, requests)


async def _merged(call: Call, requests: tuple[GenerationRequest, ...]) -> AsyncGenerator[Delta, None]:
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(_AHEAD)
    places = asyncio.Semaphore(PARALLEL)

    async def run(request: GenerationRequest, offset: int) -> None:
        try:
            async with places, aclosing(call.service.workbench.generate(request)) as answer:
                async for delta in answer:
                    await queue.put(msgspec.structs.replace(delta, index=offset + delta.index))
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            await queue.put(error)
        else:
            await queue.put(None)

    offset = 0
    tasks: list[asyncio.Task[None]] = []
    try:
        for request in requests:
            tasks.append(asyncio.create_task(run(request, offset)))
            offset += request.n
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
