"""Stores: collections of documents for RAG: builds with live progress, and what a store holds, went through and finds.

The list is read again whenever a job about a store ends; what can be done with a store is in `store_work`. Invariant:
the panel shows the store under the cursor, and what was read of another one is never drawn.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, ClassVar

from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.rag.requests import PassageView, StoreDetails, StoreDiff
from lathe.engine.steps import RagBuildStep, RagExploreStep, RagVerifyStep, Step
from lathe.engine.workbench import ApiKey
from lathe.store.rag.values import Change, Question, StoredDocument, StoredPassage, StoreStats
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens import store_work as work_of
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.passage import PassageDialog
from lathe.tui.views import corpus
from lathe.tui.views import rag as view
from lathe.tui.views.models import able_to_answer
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid, Row
from lathe.tui.widgets.jobpanel import JobPanel
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.sheet import Sheet
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget

if TYPE_CHECKING:
    from lathe.engine.rag.ingest.report import QualityReport

SHOWN = 500
"""Documents or passages of one page; the filter works on what is shown."""
AGAIN_S = 3.0
"""Seconds after which a store that is being built is read again."""
_TABS = ("documents", "passages", "errors", "report", "changes", "fates", "questions", "figures")
_INSIDE = {"passages": "documents", "fates": "changes"}
"""Views that a row of another one opens."""


class Stores(PlaceScreen):
    """The stores."""

    MODE = "rag"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "new store", id="rag.new", tooltip="Make a store from folders of documents"),
        Binding("a", "ask", "ask", id="rag.ask", tooltip="Ask the store a question"),
        Binding("r", "refresh", "refresh", id="rag.refresh", tooltip="Read the sources again: only what changed"),
        Binding("o", "add", "add folder", show=False, id="rag.add", tooltip="Add another folder or file to the store"),
        Binding("d", "show('documents')", "documents", id="rag.documents", tooltip="What was read, and its passages"),
        Binding("e", "show('errors')", "errors", id="rag.errors", tooltip="Files that gave no text, and why"),
        Binding("p", "show('report')", "report", id="rag.report", tooltip="What the store is made of"),
        Binding("c", "show('changes')", "changes", show=False, id="rag.changes", tooltip="Versions, what each changed"),
        Binding("Q", "show('questions')", "questions", show=False, id="rag.questions", tooltip="Golden questions"),
        Binding("B", "show('figures')", "figures", show=False, id="rag.figures", tooltip="How good retrieval was"),
        Binding("P", "explore", "explore", show=False, id="rag.explore", tooltip="Make the report anew"),
        Binding("v", "verify", "verify", show=False, id="rag.verify", tooltip="Compare every row with its seal"),
        Binding("R", "reembed", "re-embed", show=False, id="rag.reembed", tooltip="Other vectors, then switch"),
        Binding("M", "mend", "mend", show=False, id="rag.mend", tooltip="Make the indexes anew, then verify"),
        Binding("i", "questions_file", "add questions", show=False, id="rag.golden", tooltip="Add golden questions"),
        Binding("t", "draft", "draft questions", show=False, id="rag.draft", tooltip="A model drafts golden questions"),
        Binding("b", "evaluate", "measure", show=False, id="rag.evaluate", tooltip="Measure retrieval"),
        Binding("W", "watch", "watch", show=False, id="rag.watch", tooltip="Follow the folders while Lathe is open"),
        Binding("A", "access", "access", show=False, id="rag.access", tooltip="Which API keys may search the store"),
        Binding("D", "delete", "delete", id="rag.delete", tooltip="Delete the store; its documents stay"),
        Binding("x", "cancel", "cancel", id="rag.cancel", tooltip="Stop the store's job; r goes on where it was"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[StoreStats] | None = None
        self._seen: frozenset[tuple[str, bool, bool]] | None = None
        """Jobs about stores when the list was read: whether they had begun to tell, whether they had ended."""
        self._read_at = 0.0
        self._looked = ""
        """The store that was read last."""
        self._wanted = ""
        """A store that is being made, to stand on when it appears."""
        self._details: StoreDetails | None = None
        self._documents: Sequence[StoredDocument] = ()
        self._passages: Sequence[StoredPassage] = ()
        self._document = ""
        self._report: QualityReport | None = None
        self._questions: Sequence[Question] = ()
        self._changes: Sequence[Change] = ()
        self._version = 0
        """Whose changes are shown."""
        self._watched: set[str] = set()
        """Stores whose folders are followed."""
        self._tab = "documents"

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, Sheet)

    def content(self) -> ComposeResult:
        with Vertical(id="left"):
            with Panel(title="Stores", id="stores", classes="-bare"):
                yield Grid(view.STORES, empty=self._nothing, id="store-list")
            with Panel(title="Store", id="facts"):
                yield Canvas(self._facts)
        with Panel(title="Documents", id="inside", classes="-bare"):
            yield Grid(view.DOCUMENTS, empty=self._no_documents, id="documents")
            yield Grid(view.PASSAGES, empty="No passages.", id="passages")
            yield Grid(view.ERRORS, empty="Every file gave text.", id="errors")
            yield Sheet(self._report_lines, id="report")
            yield Grid(corpus.VERSIONS, empty="Nothing was built yet.", id="changes")
            yield Grid(corpus.CHANGES, empty="Nothing changed.", id="fates")
            yield Grid(corpus.QUESTIONS, empty=self._no_questions, id="questions")
            yield Grid(corpus.FIGURES, empty="Nothing was measured yet.\nb  measures retrieval", id="figures")
        yield JobPanel(id="job")

    def home(self) -> Widget | None:
        return self.query_one("#store-list", Grid)

    def _nothing(self) -> str:
        if self._stores is None:
            return "Reading the stores..."
        return "No stores yet.\nn  makes one from a folder of documents"

    def _no_documents(self) -> str:
        return "Nothing was read yet.\nr  reads the sources" if self.store is not None else ""

    def _no_questions(self) -> str:
        return "No golden questions.\ni  adds a file of them\nt  lets a model draft some"

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        jobs = [job for job in board.jobs if isinstance(job.step, view.RAG_STEPS)]
        seen = frozenset((job.id, bool(job.progress.label), job.state in FINAL) for job in jobs)
        due = any(job.state not in FINAL for job in jobs) and self.lathe.now() - self._read_at >= AGAIN_S
        if board.attached and board.lost is None and (seen != self._seen or due):
            self._seen, self._read_at = seen, self.lathe.now()
            self._read()
        self._show_list()
        job = self.job
        panel = self.query_one(JobPanel)
        panel.display = job is not None
        panel.show(job)

    def _show_list(self) -> None:
        grid = self.query_one("#store-list", Grid)
        grid.show(view.store_rows(self._stores or (), self.board.jobs, self.lathe.glyphs, self._watched))
        if (store := self.store) is not None:
            self._fill("figures", corpus.figure_rows(self.board.jobs, store.settings.name))
        self.after_filter()
        self.query_one("#facts Canvas", Canvas).redraw()

    def after_filter(self) -> None:
        stores = self._stores or []
        size = formats.long_size(sum(store.bytes for store in stores)) if stores else ""
        self.query_one("#stores", Panel).entitle("Stores", str(len(stores)) if stores else "", size)
        self.query_one("#stores", Panel).footnote(self.parts_line())
        for name in _TABS:
            self.query_one(f"#{name}").display = name == self._tab
        store = self.store
        title = {
            "documents": ("Documents", f"{store.documents:,}" if store else ""),
            "passages": ("Passages", self._document),
            "errors": ("Errors", str(store.errors) if store else ""),
            "report": ("Report", formats.moment(self._report.made_at) if self._report else ""),
            "changes": ("Versions", str(store.version.number) if store and store.version else ""),
            "fates": ("Changes", f"version {self._version}"),
            "questions": ("Golden questions", str(len(self._questions)) if self._questions else ""),
            "figures": ("Retrieval", "newest first" if self.query_one("#figures", Grid).total else ""),
        }[self._tab]
        inside = self.query_one("#inside", Panel)
        inside.entitle(*title)
        shown = {"documents": len(self._documents), "passages": len(self._passages)}.get(self._tab, 0)
        keys = {"changes": "enter shows what changed", "questions": "enter confirms or drops   i file   t draft",
                "figures": "b measures"}.get(self._tab, "")  # fmt: skip
        back = f"esc {_INSIDE[self._tab]}" if self._tab in _INSIDE else keys
        inside.footnote(f"the first {SHOWN}" if shown >= SHOWN else "", back)

    def _facts(self, width: int, height: int) -> list[Line]:
        store = self.store
        if store is None:
            return []
        mine = self._details if self._details and self._details.stats.settings.name == store.settings.name else None
        return view.facts(store, mine, width, height, self.lathe.glyphs)

    def _report_lines(self, width: int) -> list[Line]:
        if self._report is None:
            return [[], [("  Not explored yet.", "text")], [("  P  explores the store", "dim")]]
        return view.report_lines(self._report, width - 2, self.lathe.glyphs)

    # -- what is chosen ---------------------------------------------------------------------------------------------
    @property
    def store(self) -> StoreStats | None:
        """The store under the cursor."""
        key = self.query_one("#store-list", Grid).cursor
        return next((store for store in self._stores or () if store.settings.name == key), None)

    @property
    def job(self) -> Job | None:
        """What is done to it, or was done last; a store that is being made has only its job."""
        store = self.store
        if store is not None:
            return view.shown_job(self.board.jobs, store.settings.name)
        builds = (job for job in self.board.jobs if isinstance(job.step, RagBuildStep) and job.state not in FINAL)
        return next(builds, None)

    def _reread(self) -> None:
        self._read()

    @work(exclusive=True, group="stores", exit_on_error=False)
    async def _read(self) -> None:
        """The list, then the store under the cursor."""
        try:
            self._stores = await self.lathe.link.bench.stores()
        except LatheError as error:
            self._stores = self._stores or []
            self.lathe.notify(error.message, severity="warning")
        self._show_list()
        if self._wanted and self._wanted in {store.settings.name for store in self._stores}:
            self.query_one("#store-list", Grid).select(self._wanted)
            self._wanted = ""
        self._look()

    @work(exclusive=True, group="store", exit_on_error=False)
    async def _look(self) -> None:
        """Read the store under the cursor: facts, documents, errors, report."""
        store = self.store
        name, bench = store.settings.name if store is not None else "", self.lathe.link.bench
        if name != self._looked:
            self._looked, self._details, self._report = name, None, None
            self._documents, self._passages, self._questions, self._changes = (), (), (), ()
            self._tab = _INSIDE.get(self._tab, self._tab)
        if store is not None:
            try:
                self._details = await bench.store(name)
                self._documents = await bench.store_documents(name, "", SHOWN)
                self._report = await bench.store_report(name)
                self._questions = await bench.store_questions(name)
            except LatheError as error:
                self.lathe.notify(f"{name}: {error.message}", severity="warning")
        self._draw()

    def _draw(self) -> None:
        details = self._details
        self._fill("documents", view.document_rows(self._documents))
        self._fill("passages", view.passage_rows(self._passages))
        self._fill("errors", view.error_rows(details.errors if details is not None else ()))
        self._fill("changes", corpus.version_rows(details.versions if details is not None else ()))
        self._fill("fates", corpus.change_rows(self._changes))
        self._fill("questions", corpus.question_rows(self._questions))
        self._fill("figures", corpus.figure_rows(self.board.jobs, self.store.settings.name) if self.store else [])
        self.query_one(Sheet).remake()
        self.query_one("#facts Canvas", Canvas).redraw()
        self.after_filter()

    def _fill(self, name: str, rows: list[Row]) -> None:
        self.query_one(f"#{name}", Grid).show(rows)

    @on(Grid.Moved, "#store-list")
    def _moved(self) -> None:
        self._look()
        self.query_one(JobPanel).show(self.job)

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        if message.grid.id == "documents" and message.key:
            self._open_document(message.key)
        elif message.grid.id == "passages" and message.key:
            self._open_passage(int(message.key))
        elif message.grid.id == "changes" and message.key:
            self._open_version(int(message.key))
        elif message.grid.id == "questions" and message.key:
            self._open_question(message.key)
        elif message.grid.id == "store-list":
            self.query_one(f"#{self._tab}").focus()

    @work(exclusive=True, group="document", exit_on_error=False)
    async def _open_document(self, path: str) -> None:
        store = self.store
        if store is None:
            return
        try:
            self._passages = await self.lathe.link.bench.store_passages(store.settings.name, path, -1, SHOWN)
        except LatheError as error:
            self.lathe.notify(error.message, severity="warning")
            return
        self._document = path
        self._draw()
        self.action_show("passages")

    def _open_passage(self, passage: int) -> None:
        store = self.store
        if store is None:
            return

        def shown(found: PassageView) -> None:
            self.app.push_screen(PassageDialog(found))

        self.lathe.do(lambda bench: bench.passage(store.settings.name, passage), shown, what=store.settings.name)

    def _open_version(self, version: int) -> None:
        store = self.store
        if store is None:
            return
        name, older = store.settings.name, [v.number for v in (self._details.versions if self._details else ())]
        before = max((number for number in older if number < version), default=0)

        def shown(found: StoreDiff) -> None:
            self._changes, self._version = found.changes, version
            self._draw()
            self.action_show("fates")

        command = shlex.join(["lathe", "rag", "diff", name, str(before), str(version)])
        self.lathe.do(lambda bench: bench.store_diff(name, before, version), shown, command=command, what=name)

    def _open_question(self, key: str) -> None:
        store = self.store
        question = next((question for question in self._questions if question.id == key), None)
        if store is not None and question is not None and not self.lathe.read_only:
            work_of.judge(self.lathe, store.settings.name, question)

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return (
            "new", "refresh", "add", "explore", "verify", "mend", "reembed", "questions_file", "draft", "evaluate",
            "cancel", "watch", "access", "delete",
        )  # fmt: skip

    def action_show(self, tab: str) -> None:
        """Another view of the store."""
        self._tab = tab
        self.after_filter()
        self.query_one(f"#{tab}").focus()

    def action_back(self) -> None:
        """From passages to documents, from there to the list."""
        if self.maximized is None and not self.typing:
            if self._tab in _INSIDE:
                self.action_show(_INSIDE[self._tab])
                return
            target = self.target_list()
            if self.focused is not self.home() and not (target is not None and target.filter_text):
                self.set_focus(self.home())
                return
        super().action_back()

    def action_new(self) -> None:
        """Ask what to make a store of."""

        def begun(name: str) -> None:
            self._wanted = name

        work_of.new(self.lathe, self.board, {store.settings.name for store in self._stores or ()}, begun)

    def _job(self, step: Callable[[str], Step], *words: str) -> None:
        """Queue a job about the store under the cursor; its name stands behind the first word of the command."""
        store = self.store
        if store is not None:
            name = store.settings.name
            work_of.queue(self.lathe, step(name), [words[0], name, *words[1:]])

    def action_refresh(self) -> None:
        """Read what changed."""
        store = self.store
        only = store is not None and store.documents > 0 and store.active is None
        self._job(lambda name: RagBuildStep(store=name, words_only=only), "build", *["--words-only"] * only)

    def action_explore(self) -> None:
        """Make the report anew."""
        self._job(lambda name: RagExploreStep(store=name), "report", "--fresh")

    def action_verify(self) -> None:
        """Check every row."""
        self._job(lambda name: RagVerifyStep(store=name), "verify")

    def action_mend(self) -> None:
        """Make the indexes anew, then check every row."""
        self._job(lambda name: RagVerifyStep(store=name, mend=True), "verify", "--mend")

    def action_add(self) -> None:
        """Add sources."""
        if (store := self.store) is not None:
            work_of.add(self.lathe, store)

    def action_reembed(self) -> None:
        """Other vectors, then the switch."""
        if (store := self.store) is not None:
            work_of.reembed(self.lathe, self.board, store)

    def action_evaluate(self) -> None:
        """Measure retrieval."""
        if (store := self.store) is not None:
            work_of.evaluate(self.lathe, self.board, store, lambda: self.action_show("figures"))

    def action_questions_file(self) -> None:
        """Add golden questions from a file."""
        if (store := self.store) is not None:
            work_of.questions_file(self.lathe, store)

    def action_draft(self) -> None:
        """Let a model draft golden questions."""
        if (store := self.store) is not None:
            work_of.draft(self.lathe, [entry.name for entry in able_to_answer(self.board)], store)

    def action_access(self) -> None:
        """Say which keys may search it."""
        store = self.store
        if store is None:
            return

        def asked(keys: list[ApiKey]) -> None:
            work_of.share(self.lathe, store, [key.name for key in keys], self._reread)

        self.lathe.do(lambda bench: bench.keys(), asked, what=store.settings.name)

    def action_delete(self) -> None:
        """Delete the store, once its name was typed."""
        if (store := self.store) is not None:
            work_of.delete(self.lathe, store, self._reread)

    def action_watch(self) -> None:
        """Follow the store's folders, or stop that."""
        store = self.store
        if store is None:
            return
        name = store.settings.name
        if name in self._watched:
            self.workers.cancel_group(self, f"watch {name}")
        elif not store.settings.sources:
            self.lathe.notify(f"{name} was made without folders: o adds some.", severity="warning")
        else:
            self._watched.add(name)
            self.lathe.did = shlex.join(["lathe", "rag", "watch", name])
            self.lathe.tell(f"{name} follows its folders while this terminal is open; W stops it")
            self.run_worker(self._watch(name), group=f"watch {name}", exclusive=True, exit_on_error=False)
        self._show_list()

    async def _watch(self, name: str) -> None:
        """Builds come as jobs, which the board shows."""
        try:
            async with aclosing(self.lathe.link.bench.watch_store(name)) as rounds:
                async for _ in rounds:
                    pass
        except LatheError as error:
            self.lathe.notify(f"{name} is not watched any more: {error.message}", severity="warning")
        finally:
            self._watched.discard(name)
            if self.is_mounted:
                self._show_list()

    def action_cancel(self) -> None:
        """Stop the store's job."""
        job = self.job
        if job is not None and job.state not in FINAL:
            self.lathe.do(
                lambda bench: bench.cancel(job.id),
                lambda j: self.lathe.tell(f"{j.id} {j.state}; r goes on where it was"),
                command=f"lathe jobs cancel {job.id}",
                what=job.id,
            )

    async def action_ask(self) -> None:
        """Ask this store."""
        store = self.store
        await self.lathe.action_go("ask")
        place = self.lathe.current_place
        if place is not None and store is not None:
            place.open_key(store.settings.name)

    def copy_text(self) -> tuple[str, str]:
        target = self.target_list()
        row = target.current if isinstance(target, Grid) else None
        return (row.key, "Name") if row else ("", "")

    def command(self) -> str:
        store = self.store
        return f"lathe rag show {shlex.quote(store.settings.name)}" if store else self.place.command
