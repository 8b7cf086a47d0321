"""Lathe's HTTP API beside llama-server: the same model, flags and requests in turns; tokens per second, first token.

    python benchmarks/http_peers.py [MODEL.gguf] [--rounds 5] [--threads 2] [--context 1024] [--prefix 600]

Cases: one client and eight clients with prompts of their own; eight clients whose prompts share a prefix that neither
server has seen (each round brings a new one). Ratios are those of the medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


async def ask(port: int, prompt: str, tokens: int) -> tuple[float, int]:
    """Stream one completion; return the time to its first text and the number of its events with text."""
    body = json.dumps(
        {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True,
         "stream_options": {"include_usage": True}}
    ).encode()  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(head.encode() + body)
    first, count = 0.0, 0
    lines = []
    while line := await reader.readline():
        lines.append(line)
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if not first and event.get("choices") and event["choices"][0]["text"]:
            first = time.perf_counter() - started
        if event.get("usage"):
            count = event["usage"]["completion_tokens"]
    writer.close()
    if not count:
        sys.exit(f"port {port} gave no answer: {b''.join(lines)[-600:]!r}")
    return first, count


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


@asynccontextmanager
async def ours(model: Path, context: int, threads: int) -> AsyncIterator[int]:
    """A Lathe engine of its own, serving."""
    with tempfile.TemporaryDirectory() as folder:
        workbench = await LocalWorkbench.open(Home(Path(folder)))
        try:
            load = LoadOptions(context=context, slots=SLOTS, kv_tokens=context * SLOTS, threads=threads)
            state = await workbench.start_server(
                ServerOptions(port=0, models=(str(model),), options=load, require_token=False)
            )
            yield int((state.url or "").rpartition(":")[2])
        finally:
            await workbench.close()


@asynccontextmanager
async def theirs(tool: Path, model: Path, context: int, threads: int) -> AsyncIterator[int]:
    """llama-server with the same flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tool, "-m", model, "-c", context * SLOTS, "--parallel", SLOTS, "-t", threads, "--port", port,
               "--no-webui", *repack_flags()]  # fmt: skip
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


async def compare(model: Path, tool: Path, rounds: int, context: int, threads: int, prefix: int) -> None:
    """Run every case in turns and print the table."""
    prompts = Prompts(1, prefix)
    rows = []
    async with ours(model, context, threads) as here, theirs(tool, model, context, threads) as there:
        for port in (here, there):
            await measure(port, CASES[0], prompts.of(CASES[0]))
        for case in CASES:
            results: dict[int, list[Result]] = {here: [], there: []}
            for _ in range(rounds):
                texts = prompts.of(case)
                for port, seen in results.items():
                    seen.append(await measure(port, case, texts))
            mine, peers = (
                Result(*(statistics.median(column) for column in zip(*seen, strict=True))) for seen in results.values()
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
    arguments = parser.parse_args()
    if (tool := peer("llama-server")) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or embedded_model(Path(folder))
        asyncio.run(
            compare(model, tool, arguments.rounds, arguments.context, arguments.threads, arguments.prefix)
        )  # fmt: skip


if __name__ == "__main__":
    main()
