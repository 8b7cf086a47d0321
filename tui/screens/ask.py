"""Ask: a question to a store, the answer as it streams, its citations, and what each sentence rests on.

Deltas are drawn ten times a second. Invariant: one answer at a time; leaving it, or another question, cancels it.
"""

from __future__ import annotations

import shlex
import time
from contextlib import aclosing
from typing import ClassVar, cast

from lathe.engine.errors import LatheError, describe
from lathe.engine.rag.requests import (
    Answered,
    AskRequest,
    Checked,
    Citation,
    Hit,
    Mode,
    PassageView,
    Retrieved,
    Said,
    SearchRequest,
    SearchResult,
)
from lathe.store.rag.values import StoreStats
from lathe.tui.board import Board
from lathe.tui.screens.ask_narrow import Narrowing, ask_how
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.text import advice
from lathe.tui.text import line as one_line
from lathe.tui.views import answers as view
from lathe.tui.views.models import able_to_answer
from lathe.tui.widgets.base import Panel
from lathe.tui.widgets.fields import Field, Fields, PickBox, number
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line, wrap
from lathe.tui.widgets.sheet import Sheet
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.timer import Timer
from textual.widget import Widget

FLUSH_S = 0.1
_ABOVE = 6
"""Lines before a passage that stay in sight."""
FIELDS = (
    Field("question", "question", hint="enter asks; ^s only finds"),
    Field("store", "store", hint="enter lists the stores"),
    Field("model", "model", hint="enter lists the models; it is loaded where it is not"),
    Field("mode", "search", "hybrid", ("hybrid", "dense", "bm25"), "dense: by meaning; bm25: by words; hybrid: both"),
    Field("k", "passages", "6", hint="given to the model, as far as they fit", check=number(1, 100, whole=True)),
    Field("quote", "quote only", "no", ("no", "yes"), "yes: the model chooses among the documents' own sentences"),
    Field("tokens", "max tokens", "200", hint="of the answer", check=number(1, 8192, whole=True)),
)


class AskStore(PlaceScreen):
    """Questions and cited answers."""

    MODE = "ask"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "write", "question", id="ask.write", tooltip="Into the question"),
        Binding("f,ctrl+s", "find", "find only", id="ask.find", tooltip="Find passages, and ask no model"),
        Binding("F", "narrow", "narrow", id="ask.narrow", tooltip="Filters, reranker, novelty"),
        Binding("A", "always", "ask anyway", id="ask.always", tooltip="Let the model answer from weak passages, too"),
        Binding("enter", "passage", "passage", show=False, id="ask.passage", tooltip="Read the passage at its span"),
        Binding("w", "view", "answer or passage", id="ask.view", tooltip="What fills a narrow terminal"),
        Binding("x", "stop", "stop", id="ask.stop", tooltip="Stop the answer"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[StoreStats] | None = None
        self._stale = True
        self._offered: object = None
        self._wanted = ""
        """The store that was asked for before the list was read."""
        self._narrowing = Narrowing()
        self._text: list[str] = []
        self._result: SearchResult | None = None
        self._given: tuple[Citation, ...] = ()
        self._answered: Answered | None = None
        self._checked: Checked | None = None
        self._found: PassageView | None = None
        self._asked = ""
        self._began = 0.0
        self._first_s: float | None = None
        self._streaming = False
        self._fresh = False
        self._problem = ""
        self._clock: Timer | None = None

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, PickBox, Sheet)

    def content(self) -> ComposeResult:
        with Panel(title="Ask", id="question"):
            yield Fields(FIELDS, picks=("store", "model"), takes=("question",))
        with Vertical(id="main"):
            with Panel(title="Answer", id="answer"):
                yield Sheet(self._answer, id="answer-text")
            with Panel(title="Passages", id="hits", classes="-bare"):
                yield Grid(view.HITS, empty=self._nothing)
        with Panel(title="Passage", id="passage"):
            yield Sheet(self._passage, id="passage-text")

    def on_mount(self) -> None:
        """The clock runs only while something streams."""
        self._clock = self.set_interval(FLUSH_S, self._flush, pause=True)

    def home(self) -> Widget | None:
        return self.query_one("#f-question")

    def away_from_text(self) -> Widget | None:
        return self.query_one(Grid)

    def _nothing(self) -> str:
        if self._stores is not None and not self._stores:
            return "No stores yet.\n[  goes to the stores, n makes one"
        return "Nothing was found." if self._result is not None else "Nothing was asked yet."

    # -- drawing ----------------------------------------------------------------------------------------------------
    def on_screen_resume(self) -> None:
        """Stores may have come meanwhile."""
        self._stale = True

    def show(self, board: Board) -> None:
        if board.attached and board.lost is None and self._stale:
            self._stale = False
            self._read()
        self._offer(board)
        self._explain()

    @work(exclusive=True, group="stores", exit_on_error=False)
    async def _read(self) -> None:
        try:
            self._stores = await self.lathe.link.bench.stores()
        except LatheError as error:
            self.lathe.notify(error.message, severity="warning")
            return
        names = [store.settings.name for store in self._stores]
        notes = {store.settings.name: f"{store.documents:,} documents" for store in self._stores}
        self.query_one(Fields).pick("store").offer([(name, name) for name in names], notes)
        if self._wanted:
            self.query_one(Fields).pick("store").choose(self._wanted)
        self.query_one(Grid).refresh()

    def _offer(self, board: Board) -> None:
        """Models that can answer; loaded ones first."""
        if self._offered is board.models or not board.models:
            return
        self._offered = board.models
        able = able_to_answer(board)
        notes = {entry.name: "loaded" if board.worker(entry.id) else entry.format for entry in able}
        self.query_one(Fields).pick("model").offer([(entry.name, entry.name) for entry in able], notes)

    def _explain(self) -> None:
        hint = self.query_one(Fields).explain(self.focused)
        self.query_one("#question", Panel).footnote(hint or self.parts_line())

    def on_descendant_focus(self) -> None:
        """Say what the field means."""
        self._explain()

    def _flush(self) -> None:
        """Show what came, if the place is visible."""
        if self.is_current and self._fresh:
            self._fresh = False
            sheet = self.query_one("#answer-text", Sheet)
            sheet.remake()
            sheet.scroll_end(animate=False)
            self._letter()

    def _letter(self) -> None:
        panel = self.query_one("#answer", Panel)
        state = f"answering {time.monotonic() - self._began:.0f} s" if self._streaming else ""
        panel.entitle("Answer", self._asked, state)
        panel.footnote(*view.pace(self._answered, self._first_s))

    def _answer(self, width: int) -> list[Line]:
        if self._problem:
            return wrap(self._problem, width, "bad", 6)
        width -= 1  # the scroll bar's
        if not self._asked and self._result is not None:
            return [[], [("Only found: enter in the question asks the model.", "dim")]]
        if not self._asked:
            return [[], [("An answer cites the passages it was given: [1].", "dim")],
                    [("What is not in the documents is said to be so.", "dim")]]  # fmt: skip
        if not self._text and self._streaming:
            return [[("Searching..." if self._result is None else "Reading the passages...", "dim")]]
        text = "".join(self._text) if self._answered is None else self._answered.text
        return view.answer_lines(text, self._given, self._answered, self._checked, width, self.lathe.glyphs)

    def _passage(self, width: int) -> list[Line]:
        if self._found is None:
            return [[], [("The passage under the cursor is shown here, in its surroundings.", "dim")]]
        return view.passage_lines(self._found, self._hit, width - 1, self.lathe.glyphs)

    def _draw(self) -> None:
        rows = view.hit_rows(self._result, self._given) if self._result else []
        self.query_one(Grid).show(rows)
        panel = self.query_one("#hits", Panel)
        if self._result is not None:
            note = one_line(self._result.note, 80)
            panel.entitle("Passages", f"{len(rows)} found", f"{len(self._given)} given" if self._given else "",
                          self._result.mode, note)  # fmt: skip
            panel.footnote(view.timings(self._result))
        self.query_one("#answer-text", Sheet).remake()
        self._letter()

    # -- asking -----------------------------------------------------------------------------------------------------
    @property
    def _hit(self) -> Hit | None:
        """The passage under the cursor, as it was found."""
        key = self.query_one(Grid).cursor
        hits = self._result.hits if self._result else ()
        return next((hit for hit in hits if str(hit.passage.id) == key), None)

    @on(Fields.Entered)
    def _entered(self, message: Fields.Entered) -> None:
        """Enter asks."""
        message.stop()
        self._begin(always=False)

    def _ready(self, *, model: bool) -> bool:
        fields = self.query_one(Fields)
        wanted = ["question", "store", *(["model"] if model else [])]
        missing = next((name for name in wanted if not fields[name]), None)
        problem = fields.problem() or (f"{missing}: there is none" if missing else "")
        if problem:
            self.lathe.notify(problem, severity="warning")
        return not problem

    def _begin(self, *, always: bool) -> None:
        if not self._ready(model=True):
            return
        fields = self.query_one(Fields)
        self._reset(fields["question"])
        request = AskRequest(
            store=fields["store"], question=fields["question"], model=fields["model"], k=int(fields["k"]),
            mode=cast(Mode, fields["mode"]), max_tokens=int(fields["tokens"]), quote=fields["quote"] == "yes",
            always=always, filter=self._narrowing.filter, reranker=self._narrowing.reranker, mmr=self._narrowing.mmr,
        )  # fmt: skip
        words = ["lathe", "rag", "ask", request.store, request.question, "--model", request.model, "-k", str(request.k)]
        words += ["--mode", request.mode] * (request.mode != "hybrid") + ["-n", fields["tokens"]]
        words += ["--quote"] * request.quote + ["--always"] * always + self._narrowing.words()
        self.lathe.did = shlex.join(words)
        self._stream(request)

    def _reset(self, question: str) -> None:
        self._text, self._result, self._given, self._answered = [], None, (), None
        self._checked, self._found, self._problem, self._asked = None, None, "", question
        self._began, self._first_s = time.monotonic(), None
        self._draw()
        self.query_one("#passage-text", Sheet).remake()

    @work(exclusive=True, group="ask", exit_on_error=False)
    async def _stream(self, request: AskRequest) -> None:
        self._streaming, self._fresh = True, True
        if self._clock is not None:
            self._clock.resume()
        try:
            async with aclosing(self.lathe.link.bench.ask_store(request)) as events:
                async for event in events:
                    self._take(event)
        except Exception as error:  # noqa: BLE001 - a fault of an answer is shown where the answer would be
            failure = describe(error)
            self._problem = advice(failure.message, failure.hint)
            self.lathe.report(failure, what=request.store)
        finally:
            self._streaming = False
            if self._clock is not None:
                self._clock.pause()
            if self.is_mounted:
                self._draw()
                self.query_one("#answer-text", Sheet).scroll_home(animate=False)

    def _take(self, event: Retrieved | Said | Answered | Checked) -> None:
        match event:
            case Retrieved(result=result, given=given):
                self._result, self._given = result, given
                self._draw()
            case Said(text=text):
                if self._first_s is None:
                    self._first_s = time.monotonic() - self._began
                self._text.append(text)
                self._fresh = True
            case Answered():
                self._answered = event
                self._draw()
            case Checked():
                self._checked = event

    def stop_streams(self) -> bool:
        """Stop the answer; False where none streams."""
        was = self._streaming
        self.workers.cancel_group(self, "ask")
        return was

    # -- actions ----------------------------------------------------------------------------------------------------
    def action_write(self) -> None:
        """Into the question."""
        self.query_one("#f-question").focus()

    def action_find(self) -> None:
        """Only find."""
        if not self._ready(model=False):
            return
        fields = self.query_one(Fields)
        self.stop_streams()
        self._reset(fields["question"])
        request = SearchRequest(
            store=fields["store"], query=fields["question"], k=int(fields["k"]), mode=cast(Mode, fields["mode"]),
            filter=self._narrowing.filter, reranker=self._narrowing.reranker, mmr=self._narrowing.mmr,
        )  # fmt: skip
        words = ["lathe", "rag", "query", request.store, request.query, "-k", str(request.k), "--mode", request.mode]
        words += self._narrowing.words()

        def found(result: SearchResult) -> None:
            self._result, self._asked = result, ""
            self._draw()

        self.lathe.do(lambda bench: bench.search_store(request), found, command=shlex.join(words), what=request.store)

    def action_always(self) -> None:
        """Ask although what was found is weak."""
        self._begin(always=True)

    def action_narrow(self) -> None:
        """Ask where to search, and how to choose among what is found."""

        def take(chosen: Narrowing | None) -> None:
            if chosen is not None:
                self._narrowing = chosen
                self.query_one("#question", Panel).entitle("Ask", *(one_line(part, 60) for part in chosen.describe()))

        ask_how(self.lathe, self._narrowing, take)

    def action_stop(self) -> None:
        """Stop the answer."""
        self.stop_streams()

    def action_view(self) -> None:
        """Answer or passage."""
        self.toggle_class("-passage")

    @on(Grid.Moved)
    def _moved(self) -> None:
        self._open()

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_passage()

    def action_passage(self) -> None:
        """Into the passage."""
        if self._found is not None:
            self.add_class("-passage")
            self.query_one("#passage-text").focus()

    @work(exclusive=True, group="passage", exit_on_error=False)
    async def _open(self) -> None:
        """Read the passage under the cursor in its surroundings."""
        hit = self._hit
        if hit is None:
            return
        try:
            self._found = await self.lathe.link.bench.passage(self.query_one(Fields)["store"], hit.passage.id)
        except LatheError as error:
            self.lathe.notify(error.message, severity="warning")
            return
        self.query_one("#passage", Panel).entitle("Passage", self._found.passage.path)
        sheet = self.query_one("#passage-text", Sheet)
        sheet.remake()
        lines = self._passage(sheet.size.width)
        sheet.scroll_to(y=max(0, view.own_start(lines) - _ABOVE), animate=False)

    def action_back(self) -> None:
        """From the passage to the list."""
        if self.maximized is None and not self.typing and self.has_class("-passage"):
            self.remove_class("-passage")
            self.query_one(Grid).focus()
            return
        super().action_back()

    @on(PickBox.Asked)
    def _list_asked(self, message: PickBox.Asked) -> None:
        message.stop()
        box = message.box

        def take(shown: str | None) -> None:
            if shown is not None:
                box.take(shown)

        choices = [Choice(shown, shown, box.notes.get(shown, "")) for shown in box.choices if shown]
        self.app.push_screen(Choose(box.label.capitalize(), choices, current=box.value), take)

    def open_key(self, key: str) -> None:
        self._wanted = key
        if self.query_one(Fields).pick("store").choose(key):
            self.query_one("#f-question").focus()

    def copy_text(self) -> tuple[str, str]:
        hit = self._hit
        if isinstance(self.focused, Grid) and hit is not None:
            return hit.passage.text, "Passage"
        return (self._answered.text, "Answer") if self._answered else ("", "")

    def command(self) -> str:
        return self.lathe.did if self.lathe.did.startswith("lathe rag ") else self.place.command
