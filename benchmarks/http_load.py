"""The HTTP API under load, over a workbench that costs nothing: what remains is the API's own cost.

    python benchmarks/http_load.py [--clients 1000] [--tokens 20] [--interval 0.5] [--burst 20000]

Tables: the cost of a token in one fast stream and of a short request; a thousand slow streams (first byte, memory,
processor); refusals while the server is full; and the server at rest. Server and clients are two processes; the
clients' own processor time is part of what they measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import Any

import psutil
from _peers import table
from lathe.engine.generation import Delta, GenerationRequest, Timing, Usage
from lathe.engine.http.limits import Limits
from lathe.engine.http.server import HttpServer
from lathe.engine.states import EngineInfo, ServerOptions, Snapshot
from lathe.engine.workbench import ModelAlias
from lathe.store.keys import StoredKey
from lathe.store.models import ModelEntry

LIMITS = Limits()
PLACES = int(LIMITS.active * LIMITS.active_per_key_share)
"""Requests that one client may have under way."""
MODEL = ModelEntry(id="0" * 12, name="metronome", path="metronome", format="gguf", bytes=0)


class Metronome:
    """A workbench whose model says one word every `interval` seconds; `seed` says how many milliseconds that is."""

    async def models(self) -> list[ModelEntry]:
        """The one model."""
        return [MODEL]

    async def aliases(self) -> list[ModelAlias]:
        """It has one name."""
        return []

    async def snapshot(self) -> Snapshot:
        """Nothing to tell."""
        return Snapshot(engine=EngineInfo(pid=os.getpid(), version="", home="", started_at=0))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Say `max_tokens` words."""
        interval = (request.sampling.seed or 0) / 1000
        for number in range(request.max_tokens or 1):
            if interval and number:
                await asyncio.sleep(interval)
            yield Delta(text=" word", tokens=(7,))
        count = request.max_tokens or 1
        yield Delta(finish="length", usage=Usage(5, count), timing=Timing(0, 0, 1, 0, 1))


class NoKeys:
    """The server runs on loopback without tokens."""

    def match(self, secret: str) -> StoredKey | None:
        """No key fits."""
        return None

    def __len__(self) -> int:
        return 0


def serve(pipe: Connection) -> None:
    """Run the server until the pipe says so."""

    async def run() -> None:
        server = HttpServer(Metronome(), NoKeys(), lambda event: None)  # type: ignore[arg-type]
        state = await server.start(ServerOptions(port=0, require_token=False))
        pipe.send(state.url)
        await asyncio.to_thread(pipe.recv)
        await server.stop(drain_s=1)

    asyncio.run(run())


class Server:
    """The server's process."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        self.port = int(str(self._pipe.recv()).rpartition(":")[2])
        self.process = psutil.Process(self._process.pid)

    def stop(self) -> None:
        """End it."""
        self._pipe.send(None)
        self._process.join(10)

    @property
    def rss(self) -> float:
        """Resident memory in MiB."""
        return float(self.process.memory_info().rss) / 2**20

    @property
    def cpu_s(self) -> float:
        """Processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def ask(tokens: int, interval_s: float, *, stream: bool = True) -> bytes:
    """A chat request as bytes."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": tokens,
         "seed": round(interval_s * 1000)}
    ).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def token_cost(server: Server, tokens: int) -> list[tuple[str, str]]:
    """One stream as fast as it goes, and short requests one after the other on one connection."""
    workbench = Metronome()
    started = time.perf_counter()
    request = GenerationRequest(model="m", prompt="", max_tokens=tokens)
    async with aclosing(workbench.generate(request)) as deltas:
        async for _ in deltas:
            pass
    bare = (time.perf_counter() - started) / tokens
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    before, started = server.cpu_s, time.perf_counter()
    writer.write(ask(tokens, 0))
    tail = b""
    while b"[DONE]" not in tail:
        received = await reader.read(1 << 20)
        if not received:
            raise SystemExit(f"the stream ended early: {tail!r}")
        tail = (tail + received)[-400:]
    wall, cpu = time.perf_counter() - started, server.cpu_s - before
    await reader.read(1 << 16) if reader._buffer else None  # type: ignore[attr-defined]
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    times = []
    for _ in range(500):
        started = time.perf_counter()
        writer.write(ask(1, 0, stream=False))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        times.append(time.perf_counter() - started)
    writer.close()
    return [
        ("per token: wall time of a stream", f"{wall / tokens * 1e6:.1f} us"),
        ("per token: server's processor time", f"{cpu / tokens * 1e6:.1f} us"),
        ("per token: the workbench's own share", f"{bare * 1e6:.1f} us"),
        ("short request, median", f"{statistics.median(times) * 1000:.2f} ms"),
    ]


async def one_stream(
    port: int, tokens: int, interval: float, gate: asyncio.Event, delay_s: float = 0
) -> tuple[float, int]:
    """One slow stream; returns the time to its first event and the events received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await gate.wait()
    await asyncio.sleep(delay_s)
    started = time.perf_counter()
    writer.write(ask(tokens, interval))
    first = 0.0
    received = b""
    while b"[DONE]" not in received[-64:]:
        chunk = await reader.read(65536)
        if not chunk:
            break
        if not first and b"data: " in chunk:
            first = time.perf_counter() - started
        received += chunk
    writer.close()
    return first, received.count(b'"content":" word"')


async def many_streams(
    server: Server, clients: int, tokens: int, interval: float, ramp_s: float
) -> list[tuple[str, str]]:
    """Clients that all ask within `ramp_s`, each on a connection that is open already."""
    gate = asyncio.Event()
    rss, before = server.rss, server.cpu_s
    streams = [
        asyncio.create_task(one_stream(server.port, tokens, interval, gate, ramp_s * number / clients))
        for number in range(clients)
    ]
    await asyncio.sleep(1)
    connected = server.rss
    gate.set()
    started = time.perf_counter()
    peak = [rss]

    async def watch() -> None:
        while True:
            peak.append(server.rss)
            await asyncio.sleep(0.2)

    watcher = asyncio.create_task(watch())
    results = await asyncio.gather(*streams)
    watcher.cancel()
    seconds, cpu = time.perf_counter() - started, server.cpu_s - before
    firsts = sorted(first for first, _ in results)
    complete = sum(count == tokens for _, count in results)
    return [
        ("streams complete", f"{complete} of {clients}"),
        ("first byte p50 / p99 / max", " / ".join(f"{x * 1000:.0f} ms" for x in (
            firsts[len(firsts) // 2], firsts[int(len(firsts) * 0.99) - 1], firsts[-1]))),
        ("memory before / connected / peak", f"{rss:.0f} / {connected:.0f} / {max(peak):.0f} MiB"),
        ("tokens per second, all streams", f"{clients * tokens / seconds:.0f}"),
        ("server's processor", f"{cpu / seconds * 100:.0f} %"),
    ]  # fmt: skip


async def refusals(server: Server, held: int, extra: int) -> list[tuple[str, str]]:
    """Requests to a server whose places are all taken: one after the other, and in one moment."""
    gate = asyncio.Event()
    gate.set()
    running = [asyncio.create_task(one_stream(server.port, 60, 2, gate)) for _ in range(held)]
    await asyncio.sleep(2)

    async def refused() -> tuple[float, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        started = time.perf_counter()
        writer.write(ask(1, 0))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return time.perf_counter() - started, int(head.split(b" ")[1])

    calm = [await refused() for _ in range(extra)]
    rush = await asyncio.gather(*(refused() for _ in range(extra)))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    told = sum(status in (429, 503) for _, status in (*calm, *rush))
    return [
        ("refused with 429 or 503", f"{told} of {2 * extra} while {held} streams run"),
        ("one after the other, p50 / p99", percentiles(calm)),
        (f"{extra} in one moment, p50 / p99", percentiles(rush)),
    ]


def percentiles(answers: list[tuple[float, int]]) -> str:
    """The median and the 99th percentile of times."""
    times = sorted(seconds for seconds, _ in answers)
    return f"{times[len(times) // 2] * 1000:.0f} / {times[int(len(times) * 0.99) - 1] * 1000:.0f} ms"


async def at_rest(server: Server, seconds: float = 5) -> list[tuple[str, str]]:
    """The server with no connection, and with a hundred that say nothing."""
    await asyncio.sleep(2)
    before = server.cpu_s
    await asyncio.sleep(seconds)
    idle = server.cpu_s - before
    return [("processor, no connections", f"{idle / seconds * 100:.2f} %"), ("memory", f"{server.rss:.0f} MiB")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--interval", type=float, default=0.5)
    parser.add_argument("--burst", type=int, default=20_000)
    arguments = parser.parse_args()
    parts: list[tuple[str, Callable[[Server], Awaitable[list[tuple[str, Any]]]]]] = [
        ("one client", lambda server: token_cost(server, arguments.burst)),
        ("slow streams that begin within a second",
         lambda server: many_streams(server, arguments.clients, arguments.tokens, arguments.interval, 1)),
        ("slow streams that begin in one moment",
         lambda server: many_streams(server, arguments.clients, arguments.tokens, arguments.interval, 0)),
        ("a full server", lambda server: refusals(server, PLACES, 500)),
        ("at rest", at_rest),
    ]  # fmt: skip
    for name, measure in parts:
        server = Server()
        try:
            rows = asyncio.run(measure(server))  # type: ignore[arg-type]
        finally:
            server.stop()
        table([name, ""], rows)
        print()


if __name__ == "__main__":
    main()
