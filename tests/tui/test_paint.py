"""Lines are exactly as wide as asked, graphs say what the values say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.tui import glyphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets import paint
from lathe.tui.widgets.columns import Column, lay_out
from rich.cells import cell_len
from support.foreign import CORPUS, HOSTILE

SETS = list(glyphs.SETS.values())
_texts = st.one_of(st.sampled_from([*CORPUS, *HOSTILE]), st.text(max_size=30))
_values = st.lists(st.floats(0, 1e6), max_size=200)


@given(_texts, st.integers(0, 50), st.sampled_from(["<", ">"]))
def test_a_cell_is_as_wide_as_asked(text: str, width: int, align: str) -> None:
    assert cell_len(paint.cell(text, width, align)) == width


@given(st.lists(st.text("ab", min_size=1, max_size=8), max_size=6), st.integers(4, 40))
def test_pieces_are_shown_whole_or_not_at_all(texts: list[str], width: int) -> None:
    line = paint.whole([[(text, "text")] for text in texts], width)
    assert paint.width_of(line) <= width
    shown = "".join(text for text, _ in line).split()
    left_out = shown[-1:] == ["…"]
    assert shown[: len(shown) - left_out] == texts[: len(shown) - left_out]
    assert left_out or len(shown) == len(texts)


@given(_texts, st.integers(0, 30))
def test_a_text_cropped_in_front_fits_and_keeps_its_end(text: str, width: int) -> None:
    shown, whole = paint.crop_front(text, width), one_line(text)
    assert cell_len(shown) <= width
    if cell_len(whole) <= width:
        assert shown == whole
    elif width > 1:
        assert shown[0] == "…" and whole.endswith(shown[1:])


@given(st.lists(_texts, max_size=4), st.lists(_texts, max_size=2), st.integers(1, 60))
def test_lines_are_as_wide_as_asked(left: list[str], right: list[str], width: int) -> None:
    line = [(paint.crop(text, 200), "text") for text in left]
    tail = [(paint.crop(text, 20), "text") for text in right]
    assert paint.width_of(paint.fit(line, width)) == width
    assert paint.width_of(paint.spread(line, tail, width)) == width


@pytest.mark.parametrize("glyph_set", SETS, ids=lambda g: g.name)
@given(parts=st.lists(st.floats(0, 1.5), max_size=4), width=st.integers(1, 80))
def test_bars_are_as_wide_as_asked(glyph_set: Any, parts: list[float], width: int) -> None:
    line = paint.stacked([(part, "text") for part in parts], width, glyph_set)
    assert paint.width_of(line) == width


@pytest.mark.parametrize("glyph_set", SETS, ids=lambda g: g.name)
@given(values=_values, width=st.integers(1, 80), height=st.integers(0, 6), phase=st.integers(0, 10_000))
def test_graphs_are_as_large_as_asked(glyph_set: Any, values: list[float], width: int, height: int, phase: int) -> None:
    lines = paint.graph(values, width, height, glyph_set, span=300, phase=phase)
    assert [paint.width_of(line) for line in lines] == [width] * height


def test_a_bar_shows_its_fraction() -> None:
    def filled(fraction: float | None) -> int:
        return sum(text.count("#") for text, _ in paint.bar(fraction, 10, glyphs.ASCII))

    assert [filled(f) for f in (None, 0.0, 0.31, 0.5, 1.0, 7.0)] == [0, 0, 3, 5, 10, 10]


def test_parts_of_a_bar_add_up() -> None:
    line = paint.stacked([(0.2, "a"), (0.3, "b")], 10, glyphs.ASCII)
    assert line == [("##", "a"), ("###", "b"), (".....", "track")]


def test_a_graph_stands_on_its_values() -> None:
    text = paint.graph([0, 1, 4, 8], 4, 1, glyphs.UNICODE, top=8)[0][0][0]
    assert text == " ▁▄█"
    high, low = (line[0][0] for line in paint.graph([1, 16], 2, 2, glyphs.UNICODE, top=16))
    assert (high, low) == (" █", "▁█")


def test_a_small_value_is_never_nothing() -> None:
    text = paint.graph([0, 1e-9, 1e9], 3, 1, glyphs.UNICODE)[0][0][0]
    assert text[0] == " "
    assert text[1] != " "


def test_a_sliding_graph_keeps_its_columns() -> None:
    """Buckets stay aligned while time passes: all but the newest column are the old ones, moved."""
    series = [float(i * 7 % 13) for i in range(700)]

    def at(t: int) -> list[float]:
        return paint.resample(series[t - 300 : t], 60, 300, t - 1)

    moved = 0
    for t in range(400, 420):
        before, after = at(t), at(t + 1)
        same = sum(a == b for a, b in zip(before[1:-1], after[1:-1], strict=True))
        shifted = sum(a == b for a, b in zip(before[2:-1], after[1:-2], strict=True))
        moved += shifted > same
        assert max(same, shifted) >= 57
    assert moved == 4


@pytest.mark.parametrize(
    ("value", "top"), [(0.0, 1.0), (0.7, 1.0), (1.2, 2.0), (41.0, 50.0), (66.0, 100.0), (5.0, 5.0)]
)
def test_scales_are_round(value: float, top: float) -> None:
    assert paint.ceiling(value) == top


def test_wrapped_text_keeps_its_words() -> None:
    lines = paint.wrap("one two three four five six", 9, "text", 3)
    assert ["".join(t for t, _ in line).strip() for line in lines] == ["one two", "three", "four fiv…"]


COLUMNS = (
    Column("name", least=10, most=30, flex=True),
    Column("size", ">", least=5),
    Column("more", rank=1, least=6),
    Column("most", rank=2, least=8),
)


def test_columns_go_by_rank() -> None:
    natural = [20, 5, 6, 8]

    def shown(width: int) -> list[int]:
        return [index for index, _ in lay_out(COLUMNS, natural, width, 2, 2)]

    assert shown(80) == [0, 1, 2, 3]
    assert shown(35) == [0, 1, 2]
    assert shown(20) == [0, 1]
    assert shown(5) == [0, 1]


@given(st.integers(20, 200), st.lists(st.integers(4, 30), min_size=4, max_size=4))
def test_columns_fit(width: int, natural: list[int]) -> None:
    found = lay_out(COLUMNS, natural, width, 2, 2)
    needed = 2 + sum(cells for _, cells in found) + 2 * (len(found) - 1)
    assert needed <= width or len(found) == 2
