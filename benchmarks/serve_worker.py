"""The model worker over its own channel, beside llama.cpp's tools: streams, shared and many prefixes, a long prompt.

    python benchmarks/serve_worker.py [--model MODEL.gguf] [--threads 2] [--rounds 5] [--only CASE]

Without a model a random one of 160 M parameters is made in the working folder. Each case alternates the two sides;
ratios are those of the medians. llama-server is asked over HTTP, which costs it something that the worker's channel
does not: `http_peers.py` compares both over HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from _peers import TEXT, embedded_model, peer, repack_flags, run_for, table
from _random_model import random_model
from lathe.engine.generation import GenerationRequest, Sampling
from lathe.engine.process import child_environment, eager_environment
from lathe.engine.wire import Decoder, frame
from lathe.engine.worker.messages import Done, Failed, FromWorker, Generate, Load, LoadOptions, Piece, Ready

GREEDY = Sampling(temperature=0, ignore_eos=True)


class Job(NamedTuple):
    """One request."""

    prompt: str
    answer: int


class Outcome(NamedTuple):
    """What a round came to."""

    tokens_per_s: float
    first_token_s: list[float]
    gaps_s: list[float]
    """Between tokens, of all streams."""

    @property
    def ttft_p50(self) -> float:
        return percentile(self.first_token_s, 0.5)

    @property
    def ttft_p95(self) -> float:
        return percentile(self.first_token_s, 0.95)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Worker:
    """A worker child and a closed loop of clients in one thread."""

    def __init__(self, model: Path, log: Path, options: LoadOptions) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs, log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lathe.engine.worker.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env=child_environment(eager_environment()),
            )  # fmt: skip
        self._decoder: Decoder[FromWorker] = Decoder(FromWorker)
        self._last_id = 0
        self._channel.sendall(frame(Load(path=str(model), name="bench", options=options)))
        while not any(isinstance(message, Ready) for message in self._receive()):
            pass

    def _receive(self) -> Iterator[FromWorker]:
        select.select((self._channel,), (), ())
        return self._decoder.feed(self._channel.recv(1 << 20))

    def serve(self, jobs: Sequence[Job], clients: int) -> Outcome:
        """Run jobs, `clients` at a time."""
        waiting = list(reversed(jobs))
        started: dict[int, float] = {}
        last: dict[int, float] = {}
        first_token: list[float] = []
        gaps: list[float] = []
        tokens = 0

        def begin() -> None:
            job = waiting.pop()
            self._last_id += 1
            started[self._last_id] = time.perf_counter()
            request = GenerationRequest(model="bench", prompt=job.prompt, max_tokens=job.answer, sampling=GREEDY)
            self._channel.sendall(frame(Generate(self._last_id, request)))

        begun = time.perf_counter()
        for _ in range(min(clients, len(waiting))):
            begin()
        while started:
            for message in self._receive():
                now = time.perf_counter()
                if isinstance(message, Piece):
                    count = sum(len(delta.tokens) for delta in message.deltas)
                    if not count:
                        continue
                    tokens += count
                    if message.id in last:
                        gaps += [(now - last[message.id]) / count] * count  # tokens that come fast travel together
                    else:
                        first_token.append(now - started[message.id])
                    last[message.id] = now
                elif isinstance(message, Failed):
                    sys.exit(f"the worker failed: {message.failure.message}")
                elif isinstance(message, Done):
                    del started[message.id]
                    if waiting:
                        begin()
        return Outcome(tokens / (time.perf_counter() - begun), first_token, gaps)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


class LlamaServer:
    """llama-server and a thread per client."""

    def __init__(self, binary: Path, model: Path, log: Path, options: LoadOptions) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        assert options.kv_tokens is not None
        command = [
            binary, "-m", model, "--host", "127.0.0.1", "--port", self._port, "-c", options.kv_tokens,
            "-np", options.slots, "-t", options.threads or 1, "-kvu", "--no-webui", *repack_flags(),
        ]  # fmt: skip
        with log.open("wb") as sink:
            self._process = subprocess.Popen([str(part) for part in command], stdout=sink, stderr=sink)
        while not self._healthy():
            if self._process.poll() is not None:
                sys.exit(f"llama-server ended: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def serve(self, jobs: Sequence[Job], clients: int) -> Outcome:
        waiting = list(reversed(jobs))
        first_token: list[float] = []
        gaps: list[float] = []
        tokens = [0] * clients

        def client(number: int) -> None:
            while True:
                try:
                    job = waiting.pop()
                except IndexError:
                    return
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
                body = {
                    "prompt": job.prompt, "n_predict": job.answer, "stream": True, "temperature": 0,
                    "ignore_eos": True, "cache_prompt": True,
                }  # fmt: skip
                begun = last = time.perf_counter()
                connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                seen = 0
                for line in response:
                    if line.startswith(b"data:") and b'"stop":false' in line:
                        now = time.perf_counter()
                        if seen:
                            gaps.append(now - last)
                        else:
                            first_token.append(now - begun)
                        last = now
                        seen += 1
                connection.close()
                tokens[number] += seen

        begun = time.perf_counter()
        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Outcome(sum(tokens) / (time.perf_counter() - begun), first_token, gaps)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


# -- texts -------------------------------------------------------------------------------------------------------------
class Texts:
    """Prompts that were never seen before, of about a given number of tokens."""

    def __init__(self, seed: int) -> None:
        self._words = TEXT.read_text().split()
        self._random = random.Random(seed)

    def words(self, tokens: int) -> str:
        """About `tokens` tokens of shuffled words, which have 2.2 each in the embedded vocabulary."""
        return " ".join(self._random.choices(self._words, k=int(tokens / 2.2)))


# -- cases -------------------------------------------------------------------------------------------------------------
class Bench:
    """One run of this script."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.threads: int = arguments.threads
        self.rounds: int = arguments.rounds
        self.model: Path = arguments.model or random_model(embedded_model(folder), folder / "random-160m-f16.gguf")
        self.rows: list[list[object]] = []

    @contextmanager
    def both(self, **options: object) -> Iterator[tuple[Worker, LlamaServer | None]]:
        chosen = LoadOptions(threads=self.threads, **options)  # type: ignore[arg-type]
        binary = peer("llama-server")
        server = LlamaServer(binary, self.model, self.folder / "server.log", chosen) if binary else None
        worker = Worker(self.model, self.folder / "worker.log", chosen)
        try:
            yield worker, server
        finally:
            worker.close()
            if server is not None:
                server.close()

    def add(self, case: str, what: str, ours: float, theirs: float | None, unit: str) -> None:
        ratio = "-" if theirs is None else f"{ours / theirs:.2f}"
        self.rows.append([case, what, f"{ours:.3g} {unit}", "-" if theirs is None else f"{theirs:.3g} {unit}", ratio])

    def compare(self, case: str, make: Callable[[int], list[Job]], clients: int, **options: object) -> None:
        """Alternate the two sides on the same jobs; each round's are new."""
        with self.both(**options) as (worker, server):
            ours: list[Outcome] = []
            theirs: list[Outcome] = []
            for number in range(self.rounds + 1):
                jobs = make(number)
                mine = worker.serve(jobs, clients)
                other = server.serve(jobs, clients) if server else None
                if number:  # the first round warms both up
                    ours.append(mine)
                    theirs += [other] if other else []
        for what, unit, read in (
            ("tokens/s", "t/s", lambda one: one.tokens_per_s),
            ("first token p50", "s", lambda one: one.ttft_p50),
            ("first token p95", "s", lambda one: one.ttft_p95),
        ):
            median = statistics.median(map(read, ours))
            self.add(case, what, median, statistics.median(map(read, theirs)) if theirs else None, unit)

    def streams(self) -> None:
        """One and eight streams against llama.cpp's own decode loop, which samples nothing and sends nothing."""
        binary = peer("llama-batched-bench")
        texts = Texts(1)
        for clients in (1, 8):
            worker = Worker(
                self.model,
                self.folder / "worker.log",
                LoadOptions(threads=self.threads, slots=8, kv_tokens=4096, context=4096),
            )
            ours, theirs = [], []
            for _ in range(self.rounds):
                jobs = [Job(texts.words(32), 64) for _ in range(clients)]
                outcome = worker.serve(jobs, clients)
                ours.append(clients / statistics.median(outcome.gaps_s))
                if binary:
                    theirs.append(self._batched(binary, clients))
            worker.close()
            name = "one stream" if clients == 1 else f"{clients} streams"
            self.add(name, "decode", statistics.median(ours), statistics.median(theirs) if theirs else None, "t/s")

    def _batched(self, binary: Path, clients: int) -> float:
        command = [
            binary, "-m", self.model, "-c", 4096, "-npp", 32, "-ntg", 64, "-npl", clients, "-t", self.threads, "-kvu",
            "--output-format", "jsonl", *repack_flags(),
        ]  # fmt: skip
        output = run_for(command, '"speed_tg"')
        row = next(json.loads(line[line.index("{") :]) for line in output.splitlines() if '"speed_tg"' in line)
        return float(row["speed_tg"])

    def distinct(self) -> None:
        """Prompts of their own: one, eight and thirty-two clients over eight slots."""
        texts = Texts(2)
        for clients, requests in ((1, 4), (8, 24), (32, 64)):

            def jobs(_: int, count: int = requests) -> list[Job]:
                return [Job(texts.words(150), 48) for _ in range(count)]

            self.compare(f"{clients} clients, own prompts", jobs, clients, slots=8, kv_tokens=8192, context=1024)

    def prefixes(self) -> None:
        """A prefix that is new in every round, shared by 24 requests of eight clients."""
        texts = Texts(3)
        for length in (850, 2000):

            def jobs(_: int, length: int = length) -> list[Job]:
                prefix = texts.words(length)
                return [Job(f"{prefix} {texts.words(30)}", 32) for _ in range(24)]

            self.compare(f"shared prefix of {length}", jobs, 8, slots=8, kv_tokens=24_576, context=3072)

    def many(self) -> None:
        """32 prefixes of 800 tokens in turn: a KV cache that holds all, and one that holds a quarter."""
        texts = Texts(4)
        prefixes = [texts.words(800) for _ in range(32)]
        for name, tokens in (("all fit", 36_864), ("a quarter fits", 10_240)):
            self.compare(
                f"32 prefixes, {name}",
                lambda _: [Job(f"{prefix} {texts.words(30)}", 32) for prefix in prefixes],
                8, slots=8, kv_tokens=tokens, context=1280,
            )  # fmt: skip

    def long(self) -> None:
        """What a prompt of 4,000 tokens does to four streams that run already."""
        texts = Texts(5)
        chosen = LoadOptions(threads=self.threads, slots=8, kv_tokens=12_288, context=6144)
        worker = Worker(self.model, self.folder / "worker.log", chosen)
        calm: list[float] = []
        busy: list[float] = []
        for _ in range(self.rounds):
            calm.append(percentile(worker.serve([Job(texts.words(40), 120) for _ in range(4)], 4).gaps_s, 0.95))
            mixed = [Job(texts.words(40), 400) for _ in range(4)] + [Job(texts.words(4000), 2)]
            busy.append(percentile(worker.serve(mixed, 5).gaps_s, 0.95))
        worker.close()
        self.add(
            "4,000-token prompt",
            "inter-token p95, against without it",
            statistics.median(busy),
            statistics.median(calm),
            "s",
        )


def main() -> None:
    """Run the cases and print the table."""
    cases = ("streams", "distinct", "prefixes", "many", "long")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the model and the logs")
    parser.add_argument("--only", choices=cases, action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, folder)
        for case in arguments.only or cases:
            getattr(bench, case)()
        table(("case", "figure", "worker", "peer", "ratio"), bench.rows)


if __name__ == "__main__":
    main()
