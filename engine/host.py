"""The socket's engine end: answers fronts on behalf of a `Workbench`.

Whoever holds the workspace hosts it, be it the engine process or a one-shot batch, so a TUI can always attach and
watch. Invariant: a front that sends rubbish or goes away ends its own calls and nobody else's; a front learns why the
engine ends before the connection does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
from lathe.engine import rpc
from lathe.engine.errors import Failure, LatheError, PolicyError, UsageError, describe
from lathe.engine.paths import Home
from lathe.engine.wire import frame, receive
from lathe.engine.workbench import Workbench

_ENCODE = msgspec.msgpack.Encoder().encode


class Host:
    """Listens on the workspace's socket and serves every front that attaches."""

    def __init__(self, workbench: Workbench, home: Home, release: str) -> None:
        self._workbench = workbench
        self._path = home.socket
        self._hello = rpc.Hello(release=release, pid=os.getpid())
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._fronts: dict[asyncio.Task[None], _Front] = {}
        self._farewell: rpc.Goodbye | None = None

    @property
    def fronts(self) -> int:
        """Fronts attached now."""
        return len(self._fronts)

    async def start(self) -> None:
        """Listen; a socket file left by a dead engine is replaced (the workspace lock proves that it is dead)."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, path=str(self._path))
        self._path.chmod(0o600)
        self._inode = self._path.stat().st_ino

    def say_goodbye(self, reason: LatheError) -> None:
        """Tell every front that the engine ends, and each that comes from now on."""
        self._farewell = rpc.Goodbye(describe(reason))
        for front in self._fronts.values():
            front.say_goodbye(self._farewell)

    async def stop(self) -> None:
        """Stop listening and let every front go."""
        if self._server is not None:
            self._unlink()
            self._server.close()
        for task in tuple(self._fronts):
            task.cancel()
        await asyncio.gather(*self._fronts, return_exceptions=True)

    def _unlink(self) -> None:
        """Take our socket away, but not that of the next engine, which may hold the workspace already.

        While we listen, no other socket can have our inode.
        """
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        front = self._fronts[task] = _Front(self._workbench, self._hello, reader, writer)
        if self._farewell is not None:
            front.say_goodbye(self._farewell)
        try:
            await front.serve()
        except (OSError, LatheError, asyncio.CancelledError):
            pass  # a front that breaks the protocol or leaves is not our fault; its calls were ended by serve()
        finally:
            del self._fronts[task]
            writer.close()


class _Front:
    """One attached front."""

    def __init__(
        self, workbench: Workbench, hello: rpc.Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._workbench = workbench
        self._hello = hello
        self._reader = reader
        self._writer = writer
        self._running: dict[int, asyncio.Task[None]] = {}
        self._credit: dict[int, asyncio.Semaphore] = {}

    async def serve(self) -> None:
        """Greet, then answer calls until the front leaves."""
        _check_peer(self._writer)
        try:
            incoming: AsyncIterator[rpc.ToEngine] = receive(self._reader, rpc.ToEngine)
            async for message in incoming:
                match message:
                    case rpc.Hello(version=version):
                        await self._greet(version)
                    case rpc.Call():
                        self._begin(message)
                    case rpc.Leave(id=call_id):
                        if call_id in self._running:
                            self._running[call_id].cancel()
                    case rpc.Taken(id=call_id, count=count):
                        for _ in range(min(count, rpc.WINDOW) if call_id in self._credit else 0):
                            self._credit[call_id].release()
        finally:
            for task in tuple(self._running.values()):
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def say_goodbye(self, message: rpc.Goodbye) -> None:
        """Tell the front that the engine ends; one that does not read holds nobody up."""
        self._writer.write(frame(message))

    async def _greet(self, version: int) -> None:
        if version != rpc.VERSION:
            text = f"the running engine is Lathe {self._hello.release} and speaks another protocol"
            await self._send(rpc.Error(0, describe(UsageError(text, hint="`lathe engine stop`, then try again"))))
            raise UsageError(text)
        await self._send(self._hello)

    def _begin(self, call: rpc.Call) -> None:
        task = asyncio.create_task(self._answer(call), name=f"call {call.method}")
        self._running[call.id] = task
        task.add_done_callback(lambda _: self._running.pop(call.id, None))

    async def _answer(self, call: rpc.Call) -> None:
        method = rpc.methods().get(call.method)
        try:
            if method is None or call.method == "close":
                raise UsageError(f"the engine has no method {call.method!r}")
            arguments = method.unpack(call.arguments)
            answer: Any = getattr(self._workbench, method.name)(**arguments)
            if method.stream:
                await self._pour(call.id, answer)
                await self._send(rpc.End(call.id))
            else:
                await self._send(rpc.Result(call.id, msgspec.Raw(_ENCODE(await answer))))
        except msgspec.ValidationError as error:
            await self._send(rpc.Error(call.id, describe(UsageError(f"{call.method}: {error}"))))
        except OSError as error:
            await self._send(rpc.Error(call.id, describe(error)))
        except Exception as error:  # noqa: BLE001 - the boundary of the process: the caller gets every error
            await self._send(rpc.Error(call.id, _described(error)))

    async def _pour(self, call_id: int, stream: AsyncGenerator[Any, None]) -> None:
        credit = self._credit[call_id] = asyncio.Semaphore(rpc.WINDOW)
        try:
            async for item in stream:
                await credit.acquire()
                await self._send(rpc.Item(call_id, msgspec.Raw(_ENCODE(item))))
        finally:
            del self._credit[call_id]
            await stream.aclose()

    async def _send(self, message: rpc.ToFront) -> None:
        self._writer.write(frame(message))
        await self._writer.drain()


def _described(error: Exception) -> Failure:
    failure = describe(error)
    if failure.code == "E_INTERNAL":
        import logging

        logging.getLogger("lathe.engine").exception("a call failed", exc_info=error)
    return failure


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Refuse other users, where the system tells who is there; the 0700 folder already keeps them out."""
    channel: socket.socket = writer.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return
    _pid, uid, _gid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid():
        raise PolicyError("the engine answers its own user only")
