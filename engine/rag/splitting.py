"""Cut a document into passages by its structure, to a token budget of the embedder's own tokenizer.

    blocks -> atoms (a block, or its lines, sentences, words, characters where it is too long) -> packed into passages
A passage never crosses from one section into another, except that sections too small to stand alone are joined; a
heading goes with what follows it. Invariant: a passage is one span of the document's text and fits the budget, and
every visible character of every block lies in at least one passage.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from lathe.engine.rag.ingest.findings import inherited_flags
from lathe.engine.rag.values import Block, ParsedDocument, Passage
from lathe.store.rag.values import NewPassage, SplitterSettings

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text, without special tokens."""

CHARS_PER_TOKEN = 12
"""No passage is longer than this per token of budget: some tokenizers take any long run of characters for one token."""
_SENTENCES = re.compile(r"\S.*?(?:[.!?…]['\"”’)\]]*(?=\s)|[。！？]|\Z)", re.DOTALL)
_LEVELS = (re.compile(r"[^\n]*\S[^\n]*"), _SENTENCES, re.compile(r"\S+"))
"""Lines, sentences, words; after them come single characters."""
_HEADING_SHARE = 3
"""A heading line may take up one third of the budget at most."""
_GRAIN = 8
"""Parts of a block that had to be cut are about an eighth of the budget, so that passages fill up and can overlap."""
_BATCH = 256
"""Texts counted at a time."""
_SMALL_SHARE = 4
"""A section below a quarter of the budget is joined with the next one."""


class Atom(NamedTuple):
    """A span that is not cut any further."""

    start: int
    end: int
    tokens: int
    block: Block


class Cut:
    """A passage in the making."""

    def __init__(self, start: int = 0, overlap: int = 0) -> None:
        self.atoms: list[Atom] = []
        self.start = start
        """Before the first atom where text of the passage before is repeated."""
        self.overlap = overlap
        """Tokens repeated."""
        self.tokens = overlap
        self.path: tuple[str, ...] = ()
        """The headings that all atoms stand under."""

    @classmethod
    def of(cls, atoms: Sequence[Atom]) -> Cut:
        """A passage of given atoms that repeats nothing."""
        cut = cls()
        for atom in atoms:
            cut.add(atom)
        return cut

    @property
    def end(self) -> int:
        return self.atoms[-1].end

    def add(self, atom: Atom) -> None:
        """Take one more atom."""
        if not self.atoms:
            self.start = self.start if self.overlap else atom.start
        self.path = self.path_with(atom)
        self.atoms.append(atom)
        self.tokens += atom.tokens

    def path_with(self, atom: Atom) -> tuple[str, ...]:
        """The common headings, were the atom taken."""
        path = atom.block.heading_path
        if not self.atoms or path == self.path:
            return path
        differs = next((i for i, (a, b) in enumerate(zip(self.path, path, strict=False)) if a != b), None)
        return self.path[: min(len(self.path), len(path)) if differs is None else differs]

    @property
    def only_headings(self) -> bool:
        return all(atom.block.kind == "heading" for atom in self.atoms)


class Splitter:
    """Cuts documents for one embedder."""

    def __init__(self, count: Count, settings: SplitterSettings, max_tokens: int, reserved: int) -> None:
        """`reserved` tokens of the budget go to special tokens and the prefix of passages."""
        self._count = count
        self._settings = settings
        self._budget = max(8, min(settings.tokens, max_tokens) - reserved)
        self._headings: dict[str, tuple[str, int]] = {}

    def split(self, document: ParsedDocument) -> list[Passage]:
        """Cut one document."""
        if self._settings.whole:
            return self._whole(document)
        settled = self._settle(document, self._pack(document, self._atoms(document)))
        return [_passage(document, ordinal, cut, tokens) for ordinal, (cut, tokens) in enumerate(settled)]

    def stored(self, document: ParsedDocument) -> list[NewPassage]:
        """Cut one document into rows for a store."""
        return [
            NewPassage(
                ordinal=passage.ordinal, text=passage.text,
                heading=self.heading(document.title, passage.heading_path), heading_path=passage.heading_path,
                start=passage.start, end=passage.end, page=passage.page, kind=passage.kind, tokens=passage.tokens,
                flags=passage.flags,
            )
            for passage in self.split(document)
        ]  # fmt: skip

    def _settle(self, document: ParsedDocument, cuts: list[Cut]) -> list[tuple[Cut, int]]:
        """Count passages as they will be embedded; a tokenizer that joins across white space may find one too long."""
        settled: list[tuple[Cut, int]] = []
        counts = self._count_all([document.text[cut.start : cut.end] for cut in cuts])
        for cut, tokens in zip(cuts, counts, strict=True):
            if tokens <= self._room(document.title, cut.path):
                settled.append((cut, tokens))
            elif cut.overlap:
                settled += self._settle(document, [Cut.of(cut.atoms)])
            elif len(cut.atoms) == 1:
                settled.append((cut, tokens))
            else:
                settled += self._settle(document, _bisected(cut))
        return settled

    def heading(self, title: str, path: tuple[str, ...]) -> str:
        """The line that is embedded and searched before a passage: title and headings, cut to its share."""
        if not self._settings.headings:
            return ""
        line = " › ".join(dict.fromkeys(" ".join(part.split()) for part in (title, *path) if part.strip()))
        return self._heading(line)[0]

    def _heading(self, line: str) -> tuple[str, int]:
        if not line:
            return "", 0
        if line not in self._headings:
            limit = self._budget // _HEADING_SHARE
            kept = line[: limit * CHARS_PER_TOKEN]
            [tokens] = self._count([kept])
            while tokens > limit and " " in kept:
                kept = kept.rpartition(" ")[0]
                [tokens] = self._count([kept])
            self._headings[line] = (kept, tokens) if tokens <= limit else ("", 0)
        return self._headings[line]

    def _room(self, title: str, path: tuple[str, ...]) -> int:
        heading = self.heading(title, path)
        return self._budget - (self._heading(heading)[1] if heading else 0)

    def _whole(self, document: ParsedDocument) -> list[Passage]:
        if not document.blocks:
            return []
        first, last = document.blocks[0], document.blocks[-1]
        [tokens] = self._count([document.text[first.start : last.end]])
        return [_passage(document, 0, Cut.of([Atom(first.start, last.end, tokens, first)]), tokens)]

    # -- atoms ---------------------------------------------------------------------------------------------------
    def _atoms(self, document: ParsedDocument) -> list[Atom]:
        text = document.text
        spans = [_trimmed(text, block.start, block.end) for block in document.blocks]
        whole = [(span, block) for span, block in zip(spans, document.blocks, strict=True) if span[0] < span[1]]
        rooms = [self._room(document.title, block.heading_path) for _, block in whole]
        short = [end - start <= room * CHARS_PER_TOKEN for ((start, end), _), room in zip(whole, rooms, strict=True)]
        counts = iter(self._count_all([text[s:e] for ((s, e), _), fits in zip(whole, short, strict=True) if fits]))
        atoms: list[Atom] = []
        for ((start, end), block), room, fits in zip(whole, rooms, short, strict=True):
            tokens = next(counts) if fits else room + 1
            atoms += self._fine(text, Atom(start, end, tokens, block), room)
        return atoms

    def _fine(self, text: str, atom: Atom, room: int, level: int = 0) -> list[Atom]:
        """Cut an atom that is too long at the coarsest level where its parts fit."""
        if atom.tokens <= room and atom.end - atom.start <= room * CHARS_PER_TOKEN:
            return [atom]
        if level < len(_LEVELS):
            found = [match.span() for match in _LEVELS[level].finditer(text, atom.start, atom.end)]
            spans = [span for span in (_trimmed(text, *span) for span in found) if span[0] < span[1]]
        else:
            spans = list(_halves(text, atom.start, atom.end, room * CHARS_PER_TOKEN))
        if spans == [(atom.start, atom.end)]:
            return [atom] if level > len(_LEVELS) else self._fine(text, atom, room, level + 1)
        fits = [end - start <= room * CHARS_PER_TOKEN for start, end in spans]
        counts = iter(self._count_all([text[s:e] for (s, e), short in zip(spans, fits, strict=True) if short]))
        parts: list[Atom] = []
        for (start, end), short in zip(spans, fits, strict=True):
            part = Atom(start, end, next(counts) if short else room + 1, atom.block)
            parts += self._fine(text, part, room, min(level + 1, len(_LEVELS)))
        return list(_joined(parts, max(1, room // _GRAIN)))

    # -- passages ------------------------------------------------------------------------------------------------
    def _pack(self, document: ParsedDocument, atoms: list[Atom]) -> list[Cut]:
        cuts: list[Cut] = []
        current = Cut()
        for atom in atoms:
            if current.atoms and not self._takes(document, current, atom):
                closed, current = self._close(document, current, atom)
                cuts.append(closed)
            current.add(atom)
        if current.atoms:
            cuts.append(current)
        return cuts

    def _takes(self, document: ParsedDocument, current: Cut, atom: Atom) -> bool:
        room = self._room(document.title, current.path_with(atom))
        if current.tokens + atom.tokens > room or atom.end - current.start > room * CHARS_PER_TOKEN:
            return False
        same = current.atoms[-1].block.heading_path == atom.block.heading_path
        return same or current.tokens < self._budget // _SMALL_SHARE or current.only_headings

    def _close(self, document: ParsedDocument, current: Cut, following: Atom) -> tuple[Cut, Cut]:
        """End a passage; headings at its end go to the next, which else may repeat the end of this one."""
        if not current.only_headings and current.atoms[-1].block.kind == "heading":
            last = len(current.atoms)
            while current.atoms[last - 1].block.kind == "heading":
                last -= 1
            moved = Cut.of(current.atoms[last:])
            if moved.tokens + following.tokens <= self._room(document.title, moved.path_with(following)):
                closed = Cut(current.start, current.overlap)
                for atom in current.atoms[:last]:
                    closed.add(atom)
                return closed, moved
        if current.atoms[-1].block.heading_path != following.block.heading_path:
            return current, Cut()
        room = self._room(document.title, following.block.heading_path)
        allowed = min(self._settings.overlap, room - following.tokens)
        return current, Cut(*self._tail(document.text, current.start, current.end, allowed))

    def _tail(self, text: str, first: int, end: int, allowed: int) -> tuple[int, int]:
        """Where the last `allowed` tokens of a span begin, at a sentence if one begins there, else at a word."""
        low = max(first + 1, end - allowed * CHARS_PER_TOKEN)
        if allowed <= 0 or low >= end:
            return end, 0
        for level in (1, 2):
            starts = [match.start() for match in _LEVELS[level].finditer(text, low, end)]
            starts = [start for start in starts if start == 0 or text[start - 1].isspace()]
            counts = self._count_all([text[start:end] for start in starts[-allowed:]])
            for start, tokens in zip(starts[-allowed:], counts, strict=True):
                if 0 < tokens <= allowed:
                    return start, tokens
        return end, 0

    def _count_all(self, texts: Sequence[str]) -> list[int]:
        """Count in portions, so that a long document does not become one huge batch of encodings."""
        counts: list[int] = []
        for first in range(0, len(texts), _BATCH):
            counts += self._count(texts[first : first + _BATCH])
        return counts


def _joined(parts: Sequence[Atom], grain: int) -> Iterator[Atom]:
    """Put tiny neighbouring parts together, so that a page of words is not a thousand atoms."""
    current: Atom | None = None
    for part in parts:
        if current is None:
            current = part
        elif current.tokens + part.tokens <= grain and part.end - current.start <= grain * CHARS_PER_TOKEN:
            current = Atom(current.start, part.end, current.tokens + part.tokens, part.block)
        else:
            yield current
            current = part
    if current is not None:
        yield current


def _bisected(cut: Cut) -> list[Cut]:
    middle = len(cut.atoms) // 2
    return [Cut.of(cut.atoms[:middle]), Cut.of(cut.atoms[middle:])]


def _halves(text: str, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a run of characters into equal parts, never between a character and its combining marks."""
    parts = max(2, -(-(end - start) // max(1, longest)))
    edges = [start]
    for part in range(1, parts):
        edge = start + (end - start) * part // parts
        while edge < end and unicodedata.combining(text[edge]):
            edge += 1
        if edges[-1] < edge < end:
            edges.append(edge)
    edges.append(end)
    yield from pairwise(edges)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _passage(document: ParsedDocument, ordinal: int, cut: Cut, tokens: int) -> Passage:
    first = cut.atoms[0].block
    return Passage(
        ordinal=ordinal, text=document.text[cut.start : cut.end], start=cut.start, end=cut.end, tokens=tokens,
        kind=first.kind, page=first.page, heading_path=cut.path,
        flags=inherited_flags(atom.block for atom in cut.atoms),
    )  # fmt: skip
