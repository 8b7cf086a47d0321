"""Reviews: checked labels, the last word counts, exports that need no run, Elo and agreement."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from lathe.engine.errors import UsageError
from lathe.engine.evals import reviews
from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.reviews import Judged, judgement
from lathe.store.evals import Review


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[EvalBook]:
    book = EvalBook(tmp_path / "evals.db")
    yield book
    book.close()


def _pair(subject: str, label: str, source: str = "human ann") -> Review:
    judged = Judged(prompt=f"p {subject}", answer="short", model="small", other="long", other_model="large")
    return judgement(subject, label, judged, source, name="preference")


def _single(subject: str, label: str, source: str = "human ann", edited: str | None = None) -> Review:
    return judgement(subject, label, Judged(prompt=f"p {subject}", answer="said", edited=edited), source)


async def test_exports_hold_the_last_word_of_each_reviewer(book: EvalBook) -> None:
    given = [
        _single("e-1/a", "reject"), _single("e-1/a", "accept"), _single("e-1/b", "reject"),
        _single("e-1/c", "edit", edited="better"), _pair("e-1|e-2/a", "B"), _pair("e-1|e-2/b", "tie"),
    ]  # fmt: skip
    for review in given:
        kept = await book.review(review)
        assert kept.at > 0
    kept_all = await book.reviews()
    assert len(kept_all) == 6
    assert len(await book.reviews("e-1/a")) == 2
    chats = [json.loads(line) for line in reviews.sft(kept_all).splitlines()]
    assert [chat["messages"][1]["content"] for chat in chats] == ["said", "better"]
    assert [json.loads(line) for line in reviews.dpo(kept_all).splitlines()] == [
        {"prompt": "p e-1/c", "chosen": "better", "rejected": "said"},
        {"prompt": "p e-1|e-2/a", "chosen": "long", "rejected": "short"},
    ]
    first = json.loads(reviews.plain(kept_all).splitlines()[0])
    assert first == {"subject": "e-1/a", "name": "quality", "label": "reject", "score": 0.0, "source": "human ann",
                     "explanation": ""}  # fmt: skip


def test_elo_rises_for_what_is_preferred_and_sums_to_what_was_given() -> None:
    ratings = reviews.elo([_pair(f"{i}", "B") for i in range(20)])
    assert ratings["large"] > 1100 > 900 > ratings["small"]
    assert sum(ratings.values()) == pytest.approx(2000)
    assert reviews.elo([_pair("x", "tie")]) == {"small": 1000.0, "large": 1000.0}


def test_agreement_is_kappa_over_what_both_judged() -> None:
    ann = [_single(str(i), label) for i, label in enumerate(["accept", "accept", "reject", "reject"])]
    bob = [_single(str(i), label, "human bob") for i, label in enumerate(["accept", "reject", "reject", "reject"])]
    assert reviews.agreement([*ann, *bob]) == {("human ann", "human bob"): pytest.approx(0.5)}


def test_labels_must_fit_what_was_judged() -> None:
    for wrong in (("accept", True), ("A", False), ("perfect", False)):
        with pytest.raises(UsageError, match="is no label here"):
            (_pair if wrong[1] else _single)("s", wrong[0])
    with pytest.raises(UsageError, match="an edit needs the edited text"):
        _single("s", "edit")
    with pytest.raises(UsageError, match="an edit needs"):
        _single("s", "accept", edited="x")


def test_tags_sort_and_say_nothing_of_quality() -> None:
    judged = Judged(prompt="p", answer="said", other=None)
    tag = reviews.tagged("e-1/a", ["accept", "slow", "slow"], judged, "human ann")
    assert (tag.name, tag.label, tag.score) == ("tag", "accept slow", None)
    given = [_single("e-1/a", "reject"), tag]
    assert reviews.sft(given) == ""
    assert reviews.dpo([reviews.tagged("x", ["A"], Judged(prompt="p", answer="a", other="b"), "human ann")]) == ""
    assert reviews.agreement([tag, msgspec.structs.replace(tag, source="human bob")]) == {}
    with pytest.raises(UsageError, match="no tag"):
        reviews.tagged("e-1/a", [""], judged, "human ann")


def test_examples_hold_the_turns_of_a_conversation() -> None:
    prompt = "[system] Be short.\n[user] Who?\nAnd [user] why?\n"
    given = [judgement("e-1/a", "accept", Judged(prompt=prompt, answer="I."), "human ann")]
    assert json.loads(reviews.sft(given))["messages"] == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?\nAnd [user] why?\n"},
        {"role": "assistant", "content": "I."},
    ]  # fmt: skip
    pair = Judged(prompt="[user] Who?", answer="I.", other="You.")
    assert json.loads(reviews.dpo([judgement("x", "B", pair, "human ann")]))["prompt"] == "Who?"
