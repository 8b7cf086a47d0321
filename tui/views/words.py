"""What changed between two texts, word by word, marked so that it can be read without colour. Pure."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import islice

from lathe.tui.text import clean
from lathe.tui.widgets.paint import Line, Span, crop
from rich.cells import cell_len, chop_cells

_PART = re.compile(r"\n|[^\S\n]+|[^\s]+")
_MOST_PER_CELL = 8
_WORD = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 600
"""Beyond, texts are shown without marks: the comparison takes quadratic time, 0.04 s for so many."""


def marked(before: str, after: str) -> list[Span]:
    """The second text, with `{-what went-}` and `{+what came+}`."""
    after = clean(after)
    old, new = _words(clean(before)), _words(after)
    if max(len(old), len(new)) > MAX_WORDS:
        return [(after, "text")]
    spans: list[Span] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            spans.append(("".join(new[j1:j2]), "text"))
            continue
        if i2 > i1:
            spans.append(("{-" + "".join(old[i1:i2]) + "-}", "bad"))
        if j2 > j1:
            spans.append(("{+" + "".join(new[j1:j2]) + "+}", "good"))
    return spans


def _words(text: str) -> list[str]:
    """The words of a text, one more than may be compared if there are so many."""
    return [match.group() for match in islice(_WORD.finditer(text), MAX_WORDS + 1)]


def flow(spans: list[Span], width: int, height: int) -> list[Line]:
    """Break spans at blanks and line ends into lines of at most `width` cells; the last shown says if more follows."""
    lines: list[Line] = [[]]
    used = 0
    for text, ink in spans:
        for match in _PART.finditer(text):
            if len(lines) > height:
                break
            # Of a word that never ends, what could be shown: a cell has at most a few characters.
            part = match.group()[: _MOST_PER_CELL * width * (height - len(lines) + 2)]
            if part == "\n":
                lines.append([])
                used = 0
                continue
            if used + cell_len(part) > width and used:
                lines.append([])
                used = 0
                if part.isspace():
                    continue
            for piece in chop_cells(part, width) if cell_len(part) > width else [part]:
                if used + cell_len(piece) > width and used:
                    lines.append([])
                    used = 0
                lines[-1].append((piece, ink))
                used += cell_len(piece)
        if len(lines) > height:
            break
    if len(lines) > height > 0:
        lines = [*lines[: height - 1], [(crop("(more: enter opens the case)", width), "dim")]]
    return lines[:height]
