"""Children that start in milliseconds, to be killed: one process imports once and forks for every order.

with Nursery("support.store_work:append") as nursery:
    child = nursery.spawn(str(path))
    child.read(); child.kill()
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

import psutil


class Child:
    """A forked process and the lines it reports."""

    def __init__(self, pid: int, lines: BinaryIO) -> None:
        self.pid = pid
        self.lines = lines

    def read(self) -> str:
        """Wait for the next reported line; empty when the child is gone."""
        return self.lines.readline().decode().strip()

    def kill_after(self, seconds: float) -> list[str]:
        """Let it work for a while after its first report, kill it, and return what it had reported."""
        heard = [self.read()]
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([self.lines], [], [], left)[0]:
            heard.append(self.read())
        return heard + self.kill()

    def kill(self) -> list[str]:
        """End it at once, wait until it is gone, and return what it had still reported."""
        os.kill(self.pid, signal.SIGKILL)
        return self.rest()

    def rest(self) -> list[str]:
        """Wait until it is gone and return what it still reports."""
        with self.lines:
            rest = self.lines.read().decode().split("\n")[:-1]
        while psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.0005)  # its files are closed a moment before it is dead
        return rest


class Nursery:
    """Forks children that run `target`, a `module:function` called as `function(report, *arguments)`."""

    def __init__(self, target: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), target],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._socket.close()
        self._process.wait(30)

    def spawn(self, *arguments: str) -> Child:
        """Fork a child."""
        read, write = os.pipe()
        socket.send_fds(self._socket, [json.dumps(arguments).encode()], [write])
        os.close(write)
        return Child(int(self._socket.recv(64)), os.fdopen(read, "rb"))


def main(descriptor: int, target: str) -> None:
    """Fork for every order until the other side closes; the dead keep their pids until then."""
    module, _, function = target.partition(":")
    work = getattr(importlib.import_module(module), function)
    orders = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, 65536, 1)
        if not message:
            return
        if pid := os.fork():
            os.close(descriptors[0])
            orders.send(str(pid).encode())
            continue
        orders.close()
        obey(partial(tell, descriptors[0]), work, json.loads(message))


def tell(descriptor: int, line: object) -> None:
    """Report one line."""
    os.write(descriptor, f"{line}\n".encode())


def obey(report: Callable[[object], None], work: Callable[..., None], arguments: list[str]) -> NoReturn:
    """Be the child."""
    try:
        work(report, *arguments)
    except BaseException as error:  # the report is the child's only voice
        report(f"{type(error).__name__}: {error}")
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
