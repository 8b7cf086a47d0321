"""What people judged of answers: export for fine-tuning, Elo of pairs, agreement between reviewers.

A review of one answer has the label `accept`, `reject` or `edit`; of a blind pair `A`, `B` or `tie`. Invariant: an
export needs no run, for each review carries the prompt and the answers as they were judged.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.evals.results import Record
from lathe.store.evals import Review

SINGLE = ("accept", "reject", "edit")
PAIR = ("A", "B", "tie")
TAG = "tag"
"""Name of a review whose label is words that sort answers; it says nothing of their quality."""
_START, _STEP = 1000.0, 16.0
_TURN = re.compile(r"^\[(system|user|assistant|tool)\] ", re.MULTILINE)
"""How records write the turns of a conversation."""


class Judged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lay before the reviewer; the body of a `Review`."""

    prompt: str
    answer: str
    model: str = ""
    other: str | None = None
    """The second answer of a pair."""
    other_model: str = ""
    edited: str | None = None
    """The answer as it should have been."""
    log_odds: float | None = None
    """Of a judge: of the first answer over the second, in nats."""
    swap: float = 0.0
    """Of a judge: how much the first place was worth, in nats."""


def judgement(
    subject: str, label: str, judged: Judged, source: str, *, name: str = "quality", explanation: str = ""
) -> Review:
    """A checked review.

    Raises:
        UsageError: the label does not fit what was judged.
    """
    allowed = SINGLE if judged.other is None else PAIR
    if label not in allowed:
        raise UsageError(f"{label!r} is no label here", hint=f"one of {', '.join(allowed)}")
    if (label == "edit") != (judged.edited is not None):
        raise UsageError("an edit needs the edited text, and only an edit has one")
    score = {"accept": 1.0, "reject": 0.0, "A": 1.0, "B": 0.0, "tie": 0.5}.get(label)
    return Review(
        subject=subject, name=name, label=label, score=score, source=source, explanation=explanation, at=0.0,
        body=msgspec.json.encode(judged).decode(),
    )  # fmt: skip


def tagged(subject: str, words: Sequence[str], judged: Judged, source: str) -> Review:
    """Words that sort an answer; they replace those the reviewer gave before.

    Raises:
        UsageError: a word is none.
    """
    for word in words:
        if not word.isprintable() or not 0 < len(word) <= 64:
            raise UsageError(f"{word!r} is no tag", hint="a word of at most 64 letters")
    body = msgspec.json.encode(judged).decode()
    return Review(subject=subject, name=TAG, label=" ".join(dict.fromkeys(words)), source=source, at=0.0, body=body)


def of_record(run: str, model: str, record: Record, edited: str | None = None) -> tuple[str, Judged]:
    """Subject and body for a review of a recorded answer."""
    judged = Judged(prompt=record.prompt, answer=record.answer(), model=model, edited=edited)
    return f"{run}/{record.label}", judged


def latest(reviews: Iterable[Review]) -> list[tuple[Review, Judged]]:
    """The last word of each reviewer on each subject."""
    last = {(review.subject, review.name, review.source): review for review in reviews}
    return [(review, msgspec.json.decode(review.body, type=Judged)) for review in last.values()]


def opinions(reviews: Iterable[Review]) -> list[tuple[Review, Judged]]:
    """The last word of each reviewer on each subject's quality: tags are left out."""
    return latest(review for review in reviews if review.name != TAG)


def sft(reviews: Iterable[Review]) -> str:
    """Accepted and edited answers as chat examples, JSON lines."""
    lines = []
    for review, judged in opinions(reviews):
        answer = {"accept": judged.answer, "edit": judged.edited}.get(review.label)
        if answer and judged.prompt and judged.other is None:  # feedback over HTTP may come without the texts
            lines.append({"messages": [*_turns(judged.prompt), _turn("assistant", answer)]})
    return _lines(lines)


def dpo(reviews: Iterable[Review]) -> str:
    """Preferences as prompt, chosen and rejected: of pairs, and of edits over what was edited; JSON lines."""
    lines = []
    for review, judged in opinions(reviews):
        ways = {
            "A": (judged.answer, judged.other), "B": (judged.other, judged.answer),
            "edit": (judged.edited, judged.answer),
        }  # fmt: skip
        chosen, rejected = ways.get(review.label, (None, None))
        if judged.prompt and chosen and rejected is not None and chosen != rejected:
            turns = _turns(judged.prompt)
            asked = turns[0]["content"] if len(turns) == 1 else judged.prompt
            lines.append({"prompt": asked, "chosen": chosen, "rejected": rejected})
    return _lines(lines)


def plain(reviews: Iterable[Review]) -> str:
    """Every review as {name, label, score, source, explanation}, JSON lines."""
    fields = ("subject", "name", "label", "score", "source", "explanation")
    return _lines([{field: getattr(review, field) for field in fields} for review in reviews])


def elo(reviews: Iterable[Review]) -> dict[str, float]:
    """Ratings of models from pairs, in the order they were judged; 1000 to begin with."""
    ratings: dict[str, float] = defaultdict(lambda: _START)
    for review, judged in sorted(opinions(reviews), key=lambda pair: pair[0].number):
        if judged.other is None or review.score is None:
            continue
        first, second = judged.model, judged.other_model
        expected = 1 / (1 + 10 ** ((ratings[second] - ratings[first]) / 400))
        moved = _STEP * (review.score - expected)
        ratings[first] += moved
        ratings[second] -= moved
    return dict(ratings)


def agreement(reviews: Iterable[Review]) -> dict[tuple[str, str], float | None]:
    """Cohen's kappa of each two reviewers over what both judged."""
    from lathe.engine.evals.statistics import kappa

    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for review, _ in opinions(reviews):
        labels[review.source][f"{review.name} {review.subject}"] = review.label
    found: dict[tuple[str, str], float | None] = {}
    sources: Sequence[str] = sorted(labels)
    for index, first in enumerate(sources):
        for second in sources[index + 1 :]:
            both = sorted(labels[first].keys() & labels[second].keys())
            if both:
                found[first, second] = kappa([labels[first][s] for s in both], [labels[second][s] for s in both])
    return found


def _turns(prompt: str) -> list[dict[str, str]]:
    """The turns of a recorded conversation; a text that is none is the user's."""
    starts = list(_TURN.finditer(prompt))
    if not starts or starts[0].start() > 0:
        return [_turn("user", prompt)]
    ends = [*(start.start() for start in starts[1:]), len(prompt)]
    return [
        _turn(
            start.group(1), prompt[start.end() : end].removesuffix("\n") if end < len(prompt) else prompt[start.end() :]
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
