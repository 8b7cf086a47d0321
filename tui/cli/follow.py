"""Submitting a step from the shell and following its job: progress on stderr, result on stdout.

On a terminal a bar moves; elsewhere there is one plain line per 10 %, at least 3 s apart, or every 30 s. Leaving with
ctrl+c cancels the job, whose checkpoint stays.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from lathe.engine.errors import revive
from lathe.engine.events import JobChanged, JobProgressed
from lathe.engine.jobs.values import FINAL, Job, Progress
from lathe.engine.steps import Step
from lathe.engine.workbench import Workbench
from lathe.tui.cli.shell import Shell, put, put_json, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_PLAIN_INTERVAL_S = 30.0
_PLAIN_QUIET_S = 3.0
"""Plain lines are at least this far apart, so that short jobs have none."""

_WARNING = re.compile(r"\d\d:\d\d:\d\d warn +(.*)")
"""A line of a job's log, as `lathe.engine.jobs.child` writes it."""


def run_step(
    shell: Shell, step: Step, show: Callable[[Job], None], *, detach: bool = False, as_json: bool = False,
    then: Callable[[Job], str | None] = lambda _: None,
) -> int:  # fmt: skip
    """Run one step and show its outcome; returns the exit code. A job that `then` names is waited for as well."""

    async def work(workbench: Workbench) -> int:
        job = await workbench.submit(step)
        if detach:
            put_json(job) if as_json else put(f"{job.id}  {job.title}")
            return 0
        job = await follow(workbench, job)
        if job.failure is not None:
            raise revive(job.failure)
        await _tell_warnings(workbench, job)
        put_json(job.outcome) if as_json else show(job)
        if (following := then(job)) is not None:
            after = await follow(workbench, await workbench.job(following))
            if after.failure is not None:
                raise revive(after.failure)
        return job.outcome.exit if job.outcome else 0

    return shell.run(work, start=detach, as_json=as_json)


async def _tell_warnings(workbench: Workbench, job: Job) -> None:
    """Narrate what the job warned of, which its figures count at most."""
    offset, page = 0, await workbench.job_log(job.id)
    warnings: dict[str, None] = {}
    while page.next > offset:
        warnings |= dict.fromkeys(found[1] for line in page.lines if (found := _WARNING.fullmatch(line)))
        offset, page = page.next, await workbench.job_log(job.id, page.next)
    for text in warnings:
        say(f"warning: {text}")


async def follow(workbench: Workbench, job: Job, *, plain: bool = False) -> Job:
    """Show progress until the job is over; cancelled from outside, it cancels the job."""
    with Meter(job.title, plain=plain or not sys.stderr.isatty()) as meter:
        listener = asyncio.create_task(_listen(workbench, job.id, meter))
        try:
            return await workbench.wait(job.id)
        except asyncio.CancelledError:
            say(f"stopping {job.id}; `lathe jobs resume {job.id}` goes on from its checkpoint")
            await asyncio.shield(workbench.cancel(job.id))
            raise
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def _listen(workbench: Workbench, job_id: str, meter: Meter) -> None:
    async for event in workbench.events():
        if isinstance(event, JobProgressed) and event.id == job_id:
            meter.update(event.progress)
        elif isinstance(event, JobChanged) and event.job.id == job_id and event.job.state in FINAL:
            return


class Meter:
    """A progress bar on a terminal, sparse plain lines elsewhere; always on stderr."""

    def __init__(self, title: str, *, plain: bool) -> None:
        self._title = title
        self._lines = plain
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._told_at = time.monotonic()
        self._told = 0

    def __enter__(self) -> Meter:
        if not self._lines:
            self._bars = _bars()
            self._bars.start()
            self._task = self._bars.add_task(_plain(self._title), total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, progress: Progress) -> None:
        """Show where the work is."""
        if self._bars is not None and self._task is not None:
            label = _plain(f"{self._title}  {progress.label}")
            self._bars.update(self._task, description=label, completed=progress.done, total=progress.total)
            return
        share = progress.fraction
        tenth = int(share * 10) if share is not None else self._told
        waited = time.monotonic() - self._told_at
        if waited > _PLAIN_INTERVAL_S or (tenth > self._told and waited > _PLAIN_QUIET_S):
            self._told, self._told_at = tenth, time.monotonic()
            say(f"{self._title}: {progress.label}" + (f" {share:.0%}" if share is not None else ""))


def _plain(text: str) -> str:
    from lathe.tui.text import clean
    from rich.markup import escape

    return escape(clean(text))


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
