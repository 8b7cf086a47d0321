"""What a step that runs inside the engine may do: the `JobContext` of services.

Services do no native work themselves: they drive model workers and the HTTP server through the `Workbench`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from lathe.engine.evals.desk import EvalDesk
from lathe.engine.jobs.values import Progress
from lathe.engine.workbench import Workbench


class EngineWorkbench(Workbench, Protocol):
    """The workbench as services see it: with what never travels to a front."""

    @property
    def evals(self) -> EvalDesk:
        """The memory of evals, for writing."""


class ServiceContext:
    """Progress, log and the workbench, for one running service step."""

    def __init__(self, workbench: EngineWorkbench, log: Path, report: Callable[[Progress], Awaitable[None]]) -> None:
        self.workbench = workbench
        self._path = log
        self._report = report
        self._file: IO[str] | None = None

    def __enter__(self) -> ServiceContext:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.log(str(error) or type(error).__name__, "error")
        if self._file is not None:
            self._file.close()

    async def progress(
        self, label: str, done: float, total: float | None = None, unit: str = "", *, stage: int = 1, stages: int = 1
    ) -> None:
        """Report where the work is."""
        await self._report(Progress(stage=stage, stages=stages, label=label, done=done, total=total, unit=unit))

    def log(self, text: str, level: str = "info") -> None:
        """Write one line to the job's log."""
        if self._file is not None:
            stamp = time.strftime("%H:%M:%S", time.gmtime())
            self._file.write(f"{stamp} {level:<5} {text}\n")
            self._file.flush()
