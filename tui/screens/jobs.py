"""Jobs: the queue, one job in detail, its log as it grows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from lathe.engine.jobs.values import FINAL, Job
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Confirm
from lathe.tui.screens.reading import Facts
from lathe.tui.views import jobs as view
from lathe.tui.views import quantize as plans
from lathe.tui.views import rows
from lathe.tui.widgets.base import Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.jobpanel import JobPanel
from lathe.tui.widgets.logview import LogView
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget


class Jobs(PlaceScreen):
    """The queue."""

    MODE = "jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "details", "details", id="jobs.details", tooltip="Results, failure and step of the job"),
        Binding(
            "x", "cancel", "cancel", id="jobs.cancel", tooltip="Stop the job; its checkpoint stays and R resumes it"
        ),
        Binding("X", "kill", "kill", id="jobs.kill", tooltip="Kill the job at once, without a checkpoint; asks"),
        Binding("R", "resume", "resume", id="jobs.resume", tooltip="Queue a stopped job again; finished work is kept"),
        Binding("r", "retry", "run again", show=False, id="jobs.retry", tooltip="Queue the same step as a new job"),
        Binding("l", "log", "log", id="jobs.log", tooltip="Into the log; esc comes back"),
        Binding("C", "clear", "clear ended", id="jobs.clear", tooltip="Drop ended jobs from the list; artefacts stay"),
        Binding(
            "right_square_bracket", "tab(1)", "next list", show=False, id="jobs.next", tooltip="All, active, failed"
        ),
        Binding(
            "left_square_bracket", "tab(-1)", "last list", show=False, id="jobs.previous", tooltip="All, active, failed"
        ),
    ]
    TABS: ClassVar[tuple[str, ...]] = ("all", "active", "failed")

    def __init__(self) -> None:
        super().__init__()
        self._tab = 0

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, LogView)

    def content(self) -> ComposeResult:
        with Panel(title="Jobs", id="queue", classes="-bare"):
            yield Grid(rows.JOBS, empty=self._nothing)
        yield JobPanel(id="job")

    def _nothing(self) -> str:
        if self.TABS[self._tab] != "all":
            return f"No {self.TABS[self._tab]} jobs.\n[ and ] change the list"
        return "No jobs yet.\nConvert, quantize or measure a model under Models (2)."

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        now = self.lathe.now()
        jobs = tuple(job for job in board.jobs if self._in_tab(job))
        self.query_one(Grid).show(rows.job_rows(jobs, now, self.lathe.glyphs))
        self.after_filter()
        self.query_one(JobPanel).show(self.job)

    def after_filter(self) -> None:
        grid, panel = self.query_one(Grid), self.query_one("#queue", Panel)
        states: list[str] = [job.state for job in self.board.jobs]
        counts = [f"{states.count(s)} {s}" for s in ("running", "queued", "failed") if s in states]
        panel.entitle("Jobs", *counts, f"filter: {grid.filter_text}" if grid.filter_text else "")
        panel.footnote("  ".join(f"[{name}]" if n == self._tab else name for n, name in enumerate(self.TABS)))

    def _in_tab(self, job: Job) -> bool:
        match self.TABS[self._tab]:
            case "active":
                return job.state not in FINAL
            case "failed":
                return job.state in ("failed", "interrupted")
            case _:
                return True

    @property
    def job(self) -> Job | None:
        """The job under the cursor."""
        key = self.query_one(Grid).cursor
        return next((job for job in self.board.jobs if job.id == key), None)

    @on(Grid.Moved)
    def _moved(self) -> None:
        if self.board.snapshot is not None:
            self.show(self.board)

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("cancel", "kill", "resume", "retry", "clear")

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_details()

    def action_details(self) -> None:
        """Everything about the job."""
        job = self.job
        if job is not None:
            self.app.push_screen(Facts(f"{job.id}  {job.title}", view.facts(job, self.lathe.now())))

    def action_cancel(self) -> None:
        """Stop, keeping the checkpoint."""
        job = self.job
        if job is None:
            return
        if job.state in FINAL:
            self.lathe.notify(f"{job.id} is {job.state} already.", severity="warning")
            return
        self.lathe.do(
            lambda bench: bench.cancel(job.id),
            lambda j: self.lathe.tell(f"{j.id} {j.state}; R resumes it"),
            command=f"lathe jobs cancel {job.id}",
            what=job.id,
        )

    def action_kill(self) -> None:
        """Kill, after asking."""
        job = self.job
        if job is None or job.state in FINAL:
            return
        lines = [job.title, "It is killed at once: work since the last checkpoint is lost.", "x stops it gently."]

        def take(yes: bool | None) -> None:
            if yes:
                self.lathe.do(
                    lambda bench: bench.cancel(job.id, force=True),
                    lambda j: self.lathe.tell(f"{j.id} {j.state}"),
                    command=f"lathe jobs cancel {job.id} --force",
                    what=job.id,
                )

        self.app.push_screen(Confirm(f"Kill {job.id}?", lines, "Kill", phrase="kill"), take)

    def action_resume(self) -> None:
        """Go on where it stopped."""
        job = self.job
        if job is not None:
            self.lathe.do(
                lambda bench: bench.resume(job.id),
                lambda j: self.lathe.tell(f"{j.id} queued again"),
                command=f"lathe jobs resume {job.id}",
                what=job.id,
            )

    def action_retry(self) -> None:
        """The same step from the start."""
        job = self.job
        if job is not None:
            self.lathe.do(
                lambda bench: bench.submit(job.step),
                lambda j: self.lathe.tell(f"{j.id} queued: {j.title}"),
                what=job.id,
            )

    def action_clear(self) -> None:
        """Drop ended jobs; ask where a search is among them, for Tune lists searches by their jobs."""
        searches = plans.tune_jobs(self.board.jobs)
        if not searches:
            self._clear()
            return
        files = [
            a.path for job in searches for a in (job.outcome.artefacts if job.outcome else ()) if a.format == "json"
        ]
        lines = [
            f"Among them {formats.many(len(searches), 'tune job')}: Tune will list what it found no longer.",
            "Models that were made stay, and so do these files:",
            *files[:5],
        ]
        self.app.push_screen(Confirm("Clear ended jobs?", lines, "Clear"), lambda yes: self._clear() if yes else None)

    def _clear(self) -> None:
        self.lathe.do(lambda bench: bench.clear_finished(), self._cleared, command="lathe jobs clear")

    def _cleared(self, count: int) -> None:
        self.lathe.tell(f"{formats.many(count, 'ended job')} left the list; artefacts stay")
        self.run_worker(self.lathe.step(), exit_on_error=False)

    def action_log(self) -> None:
        """Into the log."""
        self.query_one(LogView).focus()

    def action_tab(self, step: int) -> None:
        """Another list."""
        self._tab = (self._tab + step) % len(self.TABS)
        self.show(self.board)

    def copy_text(self) -> tuple[str, str]:
        if isinstance(self.focused, LogView):
            entry = self.focused.entry
            return (entry.text, "Line") if entry else ("", "")
        job = self.job
        return (job.id, "Job id") if job else ("", "")

    def command(self) -> str:
        job = self.job
        return f"lathe jobs show {job.id}" if job else self.place.command
