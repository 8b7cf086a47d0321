"""The socket's front end: a `Workbench` whose engine is another process.

Invariant: when the engine goes away every pending call and stream ends with `UnavailableError` (`EngineStopped` where
it said so), and nothing waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from lathe.engine import rpc
from lathe.engine.errors import LatheError, UnavailableError, revive
from lathe.engine.wire import frame, receive
from lathe.engine.workbench import Workbench


class _Stream:
    """The receiving end of one stream; the engine's window bounds the queue."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[rpc.Item | rpc.End | LatheError] = asyncio.Queue()


class RemoteWorkbench:
    """Calls of the protocol, sent to the engine; attributes are the methods of `Workbench`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, _Stream] = {}
        self._lost: LatheError | None = None
        self._farewell: LatheError | None = None
        self._pump: asyncio.Task[None] | None = None
        self.engine = rpc.Hello()
        """Who answered; set by `open`."""

    @classmethod
    async def open(cls, path: Path, timeout_s: float = 5.0) -> RemoteWorkbench:
        """Connect and greet.

        Raises:
            UnavailableError: nobody listens there, or it is an engine of another protocol version.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError as error:
            raise UnavailableError(
                "no engine runs in this workspace", hint="start one with `lathe engine start`"
            ) from error
        self = cls(reader, writer)
        writer.write(frame(rpc.Hello()))
        incoming: AsyncIterator[rpc.ToFront] = receive(reader, rpc.ToFront)
        try:
            hello = await asyncio.wait_for(anext(incoming), timeout_s)
        except (StopAsyncIteration, OSError, TimeoutError) as error:
            writer.close()
            raise UnavailableError(
                "the engine does not answer", hint="`lathe engine stop --force`, then try again"
            ) from error
        if isinstance(hello, rpc.Error | rpc.Goodbye):
            writer.close()
            raise revive(hello.failure if isinstance(hello, rpc.Error) else hello.reason)
        assert isinstance(hello, rpc.Hello)
        self.engine = hello
        self._pump = asyncio.create_task(self._receive(incoming), name="workbench-pump")
        return self

    def as_workbench(self) -> Workbench:
        """This object under the protocol it implements by attribute access."""
        return cast(Workbench, self)

    @property
    def alive(self) -> bool:
        """Whether the engine is still there."""
        return self._lost is None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = rpc.methods().get(name)
        if method is None:
            raise AttributeError(name)
        if method.stream:
            return lambda *args, **kwargs: self._stream(method, args, kwargs)
        return lambda *args, **kwargs: self._call(method, args, kwargs)

    async def close(self) -> None:
        """Let go of the engine; it runs on."""
        self._writer.close()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._lose(UnavailableError("the connection was closed"))

    async def _call(self, method: rpc.Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call_id = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            await self._send(rpc.Call(call_id, method.name, method.pack(args, kwargs)))
            return method.decode(await future)
        except asyncio.CancelledError:
            await self._send(rpc.Leave(call_id), quiet=True)
            raise
        finally:
            self._calls.pop(call_id, None)

    async def _stream(
        self, method: rpc.Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        call_id, stream = next(self._ids), _Stream()
        self._streams[call_id] = stream
        ended = False
        try:
            await self._send(rpc.Call(call_id, method.name, method.pack(args, kwargs)))
            untold = 0
            while True:
                got = await stream.queue.get()
                if isinstance(got, rpc.Item):
                    yield method.decode(got.value)
                    untold += 1
                    if untold >= rpc.WINDOW // 2:
                        await self._send(rpc.Taken(call_id, untold))
                        untold = 0
                    continue
                ended = True
                if isinstance(got, LatheError):
                    raise got
                return
        finally:
            self._streams.pop(call_id, None)
            if not ended:
                await self._send(rpc.Leave(call_id), quiet=True)

    async def _send(self, message: rpc.ToEngine, quiet: bool = False) -> None:
        if (over := self._lost or self._farewell) is not None:
            if quiet:
                return
            raise over
        try:
            self._writer.write(frame(message))
            if not quiet:
                await self._writer.drain()
        except OSError as error:
            gone = self._gone()
            self._lose(gone)
            if not quiet:
                raise gone from error

    async def _receive(self, incoming: AsyncIterator[rpc.ToFront]) -> None:
        try:
            async for message in incoming:
                self._dispatch(message)
        except (OSError, LatheError):
            pass
        self._lose(self._gone())

    def _gone(self) -> LatheError:
        hint = "it is started again by the next command"
        return self._farewell or UnavailableError("the engine is gone", hint=hint)

    def _dispatch(self, message: rpc.ToFront) -> None:
        match message:
            case rpc.Result(id=call_id, value=value):
                future = self._calls.get(call_id)
                if future is not None and not future.done():
                    future.set_result(value)
            case rpc.Item(id=call_id) | rpc.End(id=call_id):
                if call_id in self._streams:
                    self._streams[call_id].queue.put_nowait(message)
            case rpc.Error(id=call_id, failure=failure):
                self._fail(call_id, revive(failure))
            case rpc.Goodbye(reason=reason):
                self._farewell = revive(reason)
                for call_id in tuple(self._streams):
                    self._fail(call_id, self._farewell)
            case rpc.Hello():
                pass

    def _fail(self, call_id: int, error: LatheError) -> None:
        future = self._calls.get(call_id)
        if future is not None and not future.done():
            future.set_exception(error)
        elif call_id in self._streams:
            self._streams[call_id].queue.put_nowait(error)

    def _lose(self, error: LatheError) -> None:
        if self._lost is None:
            self._lost = error
            self._writer.close()
            for call_id in (*self._calls, *self._streams):
                self._fail(call_id, error)
