"""The one place that starts child processes: model workers, jobs and probes.

A child runs `lathe.engine.boot`, in a session of its own, without a terminal, without the parent's secrets, with one
end of a socket pair as its channel and its output in a capped log. Invariant: a child that was started is always
reaped, and nothing of its process group survives it; signals go only to processes that are not reaped yet, so never to
a stranger that was given the same id.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
from lathe.engine import wire
from lathe.engine.childlog import ChildLog
from lathe.engine.errors import CrashedError, Failure

Incoming = TypeVar("Incoming")

GRACE_S = 5.0
"""Seconds between TERM and KILL."""
_LOG_JOIN_S = 0.5
_POLL_S = 0.05
_EXPLAINED = 200
"""Lines of output that are searched for a cause; a crash dump of many threads is long."""

_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|HF_HOME|HF_HUB_OFFLINE|HF_HUB_CACHE|SSL_CERT_FILE"
    r"|SSL_CERT_DIR"
    r"|(LC|XDG|LATHE|CUDA|NVIDIA|NCCL|HIP|ROCR|ROCM|HSA|AMD|GGML|LLAMA|OMP|GOMP|KMP|MKL|OPENBLAS|VK|MESA|ZE|ONEAPI|SYCL"
    r"|METAL|ORT|TRANSFORMERS|TOKENIZERS|COVERAGE|COV|DYLD|LD)_[A-Z0-9_]+|PYTHON(PATH|HOME|WARNINGS|DEVMODE|ASYNCIODEBUG)"
)
_SECRET = re.compile(r"TOKEN$|TOKEN_|SECRET|PASSW|API_?KEY|_KEY$|CREDENTIAL|LD_PRELOAD|LD_AUDIT")
_OWN = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "TERM": "dumb", "NO_COLOR": "1"}
_PATIENCE = {"GOMP_SPINCOUNT": "300"}
"""llama.cpp's threads meet hundreds of times per token. GNU OpenMP lets them spin for milliseconds at each meeting; a
thread without a core of its own then costs factors of twenty to fifty (measured beside other work: 16 to 38 tokens/s by
default, 780 with a short spin). `eager_environment` is for those that need not be so patient."""

_EAGER = {"GOMP_SPINCOUNT": "50000"}
"""Some milliseconds, for children whose threads have processors to themselves: on an idle machine the short spin costs
a model of 160 M parameters a tenth of its speed and more."""

_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawner")
"""Children are started from this thread alone: Linux delivers the parent-death signal when the *thread* that forked
ends, and this one lives as long as the process."""


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make a child's environment: what runtimes need, nothing that names a secret, then `extra` as it is."""
    passed = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name) and not _SECRET.search(name)}
    patience = {} if "OMP_WAIT_POLICY" in passed else _PATIENCE
    return patience | passed | _OWN | dict(extra or {})


def eager_environment() -> dict[str, str]:
    """Extra environment of a child that sees to it that its threads have processors to themselves.

    Empty where the kernel does not tell who waits for a processor, and where the user says how threads wait.
    """
    chosen = any(name in os.environ for name in ("OMP_WAIT_POLICY", *_EAGER))
    return {} if chosen or not Path("/proc/self/schedstat").exists() else dict(_EAGER)


class ExitCause(msgspec.Struct, frozen=True):
    """How a process ended; exactly one of `code` and `signal` is set."""

    code: int | None = None
    signal: int | None = None
    reason: str = ""
    """Plain words: `crashed (segmentation fault)`, `ran out of memory`, `exited with code 3`."""
    requested: bool = False
    """We had asked it to end."""
    tail: tuple[str, ...] = ()
    """Last lines of its output."""

    @property
    def clean(self) -> bool:
        """It ended by its own decision and without an error, or because we told it to."""
        return self.code == 0 or (self.requested and self.signal in (signal.SIGTERM, signal.SIGKILL))

    def failure(self, role: str) -> Failure:
        """Say it as the error that callers and panels see."""
        said = self._last_words()
        message = f"{role} {self.reason}" + (f": {said[:200]}" if said else "")
        hint = "use a smaller model, context or quantization" if self.out_of_memory else "its log has the details"
        return Failure(CrashedError.code, message, hint, int(CrashedError.exit))

    def _last_words(self) -> str:
        """The line that most likely says why; the interpreter's own dump of a crash never does."""
        lines = [line.strip() for line in self.tail]
        dump = next((place for place, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
        lines = [line for line in lines[:dump] if line]
        telling = [line for line in lines if _TELLING.search(line)]
        if self.signal is not None:
            return telling[-1] if telling else ""
        return lines[-1] if lines else ""

    @property
    def out_of_memory(self) -> bool:
        """The machine or the device had no memory left for it."""
        return self.reason == OUT_OF_MEMORY


OUT_OF_MEMORY = "ran out of memory"
_NO_MEMORY = re.compile(r"(?i)std::bad_alloc|MemoryError|out of memory|cannot allocate memory|failed to allocate")
_TELLING = re.compile(r"(?i)assert|error|fail|what\(\)|abort|out of memory")
_SIGNALS: dict[int, str] = {
    signal.SIGSEGV: "crashed (segmentation fault)",
    signal.SIGABRT: "crashed (abort)",
    signal.SIGFPE: "crashed (arithmetic error)",
    signal.SIGBUS: "crashed (bus error: a mapped file was cut short, or memory is bad)",
    signal.SIGILL: "crashed (illegal instruction: the build does not suit this processor)",
    signal.SIGKILL: "was killed by another process",
    signal.SIGTERM: "was terminated by another process",
    signal.SIGXCPU: "exceeded its limit of processor time",
    signal.SIGXFSZ: "exceeded its limit of file size",
}


def explain(status: int, tail: Sequence[str] = (), *, requested: bool = False, oom_killed: bool = False) -> ExitCause:
    """Turn `Popen.returncode` (negative: a signal) into words."""
    lines = tuple(tail)
    memory = any(_NO_MEMORY.search(line) for line in lines)
    if status >= 0:
        reason = OUT_OF_MEMORY if status and memory else f"exited with code {status}"
        return ExitCause(status, None, reason, requested, lines)
    number = -status
    if requested and number in (signal.SIGTERM, signal.SIGKILL):
        reason = "was stopped"
    elif (number == signal.SIGKILL and oom_killed) or (number == signal.SIGABRT and memory):
        reason = OUT_OF_MEMORY
    else:
        name = next((one.name for one in signal.Signals if one == number), f"signal {number}")  # real-time: no names
        reason = _SIGNALS.get(number, f"died of {name}")
    return ExitCause(None, number, reason, requested, lines)


class Child:
    """A running child process and its channel. Made by `spawn`; `stop` is always safe to call."""

    def __init__(self, popen: subprocess.Popen[bytes], role: str, log: ChildLog, log_path: Path) -> None:
        self.role = role
        self.log_path = log_path
        self.pid = popen.pid
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self._popen = popen
        self._log = log
        self._lock = threading.Lock()  # between the reaper and those who send signals
        self._requested = False
        self._oom_before = _oom_kills()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitCause] = self._loop.create_future()
        threading.Thread(target=self._reap, name=f"reaper-{self.pid}", daemon=True).start()

    @property
    def exit_cause(self) -> ExitCause | None:
        """How it ended; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines of its output."""
        return self._log.tail(lines)

    @property
    def closed(self) -> bool:
        """Whether the channel to it is closed: it ended, or is about to."""
        return self.writer.is_closing()

    async def send(self, message: object) -> None:
        """Write one frame and wait until the channel can take more.

        Raises:
            CrashedError: the child closed its channel or is gone.
        """
        try:
            self.writer.write(wire.frame(message))
            await self.writer.drain()
        except OSError as error:
            raise CrashedError(f"{self.role} closed its channel", hint=f"its log: {self.log_path}") from error

    async def messages(self, kind: type[Incoming] | object) -> AsyncIterator[Incoming]:
        """Yield what the child sends until it closes the channel.

        Raises:
            WireError: it sent what is no frame or no message of this kind; the caller should kill it.
        """
        incoming: AsyncIterator[Incoming] = wire.receive(self.reader, kind)
        try:
            async for message in incoming:
                yield message
        except ConnectionError:
            return

    def post(self, message: object) -> None:
        """Write one small frame without waiting; a child that is gone never hears it."""
        if not self.writer.is_closing():
            self.writer.write(wire.frame(message))

    async def wait(self) -> ExitCause:
        """Wait until the process is gone and reaped."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float = GRACE_S) -> ExitCause:
        """TERM the group, KILL it after `grace_s`, and wait until it is gone; cancelled midway, it kills at once."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
            self.close()
        return await self.wait()

    def kill(self) -> None:
        """KILL the whole group now; no effect on a process that has ended."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to the child's process group."""
        with self._lock:
            if self._popen.returncode is None:
                self._requested = True
                _signal_group(self.pid, number)

    def close(self) -> None:
        """Close our end of the channel; a well-behaved child then ends by itself."""
        self.writer.close()

    def _reap(self) -> None:
        while True:
            _await_death(self.pid)
            with self._lock:
                if _is_zombie(self.pid):
                    _signal_group(self.pid, signal.SIGKILL)  # helpers it left; the id is ours until the next line
                status = self._popen.poll()
            if status is not None:
                break
            time.sleep(_POLL_S)
        self._log.join(_LOG_JOIN_S)
        oom = _oom_kills() > self._oom_before
        cause = explain(status, self._log.tail(_EXPLAINED), requested=self._requested, oom_killed=oom)
        try:
            self._loop.call_soon_threadsafe(self._announce, cause)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to hear it

    def _announce(self, cause: ExitCause) -> None:
        if not self._ended.done():
            self._ended.set_result(cause)


async def spawn(
    module: str,
    *,
    role: str,
    log_path: Path,
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Child:
    """Start `python -m module FD [extra_args]` as a child tied to this process.

    `role` names it in messages (`worker qwen`, `job j-12`). `env` is added to the scrubbed environment.
    """
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    command = [sys.executable, "-P", "-m", "lathe.engine.boot", str(os.getpid()), module, str(theirs.fileno())]
    try:
        popen = _SPAWNER.submit(
            subprocess.Popen,
            [*command, *extra_args],
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=child_environment(env),
        ).result()  # a few milliseconds; the fork itself holds the interpreter lock anyway
    except BaseException:
        ours.close()
        os.close(read_end)
        raise
    finally:
        theirs.close()
        os.close(write_end)
    log = ChildLog(read_end, log_path)
    log.start()
    child = Child(popen, role, log, log_path)
    try:
        child.reader, child.writer = await asyncio.open_unix_connection(sock=ours)
    except BaseException:
        ours.close()
        child.kill()
        raise
    return child


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # macOS answers EPERM for a group of zombies


def _await_death(pid: int) -> None:
    """Block until the process has ended, leaving it unreaped so that its id stays taken."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # someone reaped it for us (SIGCHLD ignored): poll tells what is known


def _is_zombie(pid: int) -> bool:
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def _oom_kills() -> int:
    """Processes the kernel has killed for memory so far, machine-wide or in our control group."""
    total = 0
    for path, key in ((Path("/proc/vmstat"), "oom_kill"), (_cgroup_events(), "oom_kill")):
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    total += int(value)
        except (OSError, ValueError):
            continue
    return total


def _cgroup_events() -> Path:
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()[0].rpartition(":")[2]
    except (OSError, IndexError):
        own = "/"
    return Path("/sys/fs/cgroup") / own.lstrip("/") / "memory.events"
