"""The llama.cpp library in this process: imported once, silent, with its last words kept.

Both floors that call native code start here: the quantizer, and `lathe.engine.native`. Invariant: llama.cpp never
writes to the terminal; its log goes to a bounded memory and to the one callback that asked for it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

Level = Literal["debug", "info", "warn", "error"]
Result = TypeVar("Result")
LogCallback = Callable[[Level, str], None]

_LEVELS: dict[int, Level] = {1: "debug", 2: "info", 3: "warn", 4: "error"}
_CONTINUED = 5
"""GGML_LOG_LEVEL_CONT: the text goes on where the last one stopped."""
_KEPT_LINES = 64
_LONGEST_LINE = 4096
"""Characters; names from a model file can make a line of any length."""


class _Log:
    """Joins the library's fragments to lines; called from any native thread."""

    def __init__(self) -> None:
        self.callback: LogCallback | None = None
        self.lines: deque[tuple[Level, str]] = deque(maxlen=_KEPT_LINES)
        self._partial = ""
        self._level: Level = "info"
        self._lock = threading.Lock()

    def receive(self, number: int, text: bytes | None, _user: int | None) -> None:
        level = self._level if number == _CONTINUED else _LEVELS.get(number, "info")
        with self._lock:
            if level != self._level:
                self._emit(self._partial)
                self._partial = ""
                self._level = level
            *whole, rest = (self._partial + (text or b"").decode("utf-8", "replace")).split("\n")
            self._partial = rest[:_LONGEST_LINE]
            for line in whole:
                self._emit(line[:_LONGEST_LINE])

    def _emit(self, line: str) -> None:
        if not line:
            return
        self.lines.append((self._level, line))
        if self.callback is not None:
            self.callback(self._level, line)


_LOG = _Log()


@functools.cache
def bindings() -> Any:
    """Import the bindings, silence the library and start its backends.

    Returns:
        The module `llama_cpp.llama_cpp`: llama.h by ctypes.
    """
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a native abort would start a debugger on this process
    from llama_cpp import llama_cpp

    receive = llama_cpp.llama_log_callback(_LOG.receive)
    llama_cpp.llama_log_set(receive, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _KEPT_ALIVE.append(receive)
    return llama_cpp


_KEPT_ALIVE: list[object] = []
"""What native code points to for the life of the process."""


@functools.cache
def ggml() -> Any:
    """The tensor library below llama.cpp, with the few functions used here declared."""
    bindings()
    from llama_cpp._ggml import libggml

    libggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return libggml


def log_to(callback: LogCallback | None) -> None:
    """Forward each line of llama.cpp's log; None: keep only the last lines.

    The callback runs on native threads, inside native calls: it must be quick and must not raise or call llama.cpp.
    """
    _LOG.callback = callback


@contextmanager
def logged(callback: LogCallback) -> Iterator[None]:
    """Send the log to `callback` as well, for the length of a block."""
    before = _LOG.callback

    def both(level: Level, line: str) -> None:
        callback(level, line)
        if before is not None:
            before(level, line)

    _LOG.callback = both
    try:
        yield
    finally:
        _LOG.callback = before


def forget() -> None:
    """Drop the kept lines, so that `complaint` speaks of what comes next."""
    _LOG.lines.clear()


def complaint() -> str:
    """What llama.cpp said went wrong since `forget`: its first error line, which names the cause, or a warning."""
    for wanted in ("error", "warn"):
        for level, line in _LOG.lines:
            if level == wanted:
                return line.split(": ", 1)[-1].strip()
    return "no reason given"


def interruptible(work: Callable[[], Result], heard: LogCallback) -> Result:
    """Run a long native call on a thread of its own, so that signals reach Python while it runs.

    `heard` gets the log, line by line, on the caller's thread. When an exception (an interrupt, a termination) ends the
    wait, the call is left behind on its daemon thread: the caller cleans up and the process is expected to end.
    """
    lines: queue.SimpleQueue[tuple[Level, str] | None] = queue.SimpleQueue()
    results: list[Result] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failures.append(error)
        finally:
            lines.put(None)

    with logged(lambda level, line: lines.put((level, line))):
        threading.Thread(target=call, name="llama.cpp", daemon=True).start()
        while (spoken := lines.get()) is not None:
            heard(*spoken)
    if failures:
        raise failures[0]
    return results[0]


def version() -> str:
    """The library's build and the bindings' version, for recipes and rows."""
    from importlib.metadata import version as distribution_version

    native: bytes = bindings().llama_version()
    return f"llama.cpp {native.decode()} (llama-cpp-python {distribution_version('llama-cpp-python')})"
