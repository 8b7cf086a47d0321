"""A scatter plot with a frontier, as lines of text: size against closeness, or any two figures. Pure.

The line through the frontier is drawn in braille, two by four dots a cell, where the glyphs allow; points and their
names lie above it. Invariant: every line is exactly as wide as asked for, and a plot of nothing is blank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec
from lathe.tui.glyphs import Glyphs
from lathe.tui.widgets.paint import Line, cell, crop, fit
from rich.cells import cell_len

GUTTER = 8
"""Cells left of the axis, for the numbers."""
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column."""
_LEAST = (18, 5)
"""Cells below which a plot would say nothing."""


class Dot(msgspec.Struct, frozen=True):
    """One point."""

    x: float
    y: float
    name: str = ""
    """Written beside it where there is room; foreign."""
    front: bool = False
    """No other is better in both: the line goes through it."""
    chosen: bool = False
    guess: bool = False
    """Predicted, not measured."""


def scatter(
    dots: Sequence[Dot],
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    show_x: Callable[[float], str],
    show_y: Callable[[float], str],
    floor: float | None = None,
) -> list[Line]:
    """Dots over a linear x and a logarithmic y; what is not positive lies on the bottom.

    Args:
        floor: a horizontal line, such as the largest divergence that is accepted.
    """
    columns, rows = width - GUTTER - 1, height - 2
    if not dots or columns < _LEAST[0] or rows < _LEAST[1]:
        return []
    plane = _Plane(dots, columns, rows, floor)
    ink_of: dict[tuple[int, int], tuple[str, str]] = {}
    if floor is not None:
        row = plane.row(floor)
        ink_of |= {(column, row): (glyphs.rule, "track") for column in range(columns)}
    ink_of |= {place: (text, "graph-low") for place, text in plane.line([d for d in dots if d.front], glyphs).items()}
    # Chosen last: it is never hidden by a neighbour.
    for dot in sorted(dots, key=lambda dot: (dot.chosen, dot.front)):
        ink = "mark" if dot.chosen else "good" if dot.front else "dim"
        sign = "?" if dot.guess else glyphs.good if dot.front or dot.chosen else glyphs.idle
        ink_of[plane.column(dot.x), plane.row(dot.y)] = (sign, ink)
    taken = {(plane.column(dot.x), plane.row(dot.y)) for dot in dots}
    for dot in sorted(dots, key=lambda dot: (not dot.chosen, not dot.front)):
        _name(dot, plane, columns, ink_of, taken, glyphs)
    ticks = plane.ticks()
    lines: list[Line] = []
    for row in range(rows):
        number = cell(show_y(ticks[row]), GUTTER - 1, ">", glyphs.ellipsis) if row in ticks else " " * (GUTTER - 1)
        body = [ink_of.get((column, row), (" ", "text")) for column in range(columns)]
        lines.append(fit([(f"{number} ", "dim"), (glyphs.bar, "faint"), *_joined(body)], width))
    lines.append(fit([(" " * GUTTER, "dim"), (glyphs.rule * (columns + 1), "faint")], width))
    lines.append(fit([(" " * GUTTER, "dim"), (plane.scale(columns + 1, show_x, glyphs), "dim")], width))
    return lines


class _Plane:
    """Figures to cells."""

    def __init__(self, dots: Sequence[Dot], columns: int, rows: int, floor: float | None) -> None:
        self._columns, self._rows = columns, rows
        xs = [dot.x for dot in dots]
        ys = [math.log10(y) for y in (*(dot.y for dot in dots), floor or 0.0) if y > 0]
        pad = (max(xs) - min(xs)) * 0.06 or abs(max(xs)) * 0.1 or 1.0
        self._left, self._right = max(0.0, min(xs) - pad), max(xs) + pad
        self._low, self._high = (min(ys), max(ys)) if ys else (0.0, 1.0)
        if self._high - self._low < 0.5:
            middle = (self._high + self._low) / 2
            self._low, self._high = middle - 0.25, middle + 0.25

    def column(self, x: float) -> int:
        return min(self._columns - 1, max(0, round(self._across(x) * (self._columns - 1))))

    def row(self, y: float) -> int:
        return min(self._rows - 1, max(0, round(self._down(y) * (self._rows - 1))))

    def _across(self, x: float) -> float:
        return (x - self._left) / (self._right - self._left)

    def _down(self, y: float) -> float:
        return (self._high - math.log10(y)) / (self._high - self._low) if y > 0 else 1.0

    def line(self, front: Sequence[Dot], glyphs: Glyphs) -> dict[tuple[int, int], str]:
        """Cells that the frontier passes through."""
        fine = glyphs.name == "unicode"
        wide, high = (2, 4) if fine else (1, 1)
        bits: dict[tuple[int, int], int] = {}
        ordered = sorted(front, key=lambda dot: dot.x)
        for first, second in itertools.pairwise(ordered):
            steps = 2 * (self._columns * wide + self._rows * high)
            for step in range(steps + 1):
                share = step / steps
                x = (self._across(first.x) * (1 - share) + self._across(second.x) * share) * (self._columns - 1)
                y = (self._down(first.y) * (1 - share) + self._down(second.y) * share) * (self._rows - 1)
                # The middle of a cell is where its mark stands.
                dot_x, dot_y = round(x * wide + (wide - 1) / 2), round(y * high + (high - 1) / 2)
                place = (dot_x // wide, dot_y // high)
                if place[0] < self._columns and place[1] < self._rows:
                    bits[place] = bits.get(place, 0) | (_BRAILLE[dot_y % 4][dot_x % 2] if fine else 1)
        return {place: chr(0x2800 + found) if fine else "." for place, found in bits.items()}

    def ticks(self) -> dict[int, float]:
        """Row -> value of the numbers beside the axis: powers of ten, or the ends where there is none."""
        powers = range(math.ceil(self._low - 0.01), math.floor(self._high + 0.01) + 1)
        values = [10.0**power for power in powers]
        if len(values) < 2:
            values += [10.0**self._low, 10.0**self._high]
        found: dict[int, float] = {}
        for value in values:
            row = self.row(value)
            if all(abs(row - other) > 1 for other in found):
                found[row] = value
        return found

    def scale(self, width: int, show: Callable[[float], str], glyphs: Glyphs) -> str:
        """Numbers below the axis."""
        count = max(2, min(6, width // 14))
        text = ""
        for number in range(count):
            value = self._left + (self._right - self._left) * number / (count - 1)
            label = show(value)
            at = round((width - 1) * number / (count - 1))
            start = min(width - len(label), max(len(text) + 1 if text else 0, at - len(label) // 2))
            text = text.ljust(start) + label
        return crop(text, width, glyphs.ellipsis) if len(text) > width else text


def _name(
    dot: Dot, plane: _Plane, columns: int, cells: dict[tuple[int, int], tuple[str, str]],
    taken: set[tuple[int, int]], glyphs: Glyphs,
) -> None:  # fmt: skip
    """Write a name right or left of its dot, if neither covers another's."""
    text = crop(dot.name, 18, glyphs.ellipsis)
    size = cell_len(text)
    if not text or size != len(text):
        return
    column, row = plane.column(dot.x), plane.row(dot.y)
    for start in (column + 2, column - size - 1):
        places = [(start + offset, row) for offset in range(-1, size + 1)]
        inside = start >= 0 and start + size <= columns
        if inside and not any(place in taken for place in places if place != (column, row)):
            for offset, character in enumerate(text):
                cells[start + offset, row] = (character, "mark" if dot.chosen else "text" if dot.front else "dim")
            taken.update(places)
            return


def _joined(cells: Sequence[tuple[str, str]]) -> Line:
    """Neighbours of one ink as one span."""
    line: Line = []
    for text, ink in cells:
        if line and line[-1][1] == ink:
            line[-1] = (line[-1][0] + text, ink)
        else:
            line.append((text, ink))
    return line
