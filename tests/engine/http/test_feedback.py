"""`/v1/feedback`: reviews reach the store whole, name the key they came over, and export only where texts were sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lathe.engine.evals import reviews
from support.http_kit import MODEL, key, serving

BODY: dict[str, Any] = {
    "name": "quality", "id": "chatcmpl-1", "label": "accept", "score": 0.9, "source": "anna", "explanation": "good",
    "model": MODEL, "prompt": "2 + 2?", "answer": "4",
}  # fmt: skip


async def test_a_review_is_kept_as_it_was_given() -> None:
    async with serving() as served:
        answer = await served.post("/v1/feedback", BODY)
        assert answer.status_code == 200, answer.text
        kept = answer.json()
        assert kept | {"id": 0, "created": 0} == {
            "id": 0, "object": "feedback", "created": 0, "subject": "http/chatcmpl-1", "name": "quality",
            "label": "accept", "score": 0.9, "source": "api ops: anna", "explanation": "good",
        }  # fmt: skip
        (review,) = await served.workbench.reviews("http/chatcmpl-1")
        assert review.number == kept["id"]
        (line,) = reviews.sft([review]).splitlines()
        assert [turn["content"] for turn in json.loads(line)["messages"]] == ["2 + 2?", "4"]


async def test_a_review_without_texts_is_kept_but_makes_no_training_example() -> None:
    async with serving() as served:
        for body in ({"name": "thumb", "score": 1}, {"name": "tone", "label": "accept"}):
            assert (await served.post("/v1/feedback", body)).status_code == 200
        edit = {"name": "quality", "label": "edit", "edited": "better"}
        assert (await served.post("/v1/feedback", edit)).status_code == 200
        kept = await served.workbench.reviews()
        assert [review.label for review in kept] == ["", "accept", "edit"]
        assert len({review.subject for review in kept}) == 3, "without an id each is about something else"
        assert (reviews.sft(kept), reviews.dpo(kept)) == ("", "")
        assert len(reviews.plain(kept).splitlines()) == 3


async def test_a_key_cannot_speak_as_a_reviewer_of_this_machine() -> None:
    async with serving(keys=(key("shop", models=(MODEL,)),)) as served:
        body = {"name": "quality", "label": "accept", "source": "human root"}
        assert (await served.post("/v1/feedback", body)).json()["source"] == "api shop: human root"
        assert (await served.post("/v1/feedback", body | {"model": "phi-4-mini-q8_0"})).status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"label": None, "score": None}, "label"),
        ({"edited": "x"}, "edited"),
        ({"label": "edit"}, "edited"),
        ({"answer": None}, "answer"),
        ({"score": 1e7}, "score"),
        ({"name": ""}, "name"),
        ({"explanation": "x" * 4001}, "explanation"),
        ({"labels": "x"}, "labels"),
    ],
)
async def test_half_a_review_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    async with serving() as served:
        answer = await served.post("/v1/feedback", BODY | change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert await served.workbench.reviews() == []
