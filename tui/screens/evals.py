"""Evals: runs of suites, one run's figures against its baseline, its cases, regressions first.

    Runs  -> the run under the cursor -> Figures (difference, interval, gates)
                                      -> Cases (broken, fixed, changed) -> one case side by side
Invariant: panels show one run at a time and name it in their titles, whatever arrives late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import ClassVar

from lathe.engine.errors import LatheError, describe
from lathe.engine.evals.results import EvalRun
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.steps import EvalStep
from lathe.tui.board import Board
from lathe.tui.eval_reading import Seen, read_case, read_run, with_history
from lathe.tui.screens import eval_runs, eval_work
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.views import case as case_view
from lathe.tui.views import evals as view
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

MOST_RUNS = 200
LIVE_S = 3.0
"""How often a run in progress is read again."""


class Evals(PlaceScreen):
    """Suites, runs, comparisons."""

    MODE = "evals"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "run", "run", id="evals.run", tooltip="Run a suite on a model"),
        Binding("b", "baseline", "baseline", id="evals.baseline", tooltip="Name the run as a baseline, or forget it"),
        Binding("d", "compare", "compare", id="evals.compare", tooltip="Compare two marked runs, or choose a base"),
        Binding("enter", "open", "open", id="evals.open", tooltip="Into the cases; there: one case side by side"),
        Binding("f", "which", "all cases", id="evals.which", tooltip="Only cases that changed, or all of them"),
        Binding("E", "export", "export", id="evals.export", tooltip="Write a report: Markdown, HTML, JUnit, JSON"),
        Binding("t", "gates", "gates", id="evals.gates", tooltip="The conditions that the run must meet"),
        Binding("u", "suites", "suites", id="evals.suites", tooltip="Suites that can be run, and what they ask"),
        Binding("x", "cancel", "cancel", show=False, id="evals.cancel", tooltip="Stop the run; what was asked stays"),
        Binding("R", "resume", "go on", show=False, id="evals.resume", tooltip="Go on with a run that was stopped"),
        Binding("o", "chat", "play", show=False, id="evals.chat", tooltip="Ask the case's question in the Playground"),
        Binding("D", "delete", "forget", show=False, id="evals.delete", tooltip="Forget the run with its cases; asks"),
        Binding("space", "mark", "mark", show=False, id="evals.mark", tooltip="Mark a run, to compare two"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[EvalRun] | None = None
        self._seen: Seen | None = None
        self._case: case_view.CaseSeen | None = None
        self._bases: dict[str, str] = {}
        """Run -> base chosen for it by hand."""
        self._gates: dict[str, tuple[str, ...]] = {}
        """Suite -> gates of this session."""
        self._signs: dict[str, str] = {}
        self._all = False
        self._read_at: object = None
        self._wanted: str | None = None
        """The job or run to put the cursor on, once it has a row."""
        self._problem = ""

    def content(self) -> ComposeResult:
        with Panel(title="Runs", id="runs", classes="-bare"):
            yield Grid(view.RUNS, empty=self._nothing, markable=True, id="run-list")
        with Panel(title="Figures", id="figures", classes="-bare"):
            yield Grid(view.FIGURES, empty=self._no_figures, id="figure-list")
            yield Canvas(self._gate_lines, id="gates")
        with Panel(title="Cases", id="cases", classes="-bare"):
            yield Grid(view.CASES, empty=self._no_cases, id="case-list")
        with Panel(title="Case", id="case"):
            yield Canvas(self._case_lines, id="case-lines")

    # -- what is read -----------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        if not board.attached:
            return
        jobs = view.open_jobs(board.jobs)
        live = int(self.lathe.now() / LIVE_S) if any(job.state == "running" for job in jobs) else 0
        ended = sum(isinstance(job.step, EvalStep) for job in board.jobs) - len(jobs)
        signature = ([(job.id, job.state) for job in jobs], ended, live, board.lost is None)
        if signature != self._read_at and board.lost is None:
            self._read_at = signature
            self._read()
        self._show_runs()

    def on_screen_resume(self) -> None:
        """Runs may have been made by a shell meanwhile."""
        self._read_at = None

    @work(exclusive=True, group="runs", exit_on_error=False)
    async def _read(self) -> None:
        """The list of runs, then the one under the cursor if it moved on."""
        try:
            self._runs = await self.lathe.link.bench.eval_runs(MOST_RUNS)
            self._problem = ""
        except LatheError as error:
            self._problem = error.message
            self.lathe.report(describe(error), what="eval runs")
            self._show_runs()
            return
        self._show_runs()
        self._look(self.query_one("#run-list", Grid).cursor)

    @work(exclusive=True, group="look", exit_on_error=False)
    async def _look(self, key: str | None, again: bool = False) -> None:
        """Read the run under the cursor, with its cases and its comparison."""
        run = self._run(key)
        base = self._base_of(run) if run is not None else None
        if run is None:
            self._seen = None
        elif again or self._seen is None or (self._seen.run, self._seen.base) != (run, base):
            try:
                self._seen = await read_run(self.lathe.link.bench, run, base, self._gates.get(run.suite, ()))
            except LatheError as error:
                self._seen = Seen(run=run, problem=error.message)
            if self._seen.comparison is not None and not self._bases.get(run.id):
                self._signs[run.id] = view.sign_of(self._seen.comparison)
        self._show_seen()

    def _run(self, key: str | None) -> EvalRun | None:
        return next((run for run in self._runs or () if run.id == key), None)

    def _base_of(self, run: EvalRun) -> EvalRun | None:
        chosen = self._bases.get(run.id)
        return self._run(chosen) if chosen else view.baseline_for(run, self._runs or ())

    @property
    def picked(self) -> EvalRun | None:
        """The run under the cursor."""
        return self._run(self.query_one("#run-list", Grid).cursor)

    # -- drawing ----------------------------------------------------------------------------------------------------
    @property
    def _names(self) -> dict[str, str]:
        """Every reference of a model, and its name."""
        return {key: entry.name for entry in self.board.models for key in (entry.id, entry.name, entry.path)}

    def _job(self) -> Job | None:
        """The job behind the row under the cursor."""
        key, run = self.query_one("#run-list", Grid).cursor, self.picked
        if run is not None:
            return view.job_of(run, view.open_jobs(self.board.jobs), self._names)
        return next((job for job in self.board.jobs if job.id == key), None)

    def _show_runs(self) -> None:
        look = (self._names, self._signs, self.lathe.now(), self.lathe.glyphs)
        self.query_one("#run-list", Grid).show(view.run_rows(self._runs or [], self.board.jobs, *look))
        self._find_wanted()
        self.query_one("#gates", Canvas).redraw()
        self.after_filter()

    def after_filter(self) -> None:
        grid, cases = self.query_one("#run-list", Grid), self.query_one("#case-list", Grid)
        live = sum(job.state == "running" for job in view.open_jobs(self.board.jobs))
        self.query_one("#runs", Panel).entitle(
            "Runs", str(len(self._runs or ())), f"{live} running" if live else "",
            f"filter: {grid.filter_text}" if grid.filter_text else "",
        )  # fmt: skip
        self.query_one("#runs", Panel).footnote(f"{len(grid.marks)} marked" if grid.marks else "", self.parts_line())
        self.query_one("#cases", Panel).footnote(f"filter: {cases.filter_text}" if cases.filter_text else "")

    def _show_seen(self) -> None:
        seen, panel = self._seen, self.query_one("#figures", Panel)
        gates = self.query_one("#gates", Canvas)
        if seen is None:
            for name in ("#figure-list", "#case-list"):
                self.query_one(name, Grid).show([])
            panel.entitle("Figures")
            gates.styles.height = 0
            return
        against = seen.base if seen.comparison is not None else None
        verdict = "" if seen.verdict is None else "gates passed" if seen.verdict.passed else "gates FAILED (exit 1)"
        base = f"{against.id} {against.model} {self.lathe.glyphs.arrow} " if against else ""
        panel.entitle(verdict, f"{base}{seen.run.id} {seen.run.model}")
        panel.footnote(*self._notes(seen))
        figures = self.query_one("#figure-list", Grid)
        figures.head(view.DIFFERENCES if seen.comparison else view.FIGURES)
        figures.show(view.figure_rows(seen.run, seen.comparison))
        room = 2 if self.has_class("-short") else 5
        below = 3 if seen.run.state != "done" else min(room, len(seen.verdict.gates)) if seen.verdict else 0
        gates.styles.height = below
        gates.redraw()
        self._show_cases(seen)

    def _notes(self, seen: Seen) -> Sequence[str]:
        """What the reader should know of the figures."""
        if seen.problem:
            return (f"no comparison: {seen.problem}",)
        if seen.comparison is not None:
            told = [text for text in seen.comparison.warnings if "by chance alone" not in text]
            return (*told[:1], "paired intervals, findings corrected for their number (Holm)")
        if seen.run.state == "done" and not seen.run.aliases:
            return ("no baseline of this suite: b names a run as one",)
        return ("baseline" if seen.run.aliases else "",)

    def _show_cases(self, seen: Seen) -> None:
        panel, comparison = self.query_one("#cases", Panel), seen.comparison
        changed = comparison is not None and not self._all
        rows = view.record_rows(seen.records, seen.run, comparison)
        if changed and comparison is not None:
            rows = view.change_rows(comparison)
        cases = self.query_one("#case-list", Grid)
        cases.head(view.CHANGES if changed else view.CASES)
        cases.show(rows)
        counts = comparison.counts if comparison is not None else {}
        told = [f"{counts[kind]} {kind}" for kind in ("broken", "fixed", "changed", "same") if counts.get(kind)]
        more = f"first {len(seen.records)}" if len(seen.records) < seen.run.done else ""
        panel.entitle("Changed cases" if changed else "Cases", *(told or [str(seen.run.done)]), "" if changed else more)
        self._look_at_case(self.query_one("#case-list", Grid).cursor)

    def _nothing(self) -> str:
        if self._problem:
            return f"Runs cannot be read: {self._problem}"
        if self._runs is None:
            return "Reading the runs..."
        return "No runs yet.\nr  runs a suite on a model   u  lists the suites"

    def _no_figures(self) -> str:
        run = self.picked
        if run is None:
            job = self._job()
            why = f"{job.id} failed: {job.failure.message}\n{job.failure.hint}" if job and job.failure else ""
            return why or "Figures of a run stand here."
        if run.state != "done":
            return "Figures follow when all answers are there."
        return "Nothing was measured."

    def _no_cases(self) -> str:
        if self._seen is not None and self._seen.comparison is not None and not self._all:
            return "No case changed.\nf  shows all of them"
        return "Cases of a run stand here."

    def _gate_lines(self, width: int, height: int) -> list[Line]:
        if self._seen is not None and self._seen.run.state != "done":
            return view.progress_lines(self._seen.run, self._job(), self.lathe.now(), width, self.lathe.glyphs)
        verdict = self._seen.verdict if self._seen is not None else None
        lines = view.gate_lines(verdict) if verdict else []
        if len(lines) > height > 0:
            return [*lines[: height - 1], [(f" and {len(lines) - height + 1} more gates: t", "dim")]]
        return lines

    def _case_lines(self, width: int, height: int) -> list[Line]:
        if self._case is None:
            return [[("A case stands here, side by side with its baseline.", "dim")]]
        return case_view.lines(self._case, width, height)

    @on(Grid.Moved, "#run-list")
    def _run_moved(self, message: Grid.Moved) -> None:
        self._look(message.key)

    @on(Grid.Moved, "#case-list")
    def _case_moved(self, message: Grid.Moved) -> None:
        self._look_at_case(message.key)

    @work(exclusive=True, group="case", exit_on_error=False)
    async def _look_at_case(self, key: str | None) -> None:
        """Read the case under the cursor from both runs."""
        found = None
        if self._seen is not None and key is not None:
            with suppress(LatheError):
                found = await read_case(self.lathe.link.bench, self._seen, key)
        self._case = found
        self.query_one("#case", Panel).entitle(*(("Case", key or "") if found else ("Case",)))
        self.query_one("#case-lines", Canvas).redraw()

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("run", "baseline", "cancel", "resume", "delete")

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_open()

    def action_open(self) -> None:
        """From a run into its cases; from there, a case side by side."""
        if self._seen is not None and self._case is not None and self.focused is self.query_one("#case-list"):
            self._open_case(self._case)
        else:
            self.query_one("#case-list", Grid).focus()

    @work(exclusive=True, group="open-case", exit_on_error=False)
    async def _open_case(self, found: case_view.CaseSeen) -> None:
        """Look the case up in the suite's other runs, then show everything about it."""
        from lathe.tui.screens.case import CaseView

        try:
            whole = await with_history(self.lathe.link.bench, found, self._runs or ())
        except LatheError as error:
            self.lathe.report(describe(error), what=found.after.label)
        else:
            self.app.push_screen(CaseView(whole), self._step_case)

    def _step_case(self, step: int | None) -> None:
        """The neighbour of the case that was read."""
        if step and self._seen is not None:
            grid = self.query_one("#case-list", Grid)
            grid.action_move(step)
            self._open_next(self._seen, grid.cursor)

    @work(exclusive=True, group="open-case", exit_on_error=False)
    async def _open_next(self, seen: Seen, key: str | None) -> None:
        found = await read_case(self.lathe.link.bench, seen, key) if key else None
        if found is not None:
            self._case = found
            self._open_case(found)

    def action_run(self) -> None:
        """Suite, model, limits; then a job."""
        run, job = self.picked, self._job()
        if run is None and job is not None and isinstance(job.step, EvalStep):
            eval_work.ask_run(self.lathe, job.step.suite, self._names.get(job.step.model, job.step.model))
        else:
            eval_work.ask_run(self.lathe, run.suite if run else "", run.model if run else "")

    def action_suites(self) -> None:
        """What can be run."""
        eval_work.show_suites(self.lathe)

    def action_baseline(self) -> None:
        """Name the run, or forget its name."""
        if self.picked is not None:
            eval_runs.ask_baseline(self.lathe, self.picked, self._runs or (), self._renamed)

    def _renamed(self) -> None:
        self._signs.clear()
        self._read()

    def action_compare(self) -> None:
        """The two marked runs, the older as the base; none marked: choose the base."""
        grid = self.query_one("#run-list", Grid)
        marked = [run for run in reversed(self._runs or ()) if run.id in grid.marks]
        if len(marked) == 2:
            self._bases[marked[1].id] = marked[0].id
            grid.marks.clear()
            grid.select(marked[1].id)
            self._look(marked[1].id, again=True)
            return
        run = self.picked
        if run is None:
            return

        def take(key: str) -> None:
            self._bases[run.id] = key
            self._look(run.id, again=True)

        eval_runs.ask_base(self.lathe, run, self._runs or (), self._bases.get(run.id, ""), take)

    def action_which(self) -> None:
        """Changed cases or all."""
        self._all = not self._all
        if self._seen is not None:
            self._show_cases(self._seen)

    def action_gates(self) -> None:
        """Read and edit the gates."""
        seen = self._seen
        if seen is None or seen.verdict is None:
            self.lathe.notify("Gates are told of a finished run.", severity="warning")
            return

        def take(gates: tuple[str, ...]) -> None:
            self._gates[seen.run.suite] = gates
            self._look(seen.run.id, again=True)

        eval_runs.ask_gates(self.lathe, seen.run, seen.comparison, seen.verdict, take)

    def action_export(self) -> None:
        """A report; its suffix chooses the format."""
        if self._seen is not None and self.focused is not self.query_one("#run-list"):
            super().action_export()
            return
        if self._seen is not None and self._seen.run.state == "done":
            base = self._seen.base.id if self._seen.comparison and self._seen.base else None
            eval_runs.ask_export(self.lathe, self._seen.run, base)

    def action_cancel(self) -> None:
        """Stop the job behind the run."""
        job = self._job()
        if job is None or job.state in FINAL:
            self.lathe.notify("No job works at this run.", severity="warning")
            return
        self.lathe.do(
            lambda bench: bench.cancel(job.id), lambda j: self.lathe.tell(f"{j.id} {j.state}; R goes on with the run"),
            command=f"lathe jobs cancel {job.id}", what=job.id,
        )  # fmt: skip

    def action_resume(self) -> None:
        """The same questions again: what was answered stays."""
        if self.picked is not None and self.picked.state != "done":
            eval_work.submit(self.lathe, eval_runs.same_again(self.picked))

    async def action_chat(self) -> None:
        """The case's question in the Playground, to the run's model and its baseline's."""
        if self._case is not None:
            await eval_runs.play(self.lathe, self._case)

    def action_delete(self) -> None:
        """Forget a run, after asking."""
        if self.picked is not None:
            eval_runs.ask_forget(self.lathe, self.picked, self._forgotten)

    def _forgotten(self, run: EvalRun) -> None:
        self.lathe.tell(f"{run.id} is forgotten")
        self._read()

    def action_mark(self) -> None:
        """Mark the run."""
        self.query_one("#run-list", Grid).toggle_mark()
        self.after_filter()

    def open_key(self, key: str) -> None:
        self._wanted = key
        self._find_wanted()

    def _find_wanted(self) -> None:
        """Select what is wanted; of a job its run, where there is one already."""
        grid, runs = self.query_one("#run-list", Grid), self._runs or ()
        job = next((job for job in self.board.jobs if job.id == self._wanted), None)
        if job is not None:
            made = job.outcome.figures.get("run") if job.outcome else None
            found = (run.id for run in runs if run.id == made or view.job_of(run, [job], self._names) is not None)
            self._wanted = next(found, job.id)
        if any(row.key == self._wanted for row in grid.rows):
            grid.select(self._wanted)
            self._wanted = None

    def copy_text(self) -> tuple[str, str]:
        if self._case is not None and self.focused is self.query_one("#case-list"):
            return self._case.after.answer(), "Answer"
        run = self.picked
        return (run.id, "Run") if run else ("", "")

    def command(self) -> str:
        seen = self._seen
        if seen is None:
            return self.place.command
        if seen.comparison is not None and seen.base is not None:
            return f"lathe eval compare {seen.base.id} {seen.run.id}"
        return f"lathe eval show {seen.run.id}"
