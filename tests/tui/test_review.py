"""Review: drawn samples, judgements kept at once, blind pairs, tags, reasons, examples for fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.evals.reviews import Judged
from lathe.tui import glyphs
from lathe.tui.app import LatheApp
from lathe.tui.review_desk import Item, Order, Said, draw, said_of
from lathe.tui.screens.review import Review
from lathe.tui.views import reviews as view
from lathe.tui.widgets.grid import Grid
from support import scripted_evals as evals
from support.screens import running, screen_lines, screen_text, type_text, until
from support.scripted_workbench import ScriptedWorkbench
from textual.pilot import Pilot

SMALL, LARGE = "qwen3-8b-q4_k_m", "qwen3-8b-q5_k_m"


def _place(app: LatheApp) -> Review:
    place = app.current_place
    assert isinstance(place, Review)
    return place


async def _pairs(app: LatheApp, pilot: Pilot[None]) -> None:
    """Draw pairs of e-2 against e-1."""
    await until(pilot, lambda: "judged" in screen_text(app) and _place(app).item is not None)
    await pilot.press("n")
    await until(pilot, lambda: "answers of which run?" in screen_text(app))
    await type_text(pilot, "q4_k_m")
    await pilot.press("enter")
    await until(pilot, lambda: "alone or against" in screen_text(app))
    await pilot.press("down", "enter")
    await until(pilot, lambda: "Draw a sample" in screen_text(app))
    await pilot.press("enter")
    await until(pilot, lambda: "Answers A and B" in screen_text(app))


async def test_the_newest_run_lies_on_the_desk_and_judgements_go_on() -> None:
    async with running(size=(120, 40), mode="review") as (app, pilot, bench):
        await until(pilot, lambda: "0 of 6 judged" in screen_text(app))
        assert "e-2 qwen3-8b-q4" in screen_lines(app)[2]
        first = _place(app).item
        assert first is not None
        await pilot.press("a")
        await until(pilot, lambda: "1 of 6 judged" in screen_text(app))
        second = _place(app).item
        assert second is not None and second.subject != first.subject
        await pilot.press("r")
        await until(pilot, lambda: "2 of 6 judged" in screen_text(app))
        assert [(r.subject, r.name, r.label, r.score, r.source) for r in bench.judgements] == [
            (first.subject, "quality", "accept", 1.0, "human me"),
            (second.subject, "quality", "reject", 0.0, "human me"),
        ]  # fmt: skip
        assert app.did == f"lathe eval review e-2 {second.label} reject --by me"
        # The last word counts.
        place = _place(app)
        place.query_one(Grid).select(first.subject)
        await pilot.press("r")
        await until(pilot, lambda: bench.judgements[-1].label == "reject")
        assert "2 of 6 judged" in screen_text(app)


async def test_an_answer_is_mended_explained_and_tagged() -> None:
    async with running(size=(120, 40), mode="review") as (app, pilot, bench):
        await until(pilot, lambda: "0 of 6 judged" in screen_text(app))
        await pilot.press("w")
        await until(pilot, lambda: "Judge it first" in screen_text(app))
        item = _place(app).item
        assert item is not None
        await pilot.press("e")
        await until(pilot, lambda: "as it should have been" in screen_text(app))
        await type_text(pilot, "Oh ")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(bench.judgements))
        kept = msgspec.json.decode(bench.judgements[0].body, type=Judged)
        assert bench.judgements[0].label == "edit"
        assert kept.edited == "Oh " + item.judged.answer
        _place(app).query_one(Grid).select(item.subject)
        await pilot.press("w")
        await until(pilot, lambda: "Why?" in screen_text(app))
        await type_text(pilot, "rude")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bench.judgements[-1].explanation == "rude")
        assert msgspec.json.decode(bench.judgements[-1].body, type=Judged).edited == kept.edited
        await pilot.press("l")
        await until(pilot, lambda: "Words, separated" in screen_text(app))
        await type_text(pilot, "tone short")
        await pilot.press("enter")
        await until(pilot, lambda: bench.judgements[-1].name == "tag")
        await until(pilot, lambda: "tone short" in screen_text(app))
        text = screen_text(app)
        assert "{+Oh +}" in text
        assert "rude" in text


async def test_pairs_are_blind_until_they_are_judged() -> None:
    async with running(size=(120, 40), mode="review") as (app, pilot, bench):
        await _pairs(app, pilot)
        answers = [line for line in screen_lines(app)[3:] if "│" in line]
        assert not any(LARGE in line or SMALL in line for line in answers)
        item = _place(app).item
        assert item is not None
        await pilot.press("r", "e")
        await pilot.pause()
        assert not bench.judgements
        await pilot.press("b")
        await until(pilot, lambda: bool(bench.judgements))
        kept = bench.judgements[0]
        assert (kept.name, kept.subject) == ("preference", f"e-2|e-1/{item.label}")
        judged = msgspec.json.decode(kept.body, type=Judged)
        preferred = judged.answer if kept.label == "A" else judged.other
        assert preferred == item.shown()[1]
        await until(pilot, lambda: f"B is better   {item.models()[1]}" in screen_text(app))
        assert "Elo of 1 pair" in screen_text(app)
        await pilot.press("o")
        await until(pilot, lambda: _place(app).item != item)
        await pilot.press("t")
        await until(pilot, lambda: bench.judgements[-1].label == "tie")


@pytest.mark.parametrize(("style", "field"), [("sft", "messages"), ("dpo", "chosen"), ("jsonl", "score")])
async def test_examples_are_written(tmp_path: Path, style: str, field: str) -> None:
    async with running(size=(120, 40), mode="review", state_dir=tmp_path) as (app, pilot, bench):
        await until(pilot, lambda: "0 of 6 judged" in screen_text(app))
        await pilot.press("E")
        await until(pilot, lambda: "Write what?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "No judgement makes a line" in screen_text(app))
        await pilot.press("a")
        await until(pilot, lambda: bool(bench.judgements))
        if style == "dpo":
            await _pairs(app, pilot)
            await pilot.press("a")
            await until(pilot, lambda: len(bench.judgements) == 2)
        await pilot.press("E")
        await until(pilot, lambda: "Write what?" in screen_text(app))
        await type_text(pilot, style)
        await pilot.press("enter")
        await until(pilot, lambda: f"Write {style}" in screen_text(app))
        await pilot.press("enter")
        written = tmp_path / f"reviews-{style}.jsonl"
        await until(pilot, written.exists)
        lines = [json.loads(line) for line in written.read_text().splitlines()]
        assert lines
        assert all(field in line for line in lines)
        assert app.did == f"lathe eval reviews --to {style} > {written}"


async def test_parts_of_a_place_are_one_bracket_away() -> None:
    async with running(mode="review") as (app, pilot, _):
        await until(pilot, lambda: "[Review]" in screen_text(app))
        assert "6 Review" in screen_lines(app)[1]
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: app.current_mode == "evals")
        assert "6 Evals" in screen_lines(app)[1]
        await pilot.press("left_square_bracket")
        await until(pilot, lambda: app.current_mode == "review")
        await pilot.press("6")
        await until(pilot, lambda: app.current_mode == "evals")


async def test_a_judgement_that_cannot_be_kept_is_not_shown() -> None:
    async with running(size=(120, 40), mode="review") as (app, pilot, bench):
        await until(pilot, lambda: "0 of 6 judged" in screen_text(app))
        bench.fail["review"] = UnavailableError("the disk is full")
        await pilot.press("a")
        await until(pilot, lambda: "the disk is full" in screen_text(app))
        assert "0 of 6 judged" in screen_text(app)


async def test_when_all_is_judged_the_screen_says_so() -> None:
    async with running(size=(120, 40), mode="review") as (app, pilot, _):
        await until(pilot, lambda: "0 of 6 judged" in screen_text(app))
        for number in range(6):
            await pilot.press("a")
            await until(pilot, lambda number=number: f"{number + 1} of 6 judged" in screen_text(app))  # type: ignore[misc]
        await until(pilot, lambda: "All of this sample is judged" in screen_text(app))


# -- values ----------------------------------------------------------------------------------------------------------
async def test_a_sample_is_drawn_by_its_seed_and_pairs_differ() -> None:
    bench = ScriptedWorkbench()
    runs = evals.runs()
    drawn = [await draw(bench, Order(run=runs["e-1"], number=3, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3
    pairs = await draw(bench, Order(run=runs["e-1"], other=runs["e-2"], number=10))
    assert len(pairs) == 3
    assert all(item.judged.answer != item.judged.other for item in pairs)
    with pytest.raises(UsageError, match="answered alike"):
        await draw(bench, Order(run=runs["e-1"], other=runs["e-1"]))


async def test_failed_answers_and_texts_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    from lathe.engine.errors import Failure

    records = [msgspec.structs.replace(record, failure=Failure("E", "x", "")) for record in evals.RECORDS["e-1"]]
    monkeypatch.setitem(evals.RECORDS, "e-1", records)
    with pytest.raises(UsageError, match="no answer that a person could judge"):
        await draw(ScriptedWorkbench(), Order(run=evals.runs()["e-1"]))


def _item(subject: str, answer: str = "left", other: str | None = None) -> Item:
    judged = Judged(prompt="p", answer=answer, model="first", other=other, other_model="second" if other else "")
    return Item(subject=subject, label=subject, judged=judged)


def test_the_side_follows_from_the_pair_and_both_sides_happen() -> None:
    items = [_item(f"e-1|e-2/{number}", other="right") for number in range(64)]
    swapped = [item.swapped for item in items]
    assert 10 < sum(swapped) < 54
    for item in items:
        assert item.shown()[item.models().index("first")] == "left"
        assert item.stored(item.stored("A")) == "A"
        assert item.stored("tie") == "tie"
    assert not _item("e-1/1").swapped


def test_what_others_said_is_not_what_i_said() -> None:
    assert said_of([], "human me") == {}
    assert view.item_lines(_item("x", "\x1b[31m[bold]"), Said(), 40)[-1][0][0] == "[bold]"


@pytest.mark.parametrize(
    ("ratings", "agreements", "told"),
    [
        ({}, {}, "nothing yet"),
        ({"a": 1016.0, "b": 984.0}, {("human ann", "human bob"): 0.5}, "kappa 0.50"),
        ({}, {("human ann", "human bob"): None}, "cannot be told"),
    ],
)
def test_the_standing(ratings: dict[str, float], agreements: dict[Any, Any], told: str) -> None:
    lines = view.standing_lines([], ratings, agreements, 80, glyphs.ASCII)
    text = "\n".join("".join(part for part, _ in line) for line in lines)
    assert told in text
    assert text.isascii()
