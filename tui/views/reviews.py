"""Answers to be judged as rows and as lines to read; ratings and agreement. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lathe.store.evals import Review
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.review_desk import Item, Said
from lathe.tui.text import clean
from lathe.tui.views.words import flow, marked
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, bar, fit

ITEMS = (
    Column("case", least=16, most=44, flex=True, sort="case"),
    Column("judged", least=8, most=14, sort="label"),
    Column("tags", rank=1, most=18),
)
BESIDE = 70
"""Cells from which two answers stand side by side."""
_INKS = {"accept": "good", "reject": "bad", "edit": "warn", "A": "a", "B": "b", "tie": "dim"}
_GAP = 3


def item_rows(items: Sequence[Item], said: Mapping[str, Said]) -> list[Row]:
    """The sample in the order it was drawn."""
    return [_row(item, said.get(item.subject, Said())) for item in items]


def _row(item: Item, said: Said) -> Row:
    shown = item.stored(said.label)
    word = {"A": "A better", "B": "B better"}.get(shown, shown)
    cells: tuple[Cell, ...] = (item.label, (word, _INKS.get(shown, "dim")), (" ".join(said.tags), "dim"))
    fields: dict[str, str | float | None] = {
        "case": item.label, "label": shown or "open", "tag": " ".join(said.tags), "prompt": item.judged.prompt[:400],
    }  # fmt: skip
    return Row(item.subject, cells, fields)


def item_lines(item: Item, said: Said, width: int) -> list[Line]:
    """What lies before the reviewer; models are named once it is judged."""
    lines: list[Line] = [[("prompt", "dim")], *flow([(clean(item.judged.prompt), "text")], width, 10_000), []]
    lines += _pair(item, said, width) if item.pair else _single(item, said, width)
    if item.expected:
        lines += [[], [("expected", "dim")], *flow([(clean(item.expected), "dim")], width, 10_000)]
    if said.label or said.explanation:
        lines += [[], _verdict(item, said)]
    if said.explanation:
        lines += flow([(clean(said.explanation), "text")], width, 10_000)
    if said.tags:
        lines.append([("tags  ", "dim"), (" ".join(said.tags), "accent")])
    return lines


def _single(item: Item, said: Said, width: int) -> list[Line]:
    if said.edited is None:
        return [[("answer", "dim")], *flow([(clean(item.judged.answer), "value")], width, 10_000)]
    return [
        [("answer, as it was edited", "dim")],
        *flow(marked(item.judged.answer, said.edited), width, 10_000),
    ]


def _pair(item: Item, said: Said, width: int) -> list[Line]:
    names = item.models() if said.label else ("", "")
    heads: list[Line] = [
        [(f"{letter}  ", ink), (name, "dim")] for letter, name, ink in zip("AB", names, ("a", "b"), strict=True)
    ]
    texts = [clean(text) for text in item.shown()]
    if width < BESIDE:
        first, second = (flow([(text, "value")], width, 10_000) for text in texts)
        return [heads[0], *first, [], heads[1], *second]
    room = (width - _GAP) // 2
    left, right = ([head, *flow([(text, "value")], room, 10_000)] for head, text in zip(heads, texts, strict=True))
    return [
        [
            *fit(left[row] if row < len(left) else [], room), (" " * _GAP, "dim"),
            *(right[row] if row < len(right) else []),
        ]
        for row in range(max(len(left), len(right)))
    ]  # fmt: skip


def _verdict(item: Item, said: Said) -> Line:
    shown = item.stored(said.label)
    if shown in ("A", "B"):
        return [(f"{shown} is better", _INKS[shown]), (f"   {item.models()['AB'.index(shown)]}", "text")]
    return [(shown or "not judged yet", _INKS.get(shown, "dim"))]


def standing_lines(
    reviews: Sequence[Review], ratings: Mapping[str, float], agreements: Mapping[tuple[str, str], float | None],
    width: int, glyphs: Glyphs,
) -> list[Line]:  # fmt: skip
    """Everything judged so far: counts, Elo of the models, agreement between reviewers."""
    last = {(review.subject, review.name, review.source): review for review in reviews if review.name != "tag"}
    counts = Counter("pair" if review.label in ("A", "B", "tie") else review.label for review in last.values())
    told = [f"{counts[word]} {word}" for word in ("accept", "reject", "edit", "pair") if counts[word]]
    lines: list[Line] = [[("judged  ", "dim"), ("   ".join(told) or "nothing yet", "text")]]
    ranked = sorted(ratings.items(), key=lambda pair: -pair[1])
    longest = max((len(name) for name, _ in ranked), default=0)
    for name, rating in ranked:
        games = sum(review.label in ("A", "B", "tie") and _about(review, name) for review in last.values())
        head = f"{name:<{min(longest, 40)}}  {rating:6.0f}  "
        share = min(1.0, max(0.0, (rating - 800) / 400))
        lines.append([(head, "value"), *bar(share, 20, glyphs), (f"  Elo of {formats.many(games, 'pair')}", "dim")])
    for (first, second), kappa in agreements.items():
        value = "cannot be told" if kappa is None else f"{kappa:.2f}"
        lines.append([("agreement  ", "dim"), (f"{first} and {second}  ", "text"), (f"kappa {value}", "value")])
    return lines


def _about(review: Review, model: str) -> bool:
    return f'"{model}"' in review.body
