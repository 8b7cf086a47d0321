"""The process that one job runs in: `python -m lathe.engine.jobs.child FD`.

Reads one `JobSpec` frame, runs the step's code, answers with `Reported` frames and one `Finished` or `Broke`.
Invariant: TERM raises `Cancelled` inside the job's code, so that `new_artefact` removes its part; what native code
holds up for longer than the grace period is killed, and the runner collects the part.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from typing import Literal, NoReturn

import msgspec
from lathe.engine.errors import Cancelled, Failure, InternalError, MissingError, describe
from lathe.engine.jobs.kinds import kind_of
from lathe.engine.jobs.values import JobSpec, Outcome, Progress
from lathe.engine.wire import frame, receive_blocking
from lathe.store.models import ModelEntry

_REPORT_INTERVAL_S = 0.1
"""Reports are coalesced to 10 Hz; the last one of a stage always goes out."""


class Reported(msgspec.Struct, frozen=True, tag=True):
    progress: Progress


class Finished(msgspec.Struct, frozen=True, tag=True):
    outcome: Outcome


class Broke(msgspec.Struct, frozen=True, tag=True):
    failure: Failure


FromJob = Reported | Finished | Broke


class ChildContext:
    """The `JobContext` of a job that runs in its own process; its log is this process's stderr."""

    def __init__(self, spec: JobSpec, channel: socket.socket) -> None:
        self._spec = spec
        self._channel = channel
        self._sent_at = 0.0
        self._stage = 0

    @property
    def spec(self) -> JobSpec:
        """What was asked."""
        return self._spec

    def progress(
        self, label: str, done: float, total: float | None = None, unit: str = "", *, stage: int = 1, stages: int = 1
    ) -> None:
        """Report where the work is."""
        now = time.monotonic()
        complete = total is not None and done >= total
        if not complete and stage == self._stage and now - self._sent_at < _REPORT_INTERVAL_S:
            return
        self._sent_at, self._stage = now, stage
        report = Progress(stage=stage, stages=stages, label=label, done=done, total=total, unit=unit)
        self._channel.sendall(frame(Reported(report)))

    def log(self, text: str, level: Literal["debug", "info", "warn", "error"] = "info") -> None:
        """Write one line to the job's log."""
        log_line(text, level)

    def model(self, reference: str) -> ModelEntry:
        """The entry a reference was resolved to."""
        try:
            return self._spec.models[reference]
        except KeyError:
            raise MissingError(f"the job was given no model {reference!r}") from None


def log_line(text: str, level: str = "info") -> None:
    """One line of a job's log: UTC time, level, text."""
    stamp = time.strftime("%H:%M:%S", time.gmtime())
    for line in text.splitlines() or [""]:
        sys.stderr.write(f"{stamp} {level:<5} {line}\n")
    sys.stderr.flush()


def _on_terminate(signum: int, _frame: object) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)
    raise Cancelled("the job was stopped")


def main() -> int:
    """Run the job given on the inherited socket; the exit code is for humans, the frames are the result."""
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _on_terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    channel = socket.socket(fileno=int(sys.argv[1]))
    spec: JobSpec | None = next(receive_blocking(channel, JobSpec), None)
    if spec is None:
        return 1
    context = ChildContext(spec, channel)
    answer: FromJob
    try:
        outcome = kind_of(spec.job.step).load()(spec.job.step, context)
        if not isinstance(outcome, Outcome):
            raise InternalError(f"the step returned {type(outcome).__name__} instead of an outcome")
        answer = Finished(outcome)
    except Exception as error:  # noqa: BLE001 - the boundary of the process: every error becomes the job's failure
        failure = describe(error)
        if failure.code == "E_INTERNAL":
            import traceback

            log_line(traceback.format_exc(), "error")
        log_line(failure.message, "error")
        answer = Broke(failure)
    channel.sendall(frame(answer))
    channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
