"""Markdown of a model's answer as lines, laid out as it grows. Pure.

What models write: paragraphs, headings, lists, quotes, tables, fenced code, bold, italic, code, links. Line ends stay
line ends, so a finished line is laid out once per width and only the last one anew: an update costs microseconds, where
Textual's Markdown widget lays out the whole screen (50 ms at 160 x 50, measured with two answers at 60 tokens/s).
Invariant: every character of the source is shown or was syntax; nothing becomes a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from lathe.tui.glyphs import Glyphs
from lathe.tui.widgets.paint import Line, Span, fit, width_of
from rich.cells import cell_len, chop_cells

MAX_INLINE = 4_000
"""Characters of a line in which emphasis is looked for."""
# Every repetition is bounded or ends at a character of its own: no input makes a pattern search for long.
_FENCE = re.compile(r" {0,3}(`{3,40}|~{3,40})\s*([\w+#.-]{0,40})")
_HEADING = re.compile(r" {0,3}#{1,6}\s+(?=\S)")
_ITEM = re.compile(r"(\s{0,40})([-*+]|\d{1,9}[.)])\s+(.*)")
_QUOTE = re.compile(r"\s{0,3}(?:>\s?)+")
_RULE = re.compile(r" {0,3}([-*_])(?: ?\1){2,200}\s*")
_TABLE_RULE = re.compile(r"\s*\|?(?: *:?-+:? *\|)+ *(?::?-+:?)? *")
_INLINE = re.compile(
    r"(?<!`)(?P<ticks>`{1,4})(?!`)(?P<code>.{1,500}?)(?<!`)(?P=ticks)(?!`)"
    r"|\*\*(?P<bold>[^\s*](?:.{0,500}?[^\s*])?)\*\*"
    r"|(?<![\w*])\*(?P<italic>[^\s*](?:[^*]{0,500}[^\s*])?)\*(?![\w*])"
    r"|(?<!\w)_(?P<under>[^\s_](?:[^_]{0,500}[^\s_])?)_(?!\w)"
    r"|\[(?P<text>[^\]\n]{1,300})\]\((?P<url>[^)\s]{1,500})\)"
)
_WORDS = re.compile(r"\s+|\S+")


class Document:
    """A text that grows; `rich=False` shows it as it is."""

    def __init__(self, *, rich: bool = True) -> None:
        self._rich = rich
        self._units: list[list[str]] = []
        """Finished: a line, a whole table, a whole fence; an empty list is a gap."""
        self._open: list[str] = []
        """A table or fence that goes on."""
        self._rest = ""
        """A line that goes on."""
        self._fence = ""
        self._flat: list[Line] = []
        self._laid = 0
        self._laid_for: tuple[int, str] = (0, "")
        self._ended = False

    def add(self, text: str) -> None:
        """Append cleaned text."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._take(line)

    def close(self) -> None:
        """The text is complete: code is coloured from now on."""
        if self._rest:
            self._take(self._rest)
            self._rest = ""
        self._finish()
        while self._units and not self._units[-1]:
            self._units.pop()
        self._ended = True
        self._laid_for = (0, "")

    def lines(self, width: int, glyphs: Glyphs) -> list[Line]:
        """All of it, laid out for a width."""
        if self._laid_for != (width, glyphs.name):
            self._flat, self._laid, self._laid_for = [], 0, (width, glyphs.name)
        for unit in self._units[self._laid :]:
            self._flat += self._lay_out(unit, width, glyphs)
        self._laid = len(self._units)
        going_on = [*self._open, *([self._rest] if self._rest else [])]
        if not going_on:
            return list(self._flat)
        if self._open:
            return [*self._flat, *self._lay_out(going_on, width, glyphs)]
        return [*self._flat, *self._lay_out([self._rest], width, glyphs)]

    def _take(self, line: str) -> None:
        fence = _FENCE.match(line) if self._rich else None
        if self._fence:
            self._open.append(line)
            if fence and fence[1].startswith(self._fence) and not fence[2]:
                self._finish()
        elif fence:
            self._finish()
            self._fence = fence[1]
            self._open.append(line)
        elif self._rich and line.lstrip().startswith("|"):
            self._open.append(line)
        else:
            self._finish()
            if line.strip():
                self._units.append([line])
            elif self._units and self._units[-1]:
                self._units.append([])

    def _finish(self) -> None:
        if self._open:
            self._units.append(self._open)
            self._open = []
        self._fence = ""

    def _lay_out(self, unit: Sequence[str], width: int, glyphs: Glyphs) -> list[Line]:
        if not unit:
            return [[]]
        if not self._rich:
            return [line for text in unit for line in wrap_spans([(text, "text")], width)]
        fence = _FENCE.match(unit[0])
        if fence:
            closed = len(unit) > 1 and _FENCE.match(unit[-1]) is not None
            body = list(unit[1:-1] if closed else unit[1:])
            return _code(body, fence[2] if self._ended else "", width)
        if len(unit) > 1 and _TABLE_RULE.fullmatch(unit[1]):
            return _table(unit, width, glyphs)
        return [line for text in unit for line in _paragraph(text, width, glyphs)]


def _paragraph(text: str, width: int, glyphs: Glyphs) -> list[Line]:
    if heading := _HEADING.match(text):
        return wrap_spans([(text[heading.end() :].rstrip().rstrip("#").rstrip(), "title")], width)
    if _RULE.fullmatch(text):
        return [[(glyphs.rule * width, "faint")]]
    if quote := _QUOTE.match(text):
        depth = min(quote[0].count(">"), 6)
        edge: Span = (f"{glyphs.bar} " * depth, "faint")
        inner = wrap_spans(inline(text[quote.end() :]), max(1, width - 2 * depth))
        return [[edge, *((part, "dim" if ink == "text" else ink) for part, ink in line)] for line in inner]
    if item := _ITEM.match(text):
        depth = min(len(item[1]), 12)
        mark = item[2] if item[2][0].isdigit() else glyphs.bullet
        lead = " " * depth + mark + " "
        room = max(1, width - cell_len(lead))
        inner = wrap_spans(inline(item[3]), room)
        blank = " " * cell_len(lead)
        return [[(blank if number else lead, "accent"), *line] for number, line in enumerate(inner)]
    return wrap_spans(inline(text), width)


def inline(text: str) -> list[Span]:
    """Emphasis, code and links within a line."""
    if len(text) > MAX_INLINE:
        return [(text, "text")]
    spans: list[Span] = []
    at = 0
    for found in _INLINE.finditer(text):
        if found.start() > at:
            spans.append((text[at : found.start()], "text"))
        at = found.end()
        if found["code"] is not None:
            spans.append((found["code"].strip() or found["code"], "code"))
        elif found["bold"] is not None:
            spans.append((found["bold"], "value"))
        elif found["text"] is not None:
            spans += [(found["text"], "accent"), (f" ({found['url']})", "dim")]
        else:
            spans.append((found["italic"] or found["under"], "emphasis"))
    if at < len(text):
        spans.append((text[at:], "text"))
    return spans


def wrap_spans(spans: Iterable[Span], width: int) -> list[Line]:
    """Break spans at blanks, and words that are too long anywhere."""
    lines: list[Line] = [[]]
    used = 0
    for text, ink in spans:
        for word in _WORDS.findall(text):
            size = cell_len(word)
            if used + size > width and word.isspace():
                # A blank at the edge is the break.
                lines.append([])
                used = 0
                continue
            if used + size > width and used:
                lines.append([])
                used = 0
            while size > width:
                piece = (chop_cells(word, width) or [""])[0]
                if not piece:
                    # A character wider than the whole line.
                    word, size = word[1:], cell_len(word[1:])
                    continue
                lines[-1].append((piece, ink))
                lines.append([])
                word = word[len(piece) :]
                size = cell_len(word)
            if word:
                lines[-1].append((word, ink))
                used += size
    return [_joined(line) for line in lines]


def _joined(line: Line) -> Line:
    """Neighbours of one ink as one span."""
    result: Line = []
    for text, ink in line:
        if result and result[-1][1] == ink:
            result[-1] = (result[-1][0] + text, ink)
        else:
            result.append((text, ink))
    return result


def _table(rows: Sequence[str], width: int, glyphs: Glyphs) -> list[Line]:
    kept = [row.strip().strip("|").split("|") for row in rows if not _TABLE_RULE.fullmatch(row)]
    cells = [[cell.strip() for cell in row] for row in kept]
    count = max(len(row) for row in cells)
    padded = [row + [""] * (count - len(row)) for row in cells]
    spans = [[inline(cell) for cell in row] for row in padded]
    widths = [max(width_of(row[column]) for row in spans) for column in range(count)]
    while sum(widths) + 3 * (count - 1) > width and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    lines: list[Line] = []
    for number, row in enumerate(spans):
        line: Line = []
        for column, content in enumerate(row):
            shown = [(text, "value") for text, _ in content] if number == 0 else content
            line += [*fit(shown, widths[column]), (f" {glyphs.bar} " if column < count - 1 else "", "faint")]
        lines.append(line)
        if number == 0:
            lines.append([(glyphs.rule * min(width, sum(widths) + 3 * (count - 1)), "faint")])
    return lines


def _code(body: Sequence[str], language: str, width: int) -> list[Line]:
    """Code on a ground of its own; long lines go on below, nothing is cut."""
    room = max(1, width - 2)
    lines: list[Line] = []
    for spans in coloured("\n".join(body), language) if language else [[(text, "code")] for text in body]:
        pieces = _chop_spans(spans, room)
        lines += [[(" ", "code"), *fit_ink(piece, room, "code"), (" ", "code")] for piece in pieces]
    return lines or [[(" " * width, "code")]]


def fit_ink(line: Line, width: int, ink: str) -> Line:
    """Pad a line with blanks of an ink."""
    missing = width - width_of(line)
    return [*line, (" " * missing, ink)] if missing > 0 else line


def _chop_spans(spans: Line, width: int) -> list[Line]:
    lines: list[Line] = [[]]
    used = 0
    for text, ink in spans:
        while text:
            piece = (chop_cells(text, width - used) or [""])[0] if used < width else ""
            if piece:
                lines[-1].append((piece, ink))
                used += cell_len(piece)
                text = text[len(piece) :]
            elif used:
                lines.append([])
                used = 0
            else:
                text = text[1:]
    return lines


@lru_cache(maxsize=64)
def coloured(code: str, language: str) -> tuple[Line, ...]:
    """Code as lines of coloured spans; as it is where the language is unknown."""
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment, Keyword, Name, Number, String
    from pygments.util import ClassNotFound

    kinds = (
        (Comment, "code-comment"), (Keyword, "code-keyword"), (String, "code-string"), (Number, "code-number"),
        (Name.Function, "code-name"), (Name.Class, "code-name"), (Name.Builtin, "code-keyword"),
    )  # fmt: skip
    try:
        tokens = list(get_lexer_by_name(language, stripnl=False, ensurenl=False).get_tokens(code))
    except ClassNotFound:
        return tuple([(text, "code")] for text in code.split("\n"))
    lines: list[Line] = [[]]
    for kind, text in tokens:
        ink = next((name for parent, name in kinds if kind in parent), "code")
        for number, piece in enumerate(text.split("\n")):
            if number:
                lines.append([])
            if piece:
                lines[-1].append((piece, ink))
    return tuple(lines)
