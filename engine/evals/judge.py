"""A local model as the judge: verdicts read from likelihoods, pairs asked in both orders, and a calibration report.

The judge is never asked to write: the log-likelihoods of the two possible verdicts are compared, so nothing is parsed
and a verdict comes with a degree. Within the abstain zone there is none. Invariant: a judge's word is worth what the
calibration against people says (agreement, kappa, position and length bias), and the report says it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.evals.results import Interval
from lathe.engine.evals.statistics import kappa, wilson
from lathe.engine.generation import Message, ScoreRequest
from lathe.engine.workbench import Workbench

ABSTAIN = 0.5
"""Nats: a verdict's log-odds must be larger, or there is none."""
MAX_CHARS = 16_000
_CLIENT = "eval judge"

Label = Literal["A", "B", "tie"]

_PAIR = """\
Compare two answers to the same question. {rubric}

Question:
{question}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with one letter, A or B."""
_RUBRIC = """\
Judge an answer by this rule: {rubric}

Question:
{question}

Answer:
{answer}

Does the answer satisfy the rule? Reply with one word, Yes or No."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge finds."""

    label: str
    """`A`, `B` or `tie` of a pair; `pass`, `fail` or `abstain` of a rule."""
    log_odds: float
    """Of the first answer over the second, or of yes over no; for a pair the mean of both orders."""
    swap: float = 0.0
    """Of a pair: how much the first place was worth, in nats."""
    lengths: tuple[int, int] = (0, 0)
    """Characters of both answers."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A judge against people, over the same pairs."""

    n: int
    decided: int
    """Pairs on which the judge did not abstain."""
    agreement: Interval
    """Share of decided pairs that are judged as people judged them."""
    kappa: float | None
    position_bias: float
    """Mean worth of the first place in nats; 0 is none."""
    flipped: int
    """Pairs whose verdict depended on the order alone."""
    length_bias: float | None
    """Share of decided pairs where the longer answer won, minus the same share of people; None: lengths are equal."""

    def report(self) -> str:
        """For people, in Markdown."""
        share, shown = self.agreement, "-" if self.kappa is None else f"{self.kappa:.2f}"
        length = "-" if self.length_bias is None else f"{self.length_bias:+.0%}"
        agreed = f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]" if self.decided else "-"
        return (
            "| pairs | decided | agreement [95 %] | kappa | position bias, nats | flipped by order | length bias |\n"
            "|---:|---:|---:|---:|---:|---:|---:|\n"
            f"| {self.n} | {self.decided} | {agreed} | {shown} | "
            f"{self.position_bias:+.2f} | {self.flipped} | {length} |\n"
        )


class Judge:
    """One model that judges."""

    def __init__(self, workbench: Workbench, model: str, *, rubric: str = "", abstain: float = ABSTAIN) -> None:
        if not (math.isfinite(abstain) and abstain >= 0):
            raise UsageError(f"the abstain zone is a number of nats from 0 on, not {abstain!r}")
        self._workbench = workbench
        self._model = model
        self._rubric = rubric
        self._abstain = abstain

    async def pair(self, question: str, first: str, second: str) -> Verdict:
        """Which answer is better, asked in both orders; a verdict that only the order makes is a tie."""
        ahead = await self._odds(self._paired(question, first, second), ("A", "B"))
        behind = await self._odds(self._paired(question, second, first), ("A", "B"))
        odds, swap = (ahead - behind) / 2, (ahead + behind) / 2
        label: Label = "tie"
        if abs(odds) > self._abstain and ahead * behind < 0:
            label = "A" if odds > 0 else "B"
        return Verdict(label=label, log_odds=odds, swap=swap, lengths=(len(first), len(second)))

    async def rule(self, question: str, answer: str) -> Verdict:
        """Whether an answer satisfies the rubric."""
        if not self._rubric:
            raise UsageError("a rule needs a rubric")
        text = _RUBRIC.format(rubric=self._rubric, question=_cut(question), answer=_cut(answer))
        odds = await self._odds(text, ("Yes", "No"))
        label = "abstain" if abs(odds) <= self._abstain else "pass" if odds > 0 else "fail"
        return Verdict(label=label, log_odds=odds, lengths=(len(answer), 0))

    def _paired(self, question: str, first: str, second: str) -> str:
        return _PAIR.format(
            rubric=self._rubric, question=_cut(question), first=_cut(first), second=_cut(second)
        ).strip()

    async def _odds(self, text: str, words: tuple[str, str]) -> float:
        """Log-likelihood of the first word over the second, as the judge's next words."""
        prompt = await self._workbench.render(self._model, [Message("user", text)])
        request = ScoreRequest(model=self._model, context=prompt.tokens, continuations=words, client=_CLIENT)
        yes, no = await self._workbench.score(request)
        return yes.logprob - no.logprob


def calibrate(verdicts: Sequence[Verdict], people: Sequence[str]) -> Calibration:
    """Compare a judge's verdicts on pairs with people's labels (`A`, `B`, `tie`).

    Raises:
        UsageError: there are not as many labels as verdicts.
    """
    if len(verdicts) != len(people) or not verdicts:
        raise UsageError(f"{len(verdicts)} verdicts and {len(people)} labels cannot be compared")
    both = [(verdict, label) for verdict, label in zip(verdicts, people, strict=True) if verdict.label != "tie"]
    agreed = sum(verdict.label == label for verdict, label in both)
    unequal = [
        (verdict, label) for verdict, label in both if verdict.lengths[0] != verdict.lengths[1] and label != "tie"
    ]
    longer = [
        ("A" if verdict.lengths[0] > verdict.lengths[1] else "B", verdict.label, label) for verdict, label in unequal
    ]
    bias = None
    if longer:
        bias = (sum(long == said for long, said, _ in longer) - sum(long == told for long, _, told in longer)) / len(
            longer
        )
    return Calibration(
        n=len(verdicts), decided=len(both), agreement=wilson(agreed, len(both)),
        kappa=kappa([verdict.label for verdict in verdicts], list(people)),
        position_bias=math.fsum(verdict.swap for verdict in verdicts) / len(verdicts),
        flipped=sum(abs(verdict.swap) > abs(verdict.log_odds) for verdict in verdicts), length_bias=bias,
    )  # fmt: skip


def _cut(text: str) -> str:
    """The text, shortened in the middle where it would crowd out the rest."""
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"
