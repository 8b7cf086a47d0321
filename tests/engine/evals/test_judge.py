"""A judge reads likelihoods, asks both orders, abstains, and is held against people."""

from __future__ import annotations

import re

import pytest
from lathe.engine.errors import UsageError
from lathe.engine.evals.judge import Judge, Verdict, calibrate
from lathe.engine.generation import Message, RenderedPrompt, Score, ScoreRequest


class Opinionated:
    """Prefers an answer by a rule, and the first place by `bias` nats."""

    def __init__(self, *, bias: float = 0.0, strength: float = 3.0, prefers: str = "good") -> None:
        self.bias, self.strength, self.prefers = bias, strength, prefers
        self.texts: list[str] = []

    async def render(self, model: str, messages: list[Message], tools: str | None = None) -> RenderedPrompt:
        self.texts.append(messages[0].content)
        return RenderedPrompt(messages[0].content, (len(self.texts),), "t")

    async def score(self, request: ScoreRequest) -> list[Score]:
        text = self.texts[-1]
        if request.continuations == ("Yes", "No"):
            odds = self.strength if self.prefers in text.split("Answer:")[1] else -self.strength
        else:
            found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich", text, re.DOTALL)
            assert found is not None
            odds = self.bias + self.strength * ((self.prefers in found[1]) - (self.prefers in found[2]))
        return [Score(odds - 5, 1, odds > 0), Score(-5.0, 1, odds < 0)]


def _judge(**character: float) -> Judge:
    return Judge(Opinionated(**character), "m", rubric="Correct?")  # type: ignore[arg-type]


async def test_the_better_answer_wins_in_either_place() -> None:
    judge = _judge(bias=1.0)
    first = await judge.pair("q", "good", "poor")
    second = await judge.pair("q", "poor", "good")
    assert (first.label, second.label) == ("A", "B")
    assert first.log_odds == -second.log_odds == pytest.approx(3.0)
    assert first.swap == second.swap == pytest.approx(1.0)


async def test_what_only_the_order_decides_is_a_tie_and_so_is_the_abstain_zone() -> None:
    assert (await _judge(bias=9.0).pair("q", "good", "poor")).label == "tie"
    assert (await _judge(strength=0.4).pair("q", "good", "poor")).label == "tie"
    assert (await _judge().pair("q", "same", "same")).label == "tie"


async def test_rules_pass_fail_or_abstain() -> None:
    assert (await _judge().rule("q", "a good one")).label == "pass"
    assert (await _judge().rule("q", "bad")).label == "fail"
    assert (await _judge(strength=0.1).rule("q", "good")).label == "abstain"
    with pytest.raises(UsageError, match="needs a rubric"):
        await Judge(Opinionated(), "m").rule("q", "a")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="abstain zone"):
        Judge(Opinionated(), "m", abstain=float("nan"))  # type: ignore[arg-type]


async def test_long_answers_are_cut_in_the_middle() -> None:
    model = Opinionated()
    await Judge(model, "m").pair("q", "x" * 50_000, "good")  # type: ignore[arg-type]
    assert len(model.texts[0]) < 20_000


def test_calibration_tells_agreement_and_biases() -> None:
    def verdict(label: str, odds: float, swap: float, lengths: tuple[int, int]) -> Verdict:
        return Verdict(label=label, log_odds=odds, swap=swap, lengths=lengths)

    verdicts = [
        verdict("A", 2, 0.5, (9, 1)), verdict("A", 2, 0.5, (9, 1)), verdict("B", -2, 0.5, (1, 9)),
        verdict("B", -2, 0.5, (1, 9)), verdict("tie", 0.1, 0.5, (5, 5)),
    ]  # fmt: skip
    found = calibrate(verdicts, ["A", "B", "B", "A", "tie"])
    assert (found.n, found.decided, found.flipped) == (5, 4, 1)
    assert found.agreement.value == 0.5
    assert found.kappa == pytest.approx((3 / 5 - 9 / 25) / (1 - 9 / 25))
    assert found.position_bias == pytest.approx(0.5)
    assert found.length_bias == pytest.approx(1.0 - 0.5)
    assert "| 5 | 4 | 50% [" in found.report()
    with pytest.raises(UsageError, match="cannot be compared"):
        calibrate(verdicts, ["A"])
