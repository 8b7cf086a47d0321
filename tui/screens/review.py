"""Review: a person judges sampled answers, one by one or pairwise and blind; examples for fine-tuning come out.

    draw a sample -> accept, reject, edit / A, B, tie -> the next one that is open
Invariant: a judgement is kept by the engine before the screen goes on; of a pair nothing names a model until then.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from lathe.engine.errors import LatheError, UsageError, describe
from lathe.engine.evals import reviews as exports
from lathe.engine.evals.results import EvalRun
from lathe.store.evals import Review as Judgement
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.review_desk import Item, Order, Said, draw, review_of, said_of, tags_of
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask, Write
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.views import reviews as view
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from lathe.tui.widgets.sheet import Sheet
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget

STYLES: dict[str, tuple[str, Callable[[Iterable[Judgement]], str]]] = {
    "sft": ("accepted and edited answers as chats", exports.sft),
    "dpo": ("preferences: prompt, chosen, rejected", exports.dpo),
    "jsonl": ("every judgement as it was given", exports.plain),
}


class Review(PlaceScreen):
    """Judging answers."""

    MODE = "review"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "sample", "new sample", id="review.sample", tooltip="Draw answers of a run, or pairs of two"),
        Binding("a", "judge('accept')", "accept", id="review.accept", tooltip="The answer is good"),
        Binding("r", "judge('reject')", "reject", id="review.reject", tooltip="The answer is bad"),
        Binding("a", "judge('A')", "A better", id="review.first", tooltip="Of a pair: A is better"),
        Binding("b", "judge('B')", "B better", id="review.second", tooltip="Of a pair: B is better"),
        Binding("t", "judge('tie')", "tie", id="review.tie", tooltip="Of a pair: neither is better"),
        Binding("e", "edit", "edit", id="review.edit", tooltip="Write the answer as it should have been"),
        Binding("w", "explain", "why", id="review.why", tooltip="Say why; kept with the judgement"),
        Binding("l", "tag", "tags", id="review.tag", tooltip="Words that sort this answer"),
        Binding("E", "export", "export", id="review.export", tooltip="Write SFT or DPO examples, or all judgements"),
        Binding("enter", "read", "read", show=False, id="review.read", tooltip="Into the answer, to scroll; esc back"),
        Binding("o", "next_open", "next open", show=False, id="review.next", tooltip="The next one not judged yet"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._order: Order | None = None
        self._items: list[Item] = []
        self._said: dict[str, Said] = {}
        self._reviews: list[Judgement] = []
        self._agreements: dict[tuple[str, str], float | None] = {}
        self._problem = ""
        self._started = False

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Grid, Sheet)

    def content(self) -> ComposeResult:
        with Panel(title="Sample", id="sample", classes="-bare"):
            yield Grid(view.ITEMS, empty=self._nothing)
        with Panel(title="Answer", id="answer"):
            yield Sheet(self._answer)
        with Panel(title="So far", id="standing"):
            yield Canvas(self._standing, id="standing-lines")

    # -- reading ----------------------------------------------------------------------------------------------------
    def show(self, board: Board) -> None:
        if board.attached and board.lost is None and not self._started:
            self._started = True
            self._begin()

    @work(exclusive=True, group="sample", exit_on_error=False)
    async def _begin(self) -> None:
        """The newest run's answers: there is something to judge at once."""
        try:
            runs = await self.lathe.link.bench.eval_runs(20)
            newest = next((run for run in runs if run.state == "done"), None)
            if newest is not None:
                await self._take(Order(run=newest))
            else:
                self._problem = "No finished run yet.\n[  goes to Evals: r runs a suite"
                await self._read_reviews()
        except LatheError as error:
            self._problem = error.message
        self._arrange()

    async def _take(self, order: Order) -> None:
        self._order, self._items = order, []
        try:
            self._items = await draw(self.lathe.link.bench, order)
            self._problem = ""
        except LatheError as error:
            self._problem = error.message
        await self._read_reviews()

    async def _read_reviews(self) -> None:
        self._reviews = await self.lathe.link.bench.reviews()
        self._said = said_of(self._reviews, self._order.source if self._order else "")
        # Agreement needs two reviewers, and NumPy; most desks have one.
        several = len({review.source for review in self._reviews}) > 1
        self._agreements = exports.agreement(self._reviews) if several else {}

    # -- drawing ----------------------------------------------------------------------------------------------------
    def _arrange(self) -> None:
        self.query_one(Grid).show(view.item_rows(self._items, self._said))
        order, panel = self._order, self.query_one("#sample", Panel)
        names = ""
        if order is not None:
            names = (
                f"{order.run.id} and {order.other.id}, blind" if order.other else f"{order.run.id} {order.run.model}"
            )
        done = sum(bool(self._said.get(item.subject, Said()).label) for item in self._items)
        panel.entitle("Sample", f"{done} of {len(self._items)} judged" if self._items else "", names)
        panel.footnote(f"by {order.by}" if order else "", self.parts_line())
        self._show_item()
        self.query_one("#standing-lines", Canvas).redraw()
        self.show_hints()

    def _show_item(self) -> None:
        item = self.item
        self.query_one("#answer", Panel).entitle("Answers A and B" if item and item.pair else "Answer",
                                                 item.label if item else "")  # fmt: skip
        self.query_one(Sheet).remake()

    @property
    def item(self) -> Item | None:
        """What lies before the reviewer."""
        key = self.query_one(Grid).cursor
        return next((item for item in self._items if item.subject == key), None)

    def _nothing(self) -> str:
        return self._problem or "Reading the newest run..."

    def _answer(self, width: int) -> list[Line]:
        item = self.item
        return view.item_lines(item, self._said.get(item.subject, Said()), width) if item else []

    def _standing(self, width: int, height: int) -> list[Line]:
        ratings = exports.elo(self._reviews)
        return view.standing_lines(self._reviews, ratings, self._agreements, width, self.lathe.glyphs)

    @on(Grid.Moved)
    def _moved(self) -> None:
        self._show_item()
        self.show_hints()

    # -- judging ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("judge", "edit", "explain", "tag")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Pairs and single answers have judgements of their own."""
        if not super().check_action(action, parameters):
            return False
        item = self.item if self.is_mounted and self.query(Grid) else None
        pair = item is not None and item.pair
        word = parameters[0] if parameters else ""
        if action == "edit" or word in ("accept", "reject"):
            return not pair
        return pair if word in ("A", "B", "tie") else True

    def action_judge(self, label: str) -> None:
        """Keep a judgement and go on."""
        item = self.item
        if item is not None:
            self._keep(item, label)

    def action_edit(self) -> None:
        """The answer as it should have been."""
        item = self.item
        if item is None:
            return
        before = self._said.get(item.subject, Said()).edited

        def take(text: str | None) -> None:
            if text is not None and text.strip() and text != item.judged.answer:
                self._keep(item, "edit", text)

        self.app.push_screen(Write("The answer as it should have been", before or item.judged.answer), take)

    def _keep(self, item: Item, label: str, edited: str | None = None) -> None:
        if self._order is None:
            return
        said = self._said.get(item.subject, Said())
        judgement = review_of(item, label, self._order.source, said, edited)
        self.lathe.do(
            lambda bench: bench.review(judgement), lambda kept: self._kept(kept, item, move=True),
            command="" if item.pair else self._command(item, label, edited), what=item.label,
        )  # fmt: skip

    def _command(self, item: Item, label: str, edited: str | None) -> str:
        assert self._order is not None
        words = ["lathe", "eval", "review", self._order.run.id, item.label, label, "--by", self._order.by]
        return shlex.join([*words, *(["--edited", edited] if edited else [])])

    def _kept(self, review: Judgement, item: Item, *, move: bool) -> None:
        self._reviews.append(review)
        self._said = said_of(self._reviews, review.source)
        at = self.item
        self._arrange()
        # A pair stays where it is when the judgement reveals its models for the first time.
        if move and at is not None and at.subject == item.subject and not item.pair:
            self.action_next_open()

    def action_next_open(self) -> None:
        """The next one not judged yet, after the cursor, else from the start."""
        keys = [item.subject for item in self._items]
        at = keys.index(self.item.subject) if self.item else -1
        order = [*keys[at + 1 :], *keys[: at + 1]]
        following = next((key for key in order if not self._said.get(key, Said()).label), None)
        if following is None:
            self.lathe.notify("All of this sample is judged. n draws another, E writes what came out.")
        else:
            self.query_one(Grid).select(following)

    def action_explain(self) -> None:
        """Why; kept with the judgement."""
        item = self.item
        if item is None or self._order is None:
            return
        said, source = self._said.get(item.subject, Said()), self._order.source
        if not said.label:
            self.lathe.notify("Judge it first; then say why.", severity="warning")
            return

        def take(text: str | None) -> None:
            if text is not None and text.strip() != said.explanation:
                told = Said(label=said.label, explanation=text.strip(), edited=said.edited)
                again = review_of(item, item.stored(said.label), source, told, said.edited)
                self.lathe.do(lambda bench: bench.review(again), lambda kept: self._kept(kept, item, move=False))

        self.app.push_screen(Write("Why?", said.explanation, "Kept with the judgement."), take)

    def action_tag(self) -> None:
        """Words that sort the answer."""
        item = self.item
        if item is None or self._order is None:
            return
        source = self._order.source

        def take(text: str | None) -> None:
            if text is not None:
                try:
                    review = tags_of(item, text.split(), source)
                except UsageError as error:
                    self.lathe.notify(error.message, severity="warning")
                    return
                self.lathe.do(lambda bench: bench.review(review), lambda kept: self._kept(kept, item, move=False))

        now = " ".join(self._said.get(item.subject, Said()).tags)
        self.app.push_screen(Ask("Tags", "Words, separated by blanks", now), take)

    def action_read(self) -> None:
        """Into the answer, to scroll."""
        self.query_one(Sheet).focus()

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        self.action_read()

    def action_back(self) -> None:
        if self.focused is self.query_one(Sheet) and self.maximized is None:
            self.query_one(Grid).focus()
        else:
            super().action_back()

    # -- samples and exports ----------------------------------------------------------------------------------------
    def action_sample(self) -> None:
        """Which run, perhaps which other, and how many."""

        def choose(runs: list[EvalRun]) -> None:
            done = [run for run in runs if run.state == "done"]
            choices = [Choice(run.id, f"{run.id}  {run.model}", run.suite) for run in done]
            current = self._order.run.id if self._order else ""
            self.app.push_screen(
                Choose("Judge answers of which run?", choices, current=current, empty="No finished run yet."),
                lambda key: self._ask_other(done, next(run for run in done if run.id == key)) if key else None,
            )

        self.lathe.do(lambda bench: bench.eval_runs(200), choose, what="eval runs")

    def _ask_other(self, runs: Sequence[EvalRun], first: EvalRun) -> None:
        others = [run for run in runs if run.suite == first.suite and run.id != first.id]
        choices = [Choice("", "each answer by itself", "accept, reject, edit")]
        choices += [Choice(run.id, f"blind against {run.id}  {run.model}", "A, B, tie") for run in others]

        def take(key: str | None) -> None:
            if key is not None:
                self._ask_number(first, next((run for run in others if run.id == key), None))

        self.app.push_screen(Choose(f"{first.id}: alone or against another run?", choices), take)

    def _ask_number(self, first: EvalRun, other: EvalRun | None) -> None:
        now = self._order
        form = Form(
            "Draw a sample",
            (
                Field("number", "answers", str(now.number if now else 30), check=number(1, 1000, whole=True)),
                Field("seed", "seed", "0", hint="another seed draws others", check=number(0, 2**32, whole=True)),
                Field("by", "reviewer", now.by if now else "me", check=lambda t: "" if t.strip() else "who judges?"),
            ),
            yes="Draw",
        )

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._draw(Order(run=first, other=other, number=int(values["number"]), seed=int(values["seed"]),
                                 by=values["by"].strip()))  # fmt: skip

        self.app.push_screen(form, take)

    @work(exclusive=True, group="sample", exit_on_error=False)
    async def _draw(self, order: Order) -> None:
        try:
            await self._take(order)
        except LatheError as error:
            self.lathe.report(describe(error), what="sample")
        self._arrange()
        self.query_one(Grid).select(self._items[0].subject if self._items else None)

    def action_export(self) -> None:
        """Examples for fine-tuning, or the judgements themselves."""
        choices = [Choice(name, name, about) for name, (about, _) in STYLES.items()]
        self.app.push_screen(Choose("Write what?", choices), lambda key: self._export_as(key) if key else None)

    def _export_as(self, style: str) -> None:
        text = STYLES[style][1](self._reviews)
        if not text:
            self.lathe.notify(f"No judgement makes a line of {style} yet.", severity="warning")
            return
        folder = self.lathe.state_dir
        name = f"reviews-{style}.jsonl"

        def take(path: str | None) -> None:
            if path:
                self.lathe.write(path, text)
                self.lathe.did = f"lathe eval reviews --to {style} > {shlex.quote(str(Path(path)))}"

        label = f"File, {formats.many(text.count(chr(10)), 'line')}"
        self.app.push_screen(Ask(f"Write {style}", label, str(folder / name) if folder else name), take)

    def copy_text(self) -> tuple[str, str]:
        item = self.item
        return (item.shown()[0], "Answer") if item else ("", "")

    def command(self) -> str:
        return self.place.command
