"""Stores: collections of documents for RAG: building with live progress, documents, passages, errors, the report.

The list is read again whenever a job about a store ends. Invariant: a build is always a job, so the terminal may be
closed while it runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.rag.requests import PassageView, StoreDetails
from lathe.engine.steps import (
    RagBuildStep,
    RagEvalStep,
    RagExploreStep,
    RagGoldenStep,
    RagReembedStep,
    RagVerifyStep,
    Step,
)
from lathe.store.rag.values import StoredDocument, StoredPassage, StoreStats
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.model_work import submit
from lathe.tui.screens.passage import PassageDialog
from lathe.tui.text import line as one_line
from lathe.tui.views import rag as view
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.fields import Check
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
        Binding("P", "explore", "explore", show=False, id="rag.explore", tooltip="Make the report anew"),
        Binding("v", "verify", "verify", show=False, id="rag.verify", tooltip="Compare every row with its seal"),
        Binding("R", "reembed", "re-embed", show=False, id="rag.reembed", tooltip="Other vectors, then switch"),
        Binding("Q", "golden", "golden questions", show=False, id="rag.golden", tooltip="Add golden questions"),
        Binding("b", "evaluate", "evaluate", show=False, id="rag.evaluate", tooltip="Retrieval on golden questions"),
        Binding("x", "cancel", "cancel", id="rag.cancel", tooltip="Stop the store's job; r goes on where it was"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[StoreStats] | None = None
        self._ended: frozenset[str] | None = None
        """Jobs about stores that had ended when the list was read."""
        self._details: StoreDetails | None = None
        self._documents: Sequence[StoredDocument] = ()
        self._passages: Sequence[StoredPassage] = ()
        self._document = ""
        self._report: QualityReport | None = None
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
        yield JobPanel(id="job")

    def home(self) -> Widget | None:
        return self.query_one("#store-list", Grid)

    def _nothing(self) -> str:
        if self._stores is None:
            return "Reading the stores..."
        return "No stores yet.\nn  makes one from a folder of documents"

    def _no_documents(self) -> str:
        return "Nothing was read yet.\nr  reads the sources" if self.store is not None else ""

    # -- drawing ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        ended = frozenset(
            job.id
            for job in board.jobs
            if isinstance(job.step, (*view.RAG_STEPS, RagExploreStep)) and job.state in FINAL
        )
        if board.attached and board.lost is None and ended != self._ended:
            self._ended = ended
            self._read()
        self._show_list()
        job = self.job
        panel = self.query_one(JobPanel)
        panel.display = job is not None
        panel.show(job)

    def _show_list(self) -> None:
        grid = self.query_one("#store-list", Grid)
        grid.show(view.store_rows(self._stores or (), self.board.jobs, self.lathe.glyphs))
        self.after_filter()
        self.query_one("#facts Canvas", Canvas).redraw()

    def after_filter(self) -> None:
        stores = self._stores or []
        size = formats.long_size(sum(store.bytes for store in stores)) if stores else ""
        self.query_one("#stores", Panel).entitle("Stores", str(len(stores)) if stores else "", size)
        self.query_one("#stores", Panel).footnote(self.parts_line())
        for name in ("documents", "passages", "errors", "report"):
            self.query_one(f"#{name}").display = name == self._tab
        store = self.store
        title = {
            "documents": ("Documents", f"{store.documents:,}" if store else ""),
            "passages": ("Passages", self._document),
            "errors": ("Errors", str(store.errors) if store else ""),
            "report": ("Report", formats.moment(self._report.made_at) if self._report else ""),
        }[self._tab]
        inside = self.query_one("#inside", Panel)
        inside.entitle(*title)
        shown = {"documents": len(self._documents), "passages": len(self._passages)}.get(self._tab, 0)
        inside.footnote(
            f"the first {SHOWN}" if shown >= SHOWN else "", "esc documents" if self._tab == "passages" else ""
        )

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
            return view.store_job(self.board.jobs, store.settings.name)
        builds = (job for job in self.board.jobs if isinstance(job.step, RagBuildStep) and job.state not in FINAL)
        return next(builds, None)

    @work(exclusive=True, group="stores", exit_on_error=False)
    async def _read(self) -> None:
        """The list, then the store under the cursor."""
        try:
            self._stores = await self.lathe.link.bench.stores()
        except LatheError as error:
            self._stores = self._stores or []
            self.lathe.notify(error.message, severity="warning")
        self._show_list()
        self._look()

    @work(exclusive=True, group="store", exit_on_error=False)
    async def _look(self) -> None:
        """Read the store under the cursor: facts, documents, errors, report."""
        store = self.store
        self._documents, self._passages, self._report = (), (), None
        if store is not None:
            name, bench = store.settings.name, self.lathe.link.bench
            try:
                self._details = await bench.store(name)
                self._documents = await bench.store_documents(name, "", SHOWN)
                self._report = await bench.store_report(name)
            except LatheError as error:
                self.lathe.notify(f"{name}: {error.message}", severity="warning")
        if self._tab == "passages":
            self._tab = "documents"
        self._draw()

    def _draw(self) -> None:
        errors = self._details.errors if self._details is not None and self.store is not None else ()
        self._fill("documents", view.document_rows(self._documents))
        self._fill("passages", view.passage_rows(self._passages))
        self._fill("errors", view.error_rows(errors))
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

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("new", "refresh", "add", "explore", "verify", "reembed", "golden", "evaluate", "cancel")

    def action_show(self, tab: str) -> None:
        """Another view of the store."""
        self._tab = tab
        self.after_filter()
        self.query_one(f"#{tab}").focus()

    def action_back(self) -> None:
        """From passages to documents, from there to the list."""
        if self.maximized is None and not self.typing:
            if self._tab == "passages":
                self.action_show("documents")
                return
            target = self.target_list()
            if target is not None and not target.filter_text:
                self.set_focus(self.home())
                return
        super().action_back()

    def action_new(self) -> None:
        """Ask what to make a store of."""
        taken = {store.settings.name for store in self._stores or ()}
        embedders = ("default", *(entry.name for entry in self.board.models if entry.format in ("gguf", "onnx")))
        form = Form(
            "New store",
            (
                Field("name", "name", hint="one word", check=_name_check(taken)),
                Field("sources", "folders", hint="folders and files, separated by blanks", check=_sources_check),
                Field("embedder", "embedder", "default", embedders, "default: MiniLM; words alone where there is none"),
                Field("vectors", "vectors", "yes", ("yes", "no"), "no: keyword search alone"),
                Field("tokens", "passage tokens", "256", check=number(16, 8192, whole=True)),
                Field("overlap", "overlap", "32", check=number(0, 4096, whole=True)),
                Field(
                    "personal", "personal data", "keep", ("keep", "mask"), "mask: names instead of addresses, numbers"
                ),
                Field("about", "about", hint="what it is for"),
            ),
            yes="Build",
            intro="A job reads the documents in a limited process; files that cannot be read are listed, not fatal.",
        )

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            step = RagBuildStep(
                store=values["name"], sources=tuple(_folders(values["sources"])),
                embedder=None if values["embedder"] == "default" else values["embedder"],
                words_only=values["vectors"] == "no", tokens=int(values["tokens"]), overlap=int(values["overlap"]),
                mask_personal=values["personal"] == "mask", description=values["about"],
            )  # fmt: skip
            self._submit(step, ["build", step.store, *step.sources])

        self.app.push_screen(form, take)

    def _submit(self, step: Step, words: list[str]) -> None:
        submit(self.lathe, step, shlex.join(["lathe", "rag", *words]), lambda _job: self.lathe.redraw())

    def action_refresh(self) -> None:
        """Read what changed."""
        store = self.store
        if store is not None:
            self._submit(RagBuildStep(store=store.settings.name), ["build", store.settings.name])

    def action_add(self) -> None:
        """Add sources."""
        store = self.store
        if store is None:
            return

        def take(text: str | None) -> None:
            if text:
                sources = tuple(_folders(text))
                self._submit(
                    RagBuildStep(store=store.settings.name, sources=sources), ["add", store.settings.name, *sources]
                )

        self.app.push_screen(Ask(f"Add to {store.settings.name}", "Folders and files", check=_sources_check), take)

    def action_explore(self) -> None:
        """Make the report anew."""
        store = self.store
        if store is not None:
            self._submit(RagExploreStep(store=store.settings.name), ["report", store.settings.name, "--fresh"])

    def action_verify(self) -> None:
        """Check every row."""
        store = self.store
        if store is not None:
            self._submit(RagVerifyStep(store=store.settings.name), ["verify", store.settings.name])

    def action_evaluate(self) -> None:
        """Measure retrieval on the store's own questions."""
        store = self.store
        if store is None:
            return
        if not store.questions:
            self.lathe.notify(
                f"{store.settings.name} has no golden questions: Q adds a file of them.", severity="warning"
            )
            return
        self._submit(RagEvalStep(store=store.settings.name), ["eval", store.settings.name])

    def action_golden(self) -> None:
        """Add golden questions."""
        store = self.store
        if store is None:
            return
        dialog = Ask(
            f"Golden questions for {store.settings.name}", "File of JSON lines", check=_sources_check,
            hint='{"id": ..., "text": ..., "relevant": [{"path": ...}]}',
        )  # fmt: skip

        def take(text: str | None) -> None:
            if text:
                (path,) = _folders(text)[:1]
                self._submit(RagGoldenStep(store=store.settings.name, file=path), ["golden", store.settings.name, path])

        self.app.push_screen(dialog, take)

    def action_reembed(self) -> None:
        """Other vectors, then the switch."""
        store = self.store
        if store is None:
            return
        names = [entry.name for entry in self.board.models if entry.format in ("gguf", "onnx")]
        if not names:
            self.lathe.notify("There is no GGUF or ONNX model to embed with.", severity="warning")
            return
        form = Form(
            f"Re-embed {store.settings.name}",
            (
                Field("embedder", "embedder", choices=tuple(names), hint="its vectors are made beside the old ones"),
                Field("least", "least recall", "0", hint="of the old one's on golden questions, for the switch",
                      check=number(0, 1)),
                Field("keep", "keep the old", "no", ("no", "yes"), "keeps the former vectors in the file"),
            ),
            yes="Re-embed",
            intro="The store answers as before until the new vectors are complete.",
        )  # fmt: skip

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                step = RagReembedStep(
                    store=store.settings.name, embedder=values["embedder"], least_agreement=float(values["least"]),
                    keep=values["keep"] == "yes",
                )  # fmt: skip
                self._submit(step, ["reembed", step.store, "--embedder", step.embedder])

        self.app.push_screen(form, take)

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


def _folders(text: str) -> list[str]:
    """Paths as written, blanks in quotes, made absolute: the engine has another working directory."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return [str(Path(word).expanduser().absolute()) for word in words]


def _sources_check(text: str) -> str:
    paths = _folders(text)
    missing = next((path for path in paths if not Path(path).exists()), None)
    return "type a path" if not paths else f"there is no {one_line(missing, 200)}" if missing else ""


def _name_check(taken: set[str]) -> Check:
    def check(name: str) -> str:
        if not name.strip() or any(not (c.isalnum() or c in "._-") for c in name):
            return "one word of letters, digits, . _ -"
        return f"{name} is there already" if name in taken else ""

    return check
