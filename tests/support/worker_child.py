"""A worker child driven frame by frame over its socket pair, for tests of the protocol itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lathe.engine.generation import Delta, GenerationRequest, Sampling
from lathe.engine.wire import Decoder, frame
from lathe.engine.worker.messages import (
    Beat,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loading,
    LoadOptions,
    Piece,
    Ready,
    WorkerInfo,
)

LIMIT_S = 60.0


class WorkerChild:
    """The parent's end of one child."""

    def __init__(self, path: str, options: LoadOptions, log: Path) -> None:
        self.channel, theirs = socket.socketpair()
        self.log = log
        with theirs, log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lathe.engine.worker.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip
        self._decoder: Decoder[FromWorker] = Decoder(FromWorker)
        self._arrived: list[FromWorker] = []
        self.beats: list[Beat] = []
        self.progress: list[float] = []
        self._last_id = 0
        self.send(Load(path=path, name="tested", options=options))

    def send(self, *messages: object) -> None:
        self.channel.sendall(b"".join(map(frame, messages)))

    def id(self) -> int:
        self._last_id += 1
        return self._last_id

    def receive(self) -> FromWorker:
        """The next message that is neither heartbeat nor progress; EOFError when the child has closed."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            while self._arrived:
                message = self._arrived.pop(0)
                if isinstance(message, Beat):
                    self.beats.append(message)
                elif isinstance(message, Loading):
                    self.progress.append(message.progress)
                else:
                    return message
            self._read(deadline)

    def _read(self, deadline: float) -> None:
        self.channel.settimeout(max(0.01, deadline - time.monotonic()))
        data = self.channel.recv(1 << 16)
        if not data:
            raise EOFError(self.log.read_text())
        self._arrived += self._decoder.feed(data)

    def until(self, condition: Callable[[], bool]) -> None:
        """Read on until a condition on what was read holds."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            self._read(deadline)
            kept = []
            for message in self._arrived:
                if isinstance(message, Beat):
                    self.beats.append(message)
                elif isinstance(message, Loading):
                    self.progress.append(message.progress)
                else:
                    kept.append(message)
            self._arrived = kept

    def ready(self) -> WorkerInfo:
        message = self.receive()
        assert isinstance(message, Ready), message
        return message.info

    def ask(self, kind: type, **fields: Any) -> int:
        request = self.id()
        self.send(kind(request, **fields))
        return request

    def generate(self, **fields: Any) -> int:
        """Start a generation; greedy unless told otherwise."""
        fields.setdefault("sampling", Sampling(temperature=0))
        return self.ask(Generate, request=GenerationRequest(model="tested", **fields))

    def cancel(self, request: int) -> None:
        self.send(Cancel(request))

    def collect(self, *requests: int) -> dict[int, Exchange]:
        """Read until each of these exchanges has ended."""
        got = {request: Exchange() for request in requests}
        while not all(exchange.ended for exchange in got.values()):
            message = self.receive()
            assert not isinstance(message, Ready)
            if message.id in got:
                got[message.id].add(message)
        return got

    def answer(self, request: int) -> Exchange:
        return self.collect(request)[request]

    def text(self, **fields: Any) -> str:
        """Generate and return the text of choice 0."""
        return self.answer(self.generate(**fields)).text()

    def wait(self) -> int:
        """Wait for the child to end; its exit status."""
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        self.channel.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Exchange:
    """Everything that was answered to one request."""

    def __init__(self) -> None:
        self.messages: list[FromWorker] = []
        self.failed: Failed | None = None
        self.ended = False

    def add(self, message: FromWorker) -> None:
        assert not self.ended, f"{message} after the end"
        if isinstance(message, Failed):
            self.failed = message
        else:
            self.messages.append(message)
        self.ended = isinstance(message, Done | Failed)

    @property
    def deltas(self) -> list[Delta]:
        return [delta for message in self.messages if isinstance(message, Piece) for delta in message.deltas]

    def text(self, index: int = 0) -> str:
        assert self.failed is None, self.failed
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        return [token for delta in self.deltas if delta.index == index for token in delta.tokens]

    def finish(self, index: int = 0) -> str | None:
        ends = [delta.finish for delta in self.deltas if delta.index == index and delta.finish]
        assert len(ends) == 1, ends
        return ends[0]

    @property
    def last(self) -> Delta:
        """The delta with usage and timing; there must be exactly one, at the end."""
        with_usage = [delta for delta in self.deltas if delta.usage is not None]
        assert with_usage == self.deltas[-1:]
        return with_usage[0]


@contextmanager
def worker_child(path: str | Path, log: Path, **options: Any) -> Iterator[WorkerChild]:
    """Start a child; end it whatever happens, and show its log when it died on its own."""
    child = WorkerChild(str(path), LoadOptions(**options), log)
    try:
        yield child
    finally:
        if child.process.poll() is None:
            os.kill(child.process.pid, signal.SIGCONT)
        child.close()
