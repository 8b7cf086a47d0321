"""Signals that end the app: whoever sends one gets the terminal back as it was.

Invariant: the app ends, also when its terminal is gone and whatever writes to it would wait for ever.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Callable
from types import FrameType


def end_on_signals(leave: Callable[[int], None]) -> None:
    """Call `leave` with the exit code, in the running loop, when asked to terminate or to hang up.

    Not the loop's own handlers: those wait for the loop, which may itself wait for a terminal that is gone.
    """
    loop = asyncio.get_running_loop()

    def end(number: int, _frame: FrameType | None) -> None:
        if _terminal_is_there():
            loop.call_soon_threadsafe(leave, 128 + number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def _terminal_is_there() -> bool:
    try:
        termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        return False
    return True
