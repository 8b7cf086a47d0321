"""Two runs before a judge: verdicts are kept, identical answers are nobody's business, people calibrate it."""

from __future__ import annotations

import msgspec
import pytest
from lathe.engine.errors import UsageError
from lathe.engine.evals.duel import NAME, calibration, duel, pairs, subject
from lathe.engine.evals.judge import Verdict
from lathe.engine.evals.results import EvalRun, Record
from lathe.engine.evals.reviews import Judged, judgement, latest
from lathe.engine.evals.values import Response
from lathe.store.evals import Review

BASE, OTHER = EvalRun(id="e-1", suite="s", model="old"), EvalRun(id="e-2", suite="s", model="new")


class LongerWins:
    """Prefers the longer answer, the first place a little; answers of equal length are a tie."""

    async def pair(self, question: str, first: str, second: str) -> Verdict:
        odds = float(len(first) - len(second))
        label = "tie" if odds == 0 else "A" if odds > 0 else "B"
        return Verdict(label=label, log_odds=odds, swap=0.25, lengths=(len(first), len(second)))


def _records(*answers: str) -> list[Record]:
    return [
        Record(task="t", case=f"{number}", kind="generate", item_sha256=str(number), prompt=f"q{number}",
               response=Response(text=text))
        for number, text in enumerate(answers)
    ]  # fmt: skip


class Kept:
    """Reviews as the store numbers them."""

    def __init__(self) -> None:
        self.reviews: list[Review] = []

    async def keep(self, review: Review) -> Review:
        self.reviews.append(msgspec.structs.replace(review, number=len(self.reviews) + 1))
        return self.reviews[-1]


async def _nothing(done: int, total: int) -> None:
    pass


async def test_verdicts_are_counted_and_kept() -> None:
    kept = Kept()
    before, after = _records("aa", "bbbb", "same", "ab", "x"), _records("aaa", "b", "same", "cd", "xyz")
    found = await duel(LongerWins(), "j", BASE, before, OTHER, after, kept.keep, _nothing)  # type: ignore[arg-type]
    assert (found.won, found.lost, found.tied, found.identical) == (2, 1, 1, 1)
    assert found.preferred.value == pytest.approx(2 / 3)
    assert found.preferred.low < 0.5 < found.preferred.high
    assert {review.source for review in kept.reviews} == {"judge j"}
    by_subject = {review.subject: (review.label, judged) for review, judged in latest(kept.reviews)}
    label, judged = by_subject["e-1|e-2/t/0"]
    assert (label, judged.answer, judged.other, judged.other_model) == ("B", "aa", "aaa", "new")
    assert judged.log_odds == -1.0


async def test_a_sample_is_drawn_by_the_seed() -> None:
    before, after = _records(*"abcdefgh"), _records(*"ABCDEFGH")
    chosen, identical = pairs(before, after, 3, 1)
    assert len(chosen) == 3
    assert identical == 0
    assert pairs(before, after, 3, 1)[0] == chosen
    with pytest.raises(UsageError, match="share no generated answer"):
        pairs(before, [msgspec.structs.replace(record, item_sha256="other") for record in after], None, 0)


async def test_people_calibrate_the_judge() -> None:
    kept = Kept()
    before, after = _records("aa", "bbbb", "cc"), _records("aaa", "b", "cccc")
    await duel(LongerWins(), "j", BASE, before, OTHER, after, kept.keep, _nothing)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no pair was judged"):
        calibration(kept.reviews, "j")
    for case, label in (("0", "B"), ("1", "B"), ("2", "B")):
        judged = Judged(prompt="q", answer="x", other="y")
        about = subject("e-1", "e-2", f"t/{case}")
        await kept.keep(judgement(about, label, judged, "human ada", name=NAME))
    found = calibration(kept.reviews, "j", "ada")
    assert (found.n, found.decided) == (3, 3)
    assert found.agreement.value == pytest.approx(2 / 3)
    assert found.position_bias == pytest.approx(0.25)
    assert found.length_bias == pytest.approx(3 / 3 - 2 / 3)
