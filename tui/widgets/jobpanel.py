"""`JobPanel`: one job: its stages and pace, and its log as it grows. Used wherever work is watched.

Invariant: a log is read from where it was left, one request at a time, and only while its panel is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import Job
from lathe.tui.views import jobs as view
from lathe.tui.views.loglines import job_entry
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.logview import LogView
from lathe.tui.widgets.paint import Line
from textual import on, work
from textual.app import ComposeResult

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

TAIL = 500
"""Lines read when a job is opened."""


class JobPanel(Panel):
    """A job's facts above its log."""

    DEFAULT_CSS = """
    JobPanel Canvas { height: 3; }
    """

    def __init__(self, *, empty: str = "This job has said nothing yet.", id: str | None = None) -> None:
        super().__init__(id=id, classes="-bare")
        self._empty = empty
        self._job: Job | None = None
        self._following: str | None = None
        self._after = 0
        self._ended = False

    def compose(self) -> ComposeResult:
        """Facts and log."""
        yield Canvas(self._detail, classes="facts")
        yield LogView(empty=self._empty)

    @property
    def job(self) -> Job | None:
        """The job shown."""
        return self._job

    def show(self, job: Job | None) -> None:
        """Show a job as it is now."""
        now = self._app.now()
        self._job = job
        self.entitle(*view.title(job, now) if job else ("Job",))
        detail = self.query_one(Canvas)
        detail.styles.height = view.detail_height(job, self.size.width) if job else 1
        detail.redraw()
        self._follow(job.id if job else None)

    @property
    def _app(self) -> LatheApp:
        return cast("LatheApp", self.app)

    def _detail(self, width: int, height: int) -> list[Line]:
        app = self._app
        return view.detail(self._job, app.now(), width, height, app.glyphs) if self._job else []

    @on(LogView.Changed)
    def _log_changed(self) -> None:
        self.footnote(self.query_one(LogView).describe())

    @work(exclusive=True, group="job-log", exit_on_error=False)
    async def _follow(self, job_id: str | None) -> None:
        """Read what the job said since the last time."""
        log = self.query_one(LogView)
        if job_id != self._following:
            self._following, self._after, self._ended = job_id, -1, False
            log.clear()
        if job_id is None or self._ended:
            return
        try:
            page = await self._app.link.bench.job_log(job_id, self._after, TAIL)
        except LatheError as error:
            self._ended = True
            log.add([job_entry(f"no log: {error.message}")])
            return
        self._after, self._ended = page.next, page.ended and not page.lines
        log.add(job_entry(text) for text in page.lines)
        self._log_changed()
