"""Lathe's HTTP API beside llama-server: the same model, flags and requests in turns; tokens per second, first token.

    python benchmarks/http_peers.py [MODEL.gguf] [--rounds 5] [--threads 2] [--context 1024] [--prefix 600]

Cases: one, eight and thirty-two clients over eight slots with prompts of their own; eight clients whose prompts share a
prefix that neither server has seen (each round brings a new one). Servers and clients are processes of their own.
Ratios are those of the medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from _peers import TEXT, embedded_model, peer, repack_flags, table
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.states import ServerOptions
from lathe.engine.worker.messages import LoadOptions

SLOTS = 8


class Case(NamedTuple):
    """One kind of load."""

    name: str
    clients: int
    requests: int
    own_words: int
    answer: int
    shared: bool = False


CASES = (
    Case("one client", 1, 4, 40, 64),
    Case("eight clients", 8, 16, 40, 64),
    Case("32 clients", 32, 64, 40, 64),
    Case("eight clients, shared prefix", 8, 24, 15, 32, shared=True),
)


class Result(NamedTuple):
    """What one round of a case came to."""

    tokens_per_s: float
    ttft_p50: float
    ttft_p95: float


class Prompts:
    """Texts of words in an order that no cache has seen."""

    def __init__(self, seed: int, prefix_words: int) -> None:
        self._random = random.Random(seed)
        self._words = TEXT.read_text("utf-8").split()
        self._prefix_words = prefix_words

    def words(self, count: int) -> str:
        """Some words."""
        return " ".join(self._random.choice(self._words) for _ in range(count))

    def of(self, case: Case) -> list[str]:
        """The prompts of one round."""
        prefix = self.words(self._prefix_words) + "\n" if case.shared else ""
        return [prefix + self.words(case.own_words) for _ in range(case.requests)]


class Answer(asyncio.Protocol):
    """One streamed answer; looks at what arrives as little as it can, for its time is taken from the servers'."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._chunks: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._started = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.first and b"data: {" in data:
            self.first = time.perf_counter() - self._started
        self._chunks.append(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.done.set_result(None)

    @property
    def received(self) -> bytes:
        return b"".join(self._chunks)


async def ask(port: int, prompt: str, tokens: int) -> tuple[float, int]:
    """Stream one completion; return the time to its first event and the tokens of the answer."""
    body = json.dumps(
        {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True,
         "stream_options": {"include_usage": True}}
    ).encode()  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, answer = await loop.create_connection(lambda: Answer(head.encode() + body), "127.0.0.1", port)
    await answer.done
    counts = re.findall(rb'"completion_tokens":(\d+)', answer.received)
    if not counts:
        sys.exit(f"port {port} gave no answer: {answer.received[-600:]!r}")
    return answer.first, int(counts[-1])


async def measure(port: int, case: Case, prompts: list[str]) -> Result:
    """Run a case once: each client takes the next prompt when it has its answer."""
    left = list(prompts)
    done: list[tuple[float, int]] = []

    async def client() -> None:
        while left:
            done.append(await ask(port, left.pop(), case.answer))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(case.clients)))
    seconds = time.perf_counter() - started
    firsts = sorted(first for first, _ in done)
    return Result(
        sum(count for _, count in done) / seconds,
        statistics.median(firsts),
        firsts[min(len(firsts) - 1, int(len(firsts) * 0.95))],
    )


class Setup(NamedTuple):
    """How both servers are started."""

    model: Path
    context: int
    threads: int
    flash: str
    """`default`: each server's own choice."""


def serve(setup: Setup, pipe: Connection) -> None:
    """Run a Lathe engine that serves, until the pipe says so."""

    async def run(folder: str) -> None:
        workbench = await LocalWorkbench.open(Home(Path(folder)))
        try:
            load = LoadOptions(
                context=setup.context, slots=SLOTS, kv_tokens=setup.context * SLOTS, threads=setup.threads,
                flash_attention=None if setup.flash == "default" else setup.flash == "on",
            )  # fmt: skip
            state = await workbench.start_server(
                ServerOptions(port=0, models=(str(setup.model),), options=load, require_token=False)
            )
            pipe.send(int((state.url or "").rpartition(":")[2]))
            await asyncio.to_thread(pipe.recv)
        finally:
            await workbench.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))


@contextmanager
def ours(setup: Setup) -> Iterator[int]:
    """A Lathe engine in a process of its own."""
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(setup, other))
    process.start()
    other.close()  # so that an engine that dies is noticed
    port = pipe.recv()
    try:
        yield port
    finally:
        pipe.send(None)
        process.join()


@asynccontextmanager
async def theirs(tool: Path, setup: Setup) -> AsyncIterator[int]:
    """llama-server with the same flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tool, "-m", setup.model, "-c", setup.context * SLOTS, "--parallel", SLOTS, "-t", setup.threads,
               "--port", port, "--no-webui", *repack_flags()]  # fmt: skip
    if setup.flash != "default":
        command += ["-fa", setup.flash]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tool.parent)}
    with tempfile.TemporaryFile() as log:
        server = await asyncio.create_subprocess_exec(
            *(str(part) for part in command), stdout=log, stderr=log, env=environment
        )
        try:
            await listening(port, server)
            yield port
        finally:
            server.terminate()
            await server.wait()


async def listening(port: int, server: asyncio.subprocess.Process) -> None:
    """Wait until the model is loaded."""
    while server.returncode is None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read(64)
        writer.close()
        if b" 200 " in answer:
            return
        await asyncio.sleep(0.1)
    sys.exit(f"llama-server ended with {server.returncode}")


async def compare(setup: Setup, tool: Path, rounds: int, prefix: int, cases: Sequence[Case]) -> None:
    """Run the cases in turns and print the table."""
    prompts = Prompts(1, prefix)
    rows = []
    with ours(setup) as here:
        async with theirs(tool, setup) as there:
            for port in (here, there):
                await measure(port, CASES[0], prompts.of(CASES[0]))
            for case in cases:
                results: dict[int, list[Result]] = {here: [], there: []}
                for _ in range(rounds):
                    texts = prompts.of(case)
                    for port, seen in results.items():
                        seen.append(await measure(port, case, texts))
                mine, peers = (
                    Result(*(statistics.median(column) for column in zip(*seen, strict=True)))
                    for seen in results.values()
                )
                rows.append(
                    [case.name, f"{mine.tokens_per_s:.0f}", f"{peers.tokens_per_s:.0f}",
                     f"{mine.tokens_per_s / peers.tokens_per_s:.2f}",
                     f"{mine.ttft_p50 * 1000:.1f} / {peers.ttft_p50 * 1000:.1f} ms",
                     f"{mine.ttft_p50 / peers.ttft_p50:.2f}",
                     f"{mine.ttft_p95 * 1000:.1f} / {peers.ttft_p95 * 1000:.1f} ms",
                     f"{mine.ttft_p95 / peers.ttft_p95:.2f}"]
                )  # fmt: skip
    table(["case", "Lathe t/s", "llama-server t/s", "ratio", "first token p50", "ratio", "p95", "ratio"], rows)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefix", type=int, default=200, help="words that prompts of the shared case begin with")
    parser.add_argument("--flash", choices=("default", "on", "off"), default="default", help="flash attention of both")
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES])
    arguments = parser.parse_args()
    if (tool := peer("llama-server")) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or embedded_model(Path(folder))
        setup = Setup(model, arguments.context, arguments.threads, arguments.flash)
        cases = [case for case in CASES if case.name in (arguments.only or [case.name])]
        asyncio.run(compare(setup, tool, arguments.rounds, arguments.prefix, cases))


if __name__ == "__main__":
    main()
