"""Two runs answer by answer before a judge: which answers does it prefer, and by how much is that more than a coin?

Every verdict is kept as a review (`judge MODEL` as its source), so that people's reviews of the same pairs calibrate
the judge. Invariant: an answer never competes with the same answer; such pairs are ties that nobody is asked about.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.evals.judge import Calibration, Judge, Verdict, calibrate
from lathe.engine.evals.results import EvalRun, Interval, Record
from lathe.engine.evals.reviews import Judged, judgement, latest
from lathe.engine.evals.statistics import wilson
from lathe.store.evals import Review

NAME = "preference"
CONCURRENCY = 4
Keep = Callable[[Review], Awaitable[Review]]
Report = Callable[[int, int], Awaitable[None]]


class Duel(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it, seen from the second run."""

    won: int
    lost: int
    tied: int
    """Within the abstain zone, or decided by the order alone."""
    identical: int

    @property
    def preferred(self) -> Interval:
        """Share of decided pairs that the second run won; 0.5 inside the interval: no preference is shown."""
        return wilson(self.won, self.won + self.lost)


def subject(base: str, other: str, label: str) -> str:
    """What a review of a pair is about."""
    return f"{base}|{other}/{label}"


def pairs(
    before: Sequence[Record], after: Sequence[Record], limit: int | None, seed: int
) -> tuple[list[tuple[Record, Record]], int]:
    """Generated answers to the same questions that differ, a drawn sample of them; and how many are identical.

    Raises:
        UsageError: the runs share no generated answer.
    """
    earlier = {record.key: record for record in before if record.failure is None and record.response.text}
    shared = [
        (earlier[record.key], record) for record in after
        if record.key in earlier and record.failure is None and record.response.text
        and earlier[record.key].item_sha256 == record.item_sha256
    ]  # fmt: skip
    if not shared:
        raise UsageError("the runs share no generated answer", hint="a judge compares answers of kind generate or rag")
    differing = [pair for pair in shared if pair[0].response.text.strip() != pair[1].response.text.strip()]
    identical = len(shared) - len(differing)
    if limit is not None and len(differing) > limit:
        differing = random.Random(seed).sample(differing, limit)
    return differing, identical


async def duel(
    judge: Judge, name: str, base: EvalRun, before: Sequence[Record], other: EvalRun, after: Sequence[Record],
    keep: Keep, report: Report, *, limit: int | None = None, seed: int = 0,
) -> Duel:  # fmt: skip
    """Ask the judge about every pair, both orders, and keep its verdicts."""
    chosen, identical = pairs(before, after, limit, seed)
    room = asyncio.Semaphore(CONCURRENCY)
    labels: list[str] = []

    async def one(first: Record, second: Record) -> None:
        async with room:
            verdict = await judge.pair(first.prompt, first.response.text, second.response.text)
        judged = Judged(
            prompt=first.prompt, answer=first.response.text, model=base.model, other=second.response.text,
            other_model=other.model, log_odds=verdict.log_odds, swap=verdict.swap,
        )  # fmt: skip
        about = subject(base.id, other.id, second.label)
        odds = f"log-odds {verdict.log_odds:+.2f}, the first place is worth {verdict.swap:+.2f}"
        await keep(judgement(about, verdict.label, judged, f"judge {name}", name=NAME, explanation=odds))
        labels.append(verdict.label)
        await report(len(labels), len(chosen))

    async with asyncio.TaskGroup() as group:
        for first, second in chosen:
            group.create_task(one(first, second))
    return Duel(won=labels.count("B"), lost=labels.count("A"), tied=labels.count("tie"), identical=identical)


def calibration(reviews: Sequence[Review], judge: str, person: str | None = None) -> Calibration:
    """A judge's kept verdicts against people's labels on the same pairs.

    Args:
        reviews: all of them.
        judge: the model's name, as in `judge MODEL`.
        person: one reviewer; None: the last word of any person.

    Raises:
        UsageError: nobody judged the same pairs.
    """
    known = latest(reviews)
    verdicts = {
        review.subject: Verdict(
            label=review.label, log_odds=judged.log_odds, swap=judged.swap,
            lengths=(len(judged.answer), len(judged.other or "")),
        )
        for review, judged in known
        if review.source == f"judge {judge}" and judged.log_odds is not None and judged.other is not None
    }  # fmt: skip
    source = f"human {person}" if person else "human "
    people = {
        review.subject: review.label for review, judged in sorted(known, key=lambda pair: pair[0].number)
        if judged.other is not None and (review.source == source if person else review.source.startswith(source))
    }  # fmt: skip
    both = sorted(verdicts.keys() & people.keys())
    if not both:
        raise UsageError(
            f"no pair was judged by {judge!r} and by {person or 'a person'}, too",
            hint="`lathe eval judge` asks the model; the Review screen and `lathe eval prefer` ask you",
        )
    return calibrate([verdicts[one] for one in both], [people[one] for one in both])
