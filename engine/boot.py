"""First code of every child process of the engine: `python -m lathe.engine.boot PARENT_PID MODULE [ARG]...`.

It ties the child to its parent's life, puts jobs behind what people wait for, offers it first to the OOM killer,
forbids core dumps (they would hold prompts), turns on `faulthandler`, and then becomes MODULE. All of it happens here,
in the child, because code between fork and exec of a threaded parent (`preexec_fn`) may deadlock. Invariant: no child
outlives its parent by more than two seconds, even one that is stuck in native code on Linux.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_ORPHAN_POLL_S = 1.0
_NICE = 10
"""Steps that a job goes down: it can wait, an answer and a key press cannot."""


def main() -> None:
    """Prepare this process, then run the module named on the command line as `__main__`."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent)
    if module == "lathe.engine.jobs.child":
        step_back(_NICE)
    volunteer_for_oom()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    os.environ["GGML_NO_BACKTRACE"] = "1"  # an abort would start a debugger, which delays the end of the process
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def die_with(parent: int) -> None:
    """Have this process end when `parent` does; end now if it is gone already."""
    if not _ask_kernel():
        threading.Thread(target=_poll, args=(parent,), name="orphan-watch", daemon=True).start()
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(0)


def _ask_kernel() -> bool:
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return int(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_POLL_S)
    os._exit(0)


def step_back(steps: int) -> None:
    """Be scheduled after the interface and the API where cores are short; alone, it costs nothing.

    Linux may share the cores out by session first (`sched_autogroup`), and a session's share has a niceness of its own.
    """
    try:
        os.nice(steps)
        Path("/proc/self/autogroup").write_text(str(steps))
    except OSError:
        pass  # no such groups here, or a sandbox that hides /proc


def volunteer_for_oom() -> None:
    """Make the kernel choose this process, not the engine, when memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # not Linux, or a sandbox that hides /proc: the parent's estimate stays the only guard


if __name__ == "__main__":
    main()
