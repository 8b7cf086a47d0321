"""One request and its response at the ASGI seam: reading the body under a budget, writing, noticing that it left.

Invariant: a response is started at most once and ended exactly once; a client that leaves ends the work within one
iteration of the event loop, by cancelling the task that awaits it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from lathe.engine.http.access import Headers, header
from lathe.engine.http.limits import Limits
from lathe.engine.http.problems import Problem
from lathe.engine.http.watch import Progress

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Result = TypeVar("Result")
COPY_BYTES = 64 * 1024
"""How much of a response is kept for a log that asks for it."""


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class BodyBudget:
    """Bytes of request bodies held at this moment, over all connections."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.held = 0

    def take(self, size: int) -> None:
        """Reserve room for received bytes."""
        if self.held + size > self._capacity:
            raise Problem(503, "too many large requests at once", code="overloaded", retry_after_s=1)
        self.held += size

    def give_back(self, size: int) -> None:
        """Release what a request had reserved."""
        self.held -= size


class Exchange:
    """One request being answered."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        client = scope.get("client")
        self.client: str = client[0] if client else "unix"
        self._progress: Progress = scope["state"]["progress"]
        self._receive = receive
        self._send = send
        self._body_read = not self._announces_body()
        self._ended = False
        self.status = 0
        """Of the response, once started."""
        self.bytes_out = 0
        self.copy: bytearray | None = None
        """Where the beginning of the response is kept, if it is."""

    @property
    def started(self) -> bool:
        """Whether the status has been sent, so that an error can no longer have its own."""
        return self.status != 0

    async def read_body(self, limits: Limits, budget: BodyBudget) -> bytes:
        """Return the whole body; the caller gives its length back to the budget.

        Raises:
            Problem: 413 as soon as it is known to be too large, 503 when the budget is spent.
            ClientGone: the connection closed, by the client or by a deadline.
        """
        declared = header(self.headers, b"content-length")
        if declared is not None and int(declared) > limits.body_bytes:
            raise self._too_large(limits)
        chunks: list[bytes] = []
        size = 0
        try:
            while not self._body_read:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                budget.take(len(chunk))
                size += len(chunk)
                if size > limits.body_bytes:
                    raise self._too_large(limits)
                chunks.append(chunk)
                self._body_read = not message.get("more_body", False)
        except BaseException:
            budget.give_back(size)
            raise
        return b"".join(chunks)

    async def attended(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await the work; if the client leaves first, cancel it.

        Raises:
            ClientGone: it left; the work has been cancelled and has finished cleaning up.
        """
        main = asyncio.current_task()
        assert main is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self._ended:
                gone = True
                main.cancel()

        watcher = asyncio.create_task(watch())
        try:
            return await work
        except asyncio.CancelledError:
            if gone and main.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes, limits: Limits) -> None:
        """Send a complete response; swallow the rest of an unread body for a moment, so that it gets read."""
        unread = not self._body_read
        extra = [("content-length", str(len(body)))]
        if unread:
            extra.append(("connection", "close"))
        await self.start(status, headers + extra)
        if unread and header(self.headers, b"expect") is None:
            await self._write(body, more=True)
            await self._linger(limits.linger_s)
            await self._write(b"", more=False)
        else:
            await self._write(body, more=False)

    async def start(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Send status and headers."""
        self.status = status
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send part of a body; waits while the client reads slower than the answer grows."""
        await self._write(data, more=True)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part of a body."""
        await self._write(data, more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not more:
            self._ended = True
        self.bytes_out += len(data)
        if self.copy is not None and len(self.copy) <= COPY_BYTES:
            self.copy += data
        self._progress.written += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _linger(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _announces_body(self) -> bool:
        length = header(self.headers, b"content-length")
        return (length is not None and length != "0") or header(self.headers, b"transfer-encoding") is not None

    def _too_large(self, limits: Limits) -> Problem:
        return Problem(413, f"the request body exceeds {limits.body_bytes} bytes", code="request_too_large")
