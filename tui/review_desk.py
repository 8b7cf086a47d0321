"""Answers on a person's desk: drawn from one run, or pairwise and blind from two, with what was said of each.

Invariant: which answer of a pair is shown as A follows from the pair alone, so nobody's order tells the model, and two
reviewers see the same; what is stored names the runs, the first one as A.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.evals.results import EvalRun, Record
from lathe.engine.evals.reviews import TAG, Judged, judgement, of_record, tagged
from lathe.engine.workbench import Workbench
from lathe.store.evals import Review

PAGE = 500
MOST = 20_000
"""Cases read of one run to draw from."""
KINDS = ("generate", "rag", "choice")
"""Kinds whose answers can be judged, the first that a run has."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to draw."""

    run: EvalRun
    other: EvalRun | None = None
    """Draw pairs: this run's answers against the first's."""
    number: int = 30
    seed: int = 0
    by: str = "me"

    @property
    def source(self) -> str:
        """Whose judgement it is."""
        return f"human {self.by}"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or two, to be judged."""

    subject: str
    label: str
    judged: Judged
    expected: str = ""

    @property
    def pair(self) -> bool:
        """Two answers."""
        return self.judged.other is not None

    @property
    def swapped(self) -> bool:
        """The second run's answer is shown as A."""
        return self.pair and hashlib.sha256(self.subject.encode()).digest()[0] % 2 == 1

    def shown(self) -> tuple[str, str]:
        """The answers as A and B."""
        first, second = self.judged.answer, self.judged.other or ""
        return (second, first) if self.swapped else (first, second)

    def models(self) -> tuple[str, str]:
        """The models behind A and B."""
        first, second = self.judged.model, self.judged.other_model
        return (second, first) if self.swapped else (first, second)

    def stored(self, label: str) -> str:
        """A label as it is shown to one as it is stored, and back."""
        return {"A": "B", "B": "A"}.get(label, label) if self.swapped else label


async def draw(bench: Workbench, order: Order) -> list[Item]:
    """A drawn sample of answers.

    Raises:
        UsageError: there is nothing that a person could judge.
    """
    records = await _records(bench, order.run)
    if order.other is not None:
        from lathe.engine.evals.duel import pairs, subject

        chosen, _ = pairs(records, await _records(bench, order.other), order.number, order.seed)
        found = []
        for before, after in chosen:
            judged = Judged(
                prompt=before.prompt, answer=before.answer(), model=order.run.model, other=after.answer(),
                other_model=order.other.model,
            )  # fmt: skip
            about = subject(order.run.id, order.other.id, after.label)
            found.append(Item(subject=about, label=after.label, judged=judged, expected=_expected(after)))
        if not found:
            raise UsageError(f"{order.run.id} and {order.other.id} answered alike", hint="nothing is left to prefer")
        return found
    kinds = [[record for record in records if record.kind == kind and record.failure is None] for kind in KINDS]
    answers = next((some for some in kinds if some), [])
    if not answers:
        raise UsageError(f"{order.run.id} has no answer that a person could judge")
    drawn = random.Random(order.seed).sample(answers, min(order.number, len(answers)))
    items = []
    for record in drawn:
        about, judged = of_record(order.run.id, order.run.model, record)
        items.append(Item(subject=about, label=record.label, judged=judged, expected=_expected(record)))
    return items


async def _records(bench: Workbench, run: EvalRun) -> list[Record]:
    records: list[Record] = []
    while len(records) < MOST:
        page = await bench.eval_records(run.id, len(records), PAGE)
        records += page
        if len(page) < PAGE:
            break
    return records


def _expected(record: Record) -> str:
    return " | ".join(record.targets or tuple(record.continuations[index] for index in record.gold))


# -- what was said ---------------------------------------------------------------------------------------------------
class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One reviewer's last word on an item."""

    label: str = ""
    """As stored; empty: nothing yet."""
    explanation: str = ""
    tags: tuple[str, ...] = ()
    edited: str | None = None


def said_of(reviews: Iterable[Review], source: str) -> dict[str, Said]:
    """Subject -> what this reviewer said last."""
    found: dict[str, Said] = {}
    for review in reviews:
        if review.source != source:
            continue
        before = found.get(review.subject, Said())
        if review.name == TAG:
            found[review.subject] = msgspec.structs.replace(before, tags=tuple(review.label.split()))
        else:
            edited = msgspec.json.decode(review.body, type=Judged).edited
            found[review.subject] = msgspec.structs.replace(
                before, label=review.label, explanation=review.explanation, edited=edited
            )
    return found


def review_of(item: Item, label: str, source: str, said: Said, edited: str | None = None) -> Review:
    """A judgement to keep; `label` as it is shown."""
    name = "preference" if item.pair else "quality"
    judged = msgspec.structs.replace(item.judged, edited=edited)
    return judgement(item.subject, item.stored(label), judged, source, name=name, explanation=said.explanation)


def tags_of(item: Item, words: Sequence[str], source: str) -> Review:
    """Tags to keep; they replace those before."""
    return tagged(item.subject, words, item.judged, source)
