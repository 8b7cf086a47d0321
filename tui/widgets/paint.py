"""Lines of text in named inks, and the graphs made of them. Pure: values in, lines out.

A `Line` is a list of spans (text, ink). Invariant: every function returns lines of exactly the width asked for, in
terminal cells, whatever the text holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from rich.cells import cell_len, chop_cells

Span = tuple[str, str]
Line = list[Span]


def width_of(line: Iterable[Span]) -> int:
    """Cells that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def crop(text: str, width: int, ellipsis: str = "…") -> str:
    """Shorten foreign text to at most `width` cells, with an ellipsis where something was cut."""
    return _chop(one_line(text), width, ellipsis)


def crop_front(text: str, width: int, ellipsis: str = "…") -> str:
    """Shorten foreign text as `crop` does, but keep its end: what tells paths apart."""
    text = one_line(text)
    if width <= 0 or cell_len(text) <= width:
        return text if width > 0 else ""
    room = width - cell_len(ellipsis)
    if room < 1:
        return _chop(text, width, "")
    first, taken = len(text), 0
    while first and taken + cell_len(text[first - 1]) <= room:
        first -= 1
        taken += cell_len(text[first])
    # A mark whose letter was cut off goes, too; and letters may be wider together than one by one.
    while first < len(text) and (not cell_len(text[first]) or cell_len(text[first:]) > room):
        first += 1
    return ellipsis + text[first:]


def _chop(text: str, width: int, ellipsis: str) -> str:
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    room = width - cell_len(ellipsis)
    if room < 1:
        return (chop_cells(text, width) or [""])[0]
    return chop_cells(text, room)[0] + ellipsis


def wrap(text: str, width: int, ink: str, height: int, indent: int = 0, ellipsis: str = "…") -> list[Line]:
    """Break foreign text at blanks into at most `height` lines; later ones are indented."""
    words = one_line(text).split(" ")
    lines: list[str] = []
    current = ""
    for word in words:
        room = width - (indent if lines else 0)
        if current and cell_len(current) + 1 + cell_len(word) > room:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}" if current else word
    lines.append(current)
    if len(lines) > height:
        lines = [*lines[: height - 1], " ".join(lines[height - 1 :])] if height > 0 else []
    blank = " " * indent
    return [
        [(blank if number else "", ink), (_chop(line, width - (indent if number else 0), ellipsis), ink)]
        for number, line in enumerate(lines)
    ]


def cell(text: str, width: int, align: str = "<", ellipsis: str = "…", *, end: bool = False) -> str:
    """Foreign text in exactly `width` cells: cropped, with `end` in front, or padded."""
    text = crop_front(text, width, ellipsis) if end else crop(text, width, ellipsis)
    blank = " " * (width - cell_len(text))
    return blank + text if align == ">" else text + blank


def crop_line(line: Line, width: int) -> Line:
    """Cut a line after `width` cells."""
    result: Line = []
    for text, ink in line:
        room = cell_len(text)
        if room > width:
            text = _chop(text, width, "")
            room = cell_len(text)
            width_left = 0
        else:
            width_left = width - room
        if text:
            result.append((text, ink))
        width = width_left
        if width <= 0:
            break
    return result


def fit(line: Line, width: int) -> Line:
    """Crop or pad a line to exactly `width` cells."""
    line = crop_line(line, width)
    missing = width - width_of(line)
    return [*line, (" " * missing, "text")] if missing > 0 else line


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` at the left edge and `right` at the right one; what is cut is the end of `left`."""
    room = width - width_of(right)
    if room <= 0:
        return fit(right, width)
    return [*fit(left, room), *right]


def whole(pieces: Sequence[Line], width: int, ellipsis: str = "…", gap: int = 3) -> Line:
    """Short lines one after the other, as many as fit whole; an ellipsis stands for the rest."""
    line: Line = []
    for number, piece in enumerate(pieces):
        rest = gap + cell_len(ellipsis) if number < len(pieces) - 1 else 0
        before = gap if line else 0
        if width_of(line) + before + width_of(piece) + rest > width:
            return [*line, (" " * before + ellipsis, "dim")]
        line += [(" " * before, "text"), *piece]
    return line


def columns(lines: Sequence[Line], count: int, width: int, gap: int = 2) -> list[Line]:
    """Lay short lines out in `count` columns, reading down each."""
    height = math.ceil(len(lines) / count)
    each = (width - gap * (count - 1)) // count
    result: list[Line] = []
    for row in range(height):
        merged: Line = []
        for column in range(count):
            index = column * height + row
            merged += fit(lines[index] if index < len(lines) else [], each)
            if column < count - 1:
                merged.append((" " * gap, "text"))
        result.append(fit(merged, width))
    return result


def bar(fraction: float | None, width: int, glyphs: Glyphs, ink: str = "graph") -> Line:
    """A horizontal bar, exact to an eighth of a cell where the glyphs allow; unknown is an empty track."""
    return stacked([(fraction or 0.0, ink)], width, glyphs)


def stacked(parts: Sequence[tuple[float, str]], width: int, glyphs: Glyphs) -> Line:
    """A bar of several parts, each 0..1 of the whole; the rest is track."""
    result: Line = []
    steps = len(glyphs.partial) + 1
    taken = 0
    whole = 0.0
    for index, (fraction, ink) in enumerate(parts):
        whole = min(1.0, whole + max(0.0, fraction))
        eighths = round(whole * width * steps)
        end = eighths // steps
        text = glyphs.full * (end - taken)
        # Only the last part may end inside a cell: a cell has one foreground.
        rest = eighths % steps if index == len(parts) - 1 and end < width else 0
        if rest and end >= taken:
            text += glyphs.partial[rest - 1]
            end += 1
        if text:
            result.append((text, ink))
        taken = max(taken, end)
    if taken < width:
        result.append((glyphs.track * (width - taken), "track"))
    return result


def resample(values: Sequence[float], width: int, span: int | None = None, phase: int = 0) -> list[float]:
    """Average a series of one value per second over `width` columns of `span` seconds, newest last.

    `phase` is the number of the newest value since some start. A column's borders are multiples of span / width on that
    count, so they stay put while the series moves on: the graph slides instead of flickering."""
    if width <= 0 or not values:
        return []
    span = span or len(values)
    first = phase - len(values) + 1
    columns: dict[int, list[float]] = {}
    for offset, value in enumerate(values):
        columns.setdefault((first + offset) * width // span, []).append(value)
    newest = phase * width // span
    # With fewer seconds than columns a value covers several of them.
    newest = max(newest, (phase + 1) * width // span - 1)
    oldest = min(columns)
    points: list[float] = []
    for column in range(max(oldest, newest - width + 1), newest + 1):
        held = columns.get(column)
        points.append(sum(held) / len(held) if held else points[-1] if points else values[0])
    return points


def ceiling(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten: a scale that does not twitch."""
    if value < 1e-12 or not math.isfinite(value):
        return 1.0
    power = float(10 ** math.floor(math.log10(value)))
    return next((step * power for step in (1.0, 2.0, 5.0) if value <= step * power * 1.000001), 10.0 * power)


def graph(
    values: Sequence[float],
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    top: float | None = None,
    span: int | None = None,
    phase: int = 0,
    ink: str = "graph",
    low_ink: str = "graph-low",
) -> list[Line]:
    """An area graph of the newest values, `height` rows high, growing from the right."""
    points = resample(values, width, span, phase)
    top = top if top is not None else ceiling(max(points, default=0.0))
    steps = len(glyphs.levels) - 1
    # A value above zero is never drawn as nothing.
    heights = [
        min(steps * height, max(1 if value > 0 else 0, round(value / top * steps * height))) if top > 0 else 0
        for value in points
    ]
    blank = " " * (width - len(points))
    lines: list[Line] = []
    for row in range(height - 1, -1, -1):
        base = row * steps
        text = "".join(glyphs.levels[min(steps, max(0, level - base))] for level in heights)
        lines.append([(blank + text, low_ink if height > 1 and row < height // 2 else ink)])
    return lines


def histogram(counts: Sequence[int], width: int, glyphs: Glyphs, height: int = 2) -> list[Line]:
    """Columns of equal width, one per bucket, filling `width`."""
    if not counts:
        return [fit([], width) for _ in range(height)]
    each = max(1, width // len(counts))
    top = max(counts) or 1
    steps = len(glyphs.levels) - 1
    lines: list[Line] = []
    for row in range(height - 1, -1, -1):
        text = ""
        for number in counts:
            level = max(1 if number else 0, round(number / top * steps * height)) - row * steps
            column = glyphs.levels[min(steps, max(0, level))] * max(1, each - 1)
            text += column + " " * (each - max(1, each - 1))
        lines.append(fit([(text, "graph")], width))
    return lines
