"""A running HTTP server over the scripted workbench, a client, and raw sockets for what no client would send."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
import msgspec
from lathe.engine.events import Event, LogLine
from lathe.engine.generation import Delta, GenerationRequest
from lathe.engine.http.limits import Limits
from lathe.engine.http.protocol import GuardedProtocol
from lathe.engine.http.server import HttpServer
from lathe.engine.states import ServerOptions
from lathe.store.keys import StoredKey
from support.scripted_workbench import ScriptedWorkbench

MODEL = "qwen3-8b-q4_k_m"
SECRET = "lathe-" + "s" * 43
FAST = Limits(head_s=0.3, body_s=0.6, rate_grace_s=0.2, write_s=0.4, sweep_s=0.05, linger_s=0.2, drain_s=2)
"""Deadlines that a test can wait for."""


class Ring:
    """Keys in memory."""

    def __init__(self, *keys: StoredKey) -> None:
        self._keys = {key.digest: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, secret: str) -> StoredKey | None:
        return self._keys.get(_digest(secret))


def key(name: str, secret: str = SECRET, **fields: Any) -> StoredKey:
    """A key with a known secret."""
    return StoredKey(name=name, digest=_digest(secret), created_at=0.0, **fields)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class HeldWorkbench(ScriptedWorkbench):
    """A scripted workbench whose answers can be held before the first or the next token, and whose streams count."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.open = 0
        self.most = 0
        self.held: asyncio.Event | None = None
        """Set to an event to hold every stream until it is set."""
        self.after = 0
        """Deltas that pass before the hold."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.open += 1
        self.most = max(self.most, self.open)
        passed = 0
        try:
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    if self.held is not None and passed >= self.after:
                        await self.held.wait()
                    yield delta
                    passed += 1
        finally:
            self.open -= 1


class Served:
    """A server under test."""

    def __init__(self, server: HttpServer, workbench: HeldWorkbench, events: list[Event]) -> None:
        self.server = server
        self.workbench = workbench
        self.events = events
        self.url = server.state.url or ""
        self.port = int(self.url.rpartition(":")[2]) if self.url.startswith("http") else 0
        self.client = httpx2.AsyncClient(
            base_url=self.url if self.port else "http://localhost",
            headers={"authorization": f"Bearer {SECRET}"},
            timeout=20,
        )

    @property
    def connections(self) -> set[GuardedProtocol]:
        """Connections that the server holds open."""
        assert self.server._running is not None
        return self.server._running.connections.live

    @property
    def log(self) -> list[str]:
        """Lines of the request log."""
        return [event.text for event in self.events if isinstance(event, LogLine)]

    async def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        """Send JSON; bytes are sent as they are."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return await self.client.post(path, content=content, headers=headers, **more)

    async def stream(self, path: str, body: Any) -> list[str]:
        """The lines of a streamed answer that hold something."""
        async with self.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            return [line async for line in answer.aiter_lines() if line]

    async def raw(self, data: bytes, *, wait_s: float = 5.0) -> bytes:
        """Send bytes on a fresh connection and return everything until the server closes it."""
        async with raw_connection(self.port) as (reader, writer):
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(wait_s):
                return await _read_all(reader)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            received += chunk
    return received


@contextlib.asynccontextmanager
async def raw_connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    workbench: HeldWorkbench | None = None,
    *,
    keys: tuple[StoredKey, ...] = (),
    limits: Limits | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """A server on a free port, with one key that may do everything unless others are given."""
    events: list[Event] = []
    workbench = workbench or HeldWorkbench()
    ring = Ring(*(keys or (key("ops", scopes=("infer", "observe", "admin")),)))
    server = HttpServer(workbench, ring, events.append, limits)
    await server.start(ServerOptions(**({"port": 0} | options)))
    served = Served(server, workbench, events)
    try:
        yield served
    finally:
        await served.client.aclose()
        await server.stop(drain_s=1)


def sse(lines: list[str]) -> list[Any]:
    """The decoded `data:` lines of a stream, without [DONE] and pings."""
    return [
        msgspec.json.decode(line.removeprefix("data: "))
        for line in lines
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


def request(method: str, path: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    """Raw bytes of a request with the key."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {SECRET}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
