"""Run one program in the sandbox and say what became of it.

Invariant: a program gets its processor time, its memory and its folder, and nothing of it is left afterwards; whatever
it does, `run_program` returns within its wall time and a second.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile

import msgspec
from lathe.engine.errors import UnavailableError
from lathe.engine.evals.sandbox.child import CONFINEMENT_FAILED, MARK_BYTES
from lathe.engine.evals.sandbox.confine import unavailable
from lathe.engine.process import explain

_TAIL = 2000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may use."""

    seconds: float = 10.0
    """Wall time; processor time is limited to the same, rounded up."""
    memory_bytes: int = 512 * 1024**2
    output_bytes: int = 256 * 1024
    """Of each file, the output among them."""


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a program."""

    passed: bool
    """It ran to its end without an exception."""
    reason: str
    """`passed`, `AssertionError`, `took longer than 10 s`, ..."""
    output: str = ""
    """The end of what it wrote."""


def require() -> None:
    """Raise UnavailableError where programs cannot be confined."""
    reason = unavailable()
    if reason:
        raise UnavailableError(
            f"programs of a model are not run here: {reason}", hint="use a Linux machine for this suite"
        )


def run_program(source: str, limits: Limits) -> Ran:
    """Run Python source in a fresh confined process; blocks.

    Raises:
        UnavailableError: it cannot be confined here.
    """
    require()
    mark = secrets.token_bytes(MARK_BYTES)
    reading, writing = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="lathe-sandbox-") as folder, tempfile.TemporaryFile() as output,
        os.fdopen(reading, "rb") as answer,
    ):  # fmt: skip
        allowance = f"{int(limits.seconds) + 1},{limits.memory_bytes},{limits.output_bytes}"
        # Under boot, so that it dies with this process; isolated, so that no variable changes what Python loads.
        command = [sys.executable, "-I", "-m", "lathe.engine.boot", str(os.getpid()),
                   "lathe.engine.evals.sandbox.child", folder, allowance, str(writing)]  # fmt: skip
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, cwd=folder,
                pass_fds=(writing,), env={"PATH": os.defpath, "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        finally:
            os.close(writing)
        late = False
        try:
            process.communicate(mark + source.encode("utf-8", "replace"), timeout=limits.seconds + 1)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
        passed = answer.read(MARK_BYTES) == mark
        output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
        said = output.read(_TAIL).decode("utf-8", "replace")
    return Ran(passed=True, reason="passed", output=said) if passed else _failed(process.returncode, late, said, limits)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failed(status: int, late: bool, said: str, limits: Limits) -> Ran:
    if status == CONFINEMENT_FAILED:
        raise UnavailableError(f"programs of a model are not run here: {said.strip()}")
    if late or status == -signal.SIGXCPU:
        return Ran(passed=False, reason=f"took longer than {limits.seconds:g} s", output=said)
    lines = [line for line in said.splitlines() if line.strip()]
    reason = lines[-1][:300] if lines and status > 0 else explain(status).reason
    return Ran(passed=False, reason=reason, output=said)
