"""The model worker: one process, one model. `python -m lathe.engine.worker.child FD`.

FD is one end of a socket pair; frames of `lathe.engine.wire`: `ToWorker` in, `FromWorker` out, first of all a `Load`.

    main thread      reads frames; a closed channel ends the process
    preparers        tokenise, render and check requests, two at a time, so that a long prompt delays no short one
    engine thread    owns the model: loads it, then steps the backend while there is work
    beat thread      statistics twice a second, also while a native call runs
    outbox thread    only when the parent reads slowly

Invariant: each exchange ends with exactly one `Done` or `Failed` and nothing of it follows. A fault inside the engine
thread ends the process: a backend in an unknown state answers nobody.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import msgspec
from lathe.engine.errors import BusyError, Cancelled, ExitCode, LatheError, UnavailableError, describe
from lathe.engine.generation import Delta, Usage
from lathe.engine.wire import WireError, frame, receive_blocking
from lathe.engine.worker.backends.protocol import Ask, Backend, Lookup
from lathe.engine.worker.backends.registry import backend_for, create
from lathe.engine.worker.messages import (
    PROTOCOL,
    Beat,
    Cancel,
    Detokenize,
    Done,
    Drain,
    Embed,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loading,
    Piece,
    Ready,
    Render,
    ScoreTexts,
    Tokenize,
    ToWorker,
    WorkerStats,
)
from lathe.engine.worker.outbox import Outbox

BEAT_S = 0.5
MAX_OPEN = 4096
"""Requests that may be open at once; the parent's own queue is shorter, this only bounds memory."""
_PREPARERS = 2
_FLUSH_S = 5.0
_PROGRESS_S = 0.05

_log = logging.getLogger(__name__)


class _Begin(msgspec.Struct, frozen=True):
    """A request on its way to the engine thread, with what the backend made of it."""

    id: int
    work: object


class Exchanges:
    """Which requests are open; what is sent for one that is not is dropped."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._open: set[int] = set()
        self._unwanted: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def start(self, request: int) -> None:
        """Open an exchange.

        Raises:
            WireError: the parent used an id that is still open.
        """
        with self._lock:
            if request in self._open:
                raise WireError(f"the parent opened request {request} twice")
            self._open.add(request)

    def unwanted(self, request: int) -> bool:
        """Whether an open request was cancelled."""
        return request in self._unwanted

    def cancel(self, request: int) -> None:
        """Mark a request as cancelled, if it is open."""
        with self._lock:
            if request in self._open:
                self._unwanted.add(request)

    def send(self, messages: Sequence[FromWorker]) -> None:
        """Send what belongs to open requests; `Done` and `Failed` close theirs, and so does what cannot travel."""
        with self._lock:
            frames = []
            for message in messages:
                request = message.id  # type: ignore[union-attr]  # Loading, Ready and Beat do not come this way
                if request not in self._open:
                    continue
                over = isinstance(message, Done | Failed)
                try:
                    frames.append(frame(message))
                except WireError as error:
                    frames.append(frame(Failed(request, describe(error))))
                    over = True
                if over:
                    self._open.discard(request)
                    self._unwanted.discard(request)
            # Under the lock, so that the end of an exchange is also last on the wire.
            if frames:
                self._outbox.write(b"".join(frames))


class Worker:
    """One child process: its threads and what they share."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._outbox = Outbox(channel)
        self._exchanges = Exchanges(self._outbox)
        self._preparers = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="prepare")
        self._mailbox: deque[_Begin | Cancel | Drain] = deque()
        self._arrived = threading.Condition()
        self._backend: Backend | None = None
        self._ready = False
        self._draining = False

    def run(self) -> None:
        """Serve the channel until it closes; never returns while the parent lives."""
        signal.signal(signal.SIGTERM, self._on_term)
        messages: Iterator[ToWorker] = receive_blocking(self._channel, ToWorker)
        try:
            first = next(messages, None)
            if not isinstance(first, Load) or first.protocol != PROTOCOL:
                raise WireError(f"expected Load of protocol {PROTOCOL}, got {type(first).__name__}")
            threading.Thread(target=self._engine, args=(first,), name="engine", daemon=True).start()
            threading.Thread(target=self._beat, name="beat", daemon=True).start()
            for message in messages:
                self._receive(message)
        except WireError as error:
            _log.error("%s", error.message)
            self._leave(ExitCode.INTERNAL)
        except OSError as error:
            _log.warning("the channel broke: %s", error)
        self._leave(ExitCode.OK)

    # -- main thread ---------------------------------------------------------------------------------------------
    def _receive(self, message: ToWorker) -> None:
        match message:
            case Generate() | ScoreTexts() | Embed() | Tokenize() | Detokenize() | Render():
                self._exchanges.start(message.id)
                refusal = self._refusal()
                if refusal is not None:
                    self._send((Failed(message.id, describe(refusal)),))
                else:
                    self._preparers.submit(self._prepare, message)
            case Cancel(request):
                self._exchanges.cancel(request)
                self._post(message)
                if self._backend is not None:
                    self._backend.interrupt(request)
            case Drain():
                self._drain()
            case Load():
                raise WireError("a second Load: a worker serves one model")

    def _refusal(self) -> LatheError | None:
        if self._draining:
            return UnavailableError("the model is being unloaded", hint="try again", code="E_DRAINING")
        if not self._ready:
            return UnavailableError("the model is still loading", hint="wait for Ready", code="E_LOADING")
        if len(self._exchanges) > MAX_OPEN:
            return BusyError(f"{MAX_OPEN} requests are open", hint="try again later", code="E_QUEUE_FULL")
        return None

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        if self._draining:
            self._leave(ExitCode.TERMINATED)
        self._drain()

    def _drain(self) -> None:
        self._draining = True
        self._mailbox.append(Drain())
        # No lock here: a signal may arrive while this very thread holds it.
        threading.Thread(target=self._wake, daemon=True).start()

    # -- preparers -----------------------------------------------------------------------------------------------
    def _prepare(self, message: Ask | Lookup) -> None:
        backend = self._backend
        assert backend is not None
        try:
            if self._exchanges.unwanted(message.id):
                self._send(_cancelled(message))
            elif isinstance(message, Tokenize | Detokenize | Render):
                self._send((backend.answer(message), Done(message.id)))
            else:
                self._post(_Begin(message.id, backend.admit(message)))
        except LatheError as error:
            self._send((Failed(message.id, describe(error)),))
        except Exception as error:  # noqa: BLE001 - one request fails, with its traceback in the log
            _log.error("request %d could not be prepared: %s", message.id, _where(error))
            self._send((Failed(message.id, describe(error)),))

    # -- engine thread -------------------------------------------------------------------------------------------
    def _engine(self, load: Load) -> None:
        try:
            backend = self._loaded(load)
            if backend is None:
                return
            wait: float | None = None
            while not self._over:
                for command in self._take(wait):
                    match command:
                        case _Begin(request, work):
                            backend.begin(work)
                            if self._exchanges.unwanted(request):
                                backend.cancel(request)
                        case Cancel(request):
                            backend.cancel(request)
                        case Drain():
                            pass  # the loop's condition sees it
                wait = backend.step()
            self._leave(ExitCode.OK)
        except BaseException as error:  # noqa: BLE001 - reported, then the process ends
            _log.critical("the engine thread failed: %s", _where(error))
            self._leave(ExitCode.INTERNAL)

    def _loaded(self, load: Load) -> Backend | None:
        shown_at = 0.0

        def progress(fraction: float) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at >= _PROGRESS_S or fraction >= 1:
                shown_at = time.monotonic()
                self._outbox.send((Loading(fraction),))

        try:
            backend = create(backend_for(load.path, load.options), self._send, load.secret)
            info = backend.load(load.path, load.name, load.options, progress)
        except Exception as error:  # noqa: BLE001 - the parent is told why
            failure = describe(error)
            _log.error("%s cannot be loaded: %s", load.name, failure.message)
            self._outbox.send((Failed(0, failure),))
            self._leave(failure.exit)
            return None
        self._backend = backend
        self._ready = True
        self._outbox.send((Ready(info),))
        return backend

    def _take(self, wait: float | None) -> list[_Begin | Cancel | Drain]:
        """What has arrived; waits for it or the end, up to `wait` seconds (None: for as long as it takes)."""
        if not self._mailbox and wait != 0:
            with self._arrived:
                self._arrived.wait_for(lambda: bool(self._mailbox) or self._over, wait)
        taken = []
        while self._mailbox:
            taken.append(self._mailbox.popleft())
        return taken

    def _post(self, command: _Begin | Cancel) -> None:
        self._mailbox.append(command)
        self._wake()

    def _send(self, messages: Sequence[FromWorker]) -> None:
        """Send answers, from any thread; the engine thread is woken by the last one of a worker that drains."""
        self._exchanges.send(messages)
        if self._over:
            self._wake()

    @property
    def _over(self) -> bool:
        """It drains, and nobody waits for an answer any more."""
        return self._draining and not len(self._exchanges)

    def _wake(self) -> None:
        with self._arrived:
            self._arrived.notify()

    # -- beat thread, and the end --------------------------------------------------------------------------------
    def _beat(self) -> None:
        stats = WorkerStats()
        while True:
            try:
                if self._backend is not None:
                    stats = self._backend.stats()
            except Exception as error:  # noqa: BLE001 - a look between two steps of the engine thread; silence would kill
                _log.warning("the statistics could not be read: %s", _where(error))
            self._outbox.send_if_clear(Beat(stats))
            time.sleep(BEAT_S)

    def _leave(self, code: int) -> None:
        """End the process from any thread; native threads and memory go with it."""
        if self._backend is not None:
            self._backend.close()
        self._outbox.flush(_FLUSH_S if code == ExitCode.OK else 1.0)
        os._exit(code)


def _cancelled(message: Ask | Lookup) -> tuple[FromWorker, ...]:
    """The end of a request that was cancelled before the model saw it."""
    if isinstance(message, Generate):
        last = message.request.n - 1
        deltas = [Delta(index=index, finish="cancelled") for index in range(last)]
        deltas.append(Delta(index=last, finish="cancelled", usage=Usage(0, 0)))
        return Piece(message.id, tuple(deltas)), Done(message.id)
    return (Failed(message.id, describe(Cancelled("the request was cancelled"))),)


def _where(error: BaseException) -> str:
    """The error with the lines of code it went through, but no values: logs hold no prompts."""
    frames = traceback.extract_tb(error.__traceback__)
    path = " > ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[-6:])  # noqa: PTH119
    return f"{type(error).__name__} at {path}"


def main() -> None:
    """Run the worker on the descriptor named on the command line."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
