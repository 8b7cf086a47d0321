"""An answer from a store as lines: the text with its citations, what each sentence rests on, how passages were found.

Answer and passages are foreign text. Invariant: a citation is lit only where the model was given that passage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lathe.engine.rag.requests import Answered, Checked, Citation, Hit, PassageView, SearchResult
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, bar, wrap
from rich.cells import cell_len

HITS = (
    Column("#", ">", least=2),
    Column("score", ">", rank=3, least=6),
    Column("vec", ">", rank=1, least=3),
    Column("words", ">", rank=1, least=5),
    Column("rerank", ">", rank=5, least=3),
    Column("page", ">", rank=4, least=4),
    Column("source", least=12, most=40, flex=True, sort="path", end=True),
    Column("text", least=12, most=200, flex=True),
)
_CITATION = re.compile(r"\[(\d{1,3})\]")
_BLANKS = re.compile(r"\n(?:[ \t]*\n){2,}")
"""More than one empty line, which weak models write by the dozen, would push what follows out of sight."""
_FULL_NATS = 3.0
"""Nats per token that fill a support bar."""
_KEPT = 20_000
"""Characters of an answer that are laid out."""


def hit_rows(result: SearchResult, given: Sequence[Citation]) -> list[Row]:
    """What was found, numbered as it is cited; what the model was not given has no number."""
    numbers = {citation.passage.id: citation.number for citation in given}
    return [_hit(hit, numbers) for hit in result.hits]


def _hit(hit: Hit, numbers: Mapping[int, int]) -> Row:
    passage, number = hit.passage, numbers.get(hit.passage.id)
    lit = "text" if number is not None else "dim"

    def rank(source: str) -> Cell:
        found = hit.sources.get(source)
        return (str(found.rank), lit) if found else (formats.NONE, "faint")

    cells: tuple[Cell, ...] = (
        (f"[{number}]" if number is not None else "", "accent"),
        (f"{hit.score:.4f}", "dim"),
        rank("dense"),
        rank("bm25"),
        rank("rerank"),
        (str(passage.page) if passage.page is not None else formats.NONE, "dim"),
        (passage.path, lit),
        (passage.text, lit),
    )
    return Row(str(passage.id), cells, {"path": passage.path, "text": passage.text, "score": hit.score})


def explain(hit: Hit) -> str:
    """How a passage was found: rank and score of every source."""
    names = {"dense": "vectors", "bm25": "words", "rerank": "reranker"}
    said = [f"{names.get(name, name)} #{one.rank} ({one.score:.3g})" for name, one in hit.sources.items()]
    return ", ".join(said) or "found by no source"


def timings(result: SearchResult) -> str:
    """`6.0 ms (embed 4.0 ms, dense 1.0 ms)`."""
    parts = [f"{name} {formats.latency(took)}" for name, took in result.timings.items() if name != "total"]
    total = formats.latency(result.timings.get("total"))
    return f"{total} ({', '.join(parts)})" if parts else total


def answer_lines(
    text: str,
    given: Sequence[Citation],
    answered: Answered | None,
    checked: Checked | None,
    width: int,
    glyphs: Glyphs,
) -> list[Line]:
    """The answer, then the support of each of its sentences."""
    numbers = {citation.number for citation in given}
    lines: list[Line] = []
    for paragraph in _BLANKS.sub("\n\n", clean(text[:_KEPT])).strip("\n").split("\n"):
        lines += [_cited(line, numbers) for line in wrap(paragraph, width, "text", 10_000)] if paragraph else [[]]
    if answered is not None and answered.in_documents and not text.strip():
        lines = [[("The model answered nothing. ", "warn"), ("Another one, or fewer passages, may do better.", "dim")]]
    if answered is not None and not answered.in_documents:
        lines += [[], [(f"{glyphs.warn} Not in the documents: ", "warn"),
                       ("what was found is no answer. A asks all the same.", "dim")]]  # fmt: skip
    if checked is not None:
        lines += [[], *_support(checked, given, width, glyphs)]
    return lines


def _cited(line: Line, numbers: set[int]) -> Line:
    """Light the citations of passages that were given; others are a warning."""
    text = "".join(span for span, _ in line)
    found: Line = []
    at = 0
    for match in _CITATION.finditer(text):
        found += [(text[at : match.start()], "text")] if match.start() > at else []
        found.append((match[0], "accent" if int(match[1]) in numbers else "bad"))
        at = match.end()
    return [*found, (text[at:], "text")] if at < len(text) or not found else found


def _support(checked: Checked, given: Sequence[Citation], width: int, glyphs: Glyphs) -> list[Line]:
    if checked.problem:
        return wrap(f"Support was not measured: {checked.problem}", width, "warn", 2)
    if not checked.sentences:
        return []
    good = sum(sentence.supported for sentence in checked.sentences)
    lines: list[Line] = [
        [("Support ", "title"), (f"{good} of {len(checked.sentences)} sentences", "good" if good else "warn"),
         ("   nats per token that the passages add", "dim")]
    ]  # fmt: skip
    for sentence in checked.sentences:
        ink = "good" if sentence.supported else "warn"
        sign = glyphs.good if sentence.supported else glyphs.warn
        head: Line = [(f"{sign} ", ink), *bar(max(0.0, sentence.gain) / _FULL_NATS, 12, glyphs, ink)]
        head.append((f" {sentence.gain:5.2f}  ", "value"))
        ranked = sorted(zip(given, sentence.passages, strict=False), key=lambda pair: -pair[1])
        for citation, lost in ranked[:4]:
            if lost > 0.05:
                head.append((f"[{citation.number}] {lost:.1f}  ", "accent"))
        room = max(10, width - 4)
        lines += [head, *([("    ", "dim"), *line] for line in wrap(sentence.text, room, "dim", 2))]
    return lines


def passage_lines(found: PassageView, hit: Hit | None, width: int, glyphs: Glyphs) -> list[Line]:
    """A passage in its surroundings: what is around it is dim."""
    passage = found.passage
    where = [passage.path, f"page {passage.page}" if passage.page is not None else "", passage.heading]
    lines: list[Line] = [[(one_line(f" {glyphs.separator} ".join(part for part in where if part), width), "title")]]
    if hit is not None:
        lines.append([(one_line(explain(hit), width), "dim")])
    lines.append([(f"characters {passage.start:,} to {passage.end:,}   {passage.tokens} tokens", "dim")])
    lines.append([])
    before, own, after = found.text[: found.start], found.text[found.start : found.end], found.text[found.end :]
    for text, ink in ((before, "dim"), (own, "text"), (after, "dim")):
        for paragraph in clean(text).strip("\n").split("\n") if text.strip() else []:
            lines += [_marked(line, ink, width, glyphs) for line in wrap(paragraph, width - 2, ink, 10_000)]
    return lines


def own_start(lines: Sequence[Line]) -> int:
    """The line of `passage_lines` where the passage itself begins."""
    return next((row for row, line in enumerate(lines) if line and line[0][1] == "accent" and line[0][0].strip()), 0)


def _marked(line: Line, ink: str, width: int, glyphs: Glyphs) -> Line:
    """The passage itself has a bar beside it, so that it is told apart without colour."""
    mark = glyphs.cursor if ink == "text" else " "
    return [(f"{mark} "[: max(1, width)], "accent"), *line] if cell_len(mark) == 1 else line


def pace(answered: Answered | None, first_s: float | None) -> tuple[str, ...]:
    """What the answer cost."""
    if answered is None:
        return ()
    parts = [f"first {formats.latency(first_s)}"] if first_s is not None else []
    usage, timing = answered.usage, answered.timing
    if usage is not None:
        parts.append(f"prompt {usage.prompt_tokens}")
        if timing is not None and timing.decode_s > 0 and usage.completion_tokens > 1:
            parts.append(f"{formats.rate((usage.completion_tokens - 1) / timing.decode_s)} tok/s")
    return tuple(parts)
