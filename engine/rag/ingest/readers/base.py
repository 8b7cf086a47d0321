"""What every reader is given and what readers share: the open file, the notes beside the text, headings, tables.

Invariant: a reader yields pieces in reading order and never holds a second copy of the whole text; what it cannot read
it notes and passes by, and it raises only where nothing of the file can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import BinaryIO

from lathe.engine.rag.ingest.encoding import decode
from lathe.engine.rag.ingest.errors import NeedsLibrary, TooMuch
from lathe.engine.rag.values import BlockKind, Piece, ReadLimits

MAX_DEPTH = 3
"""Documents inside documents: attachments of a forwarded message."""
_MAX_SKIPPED = 100
_MAX_METADATA = 2_000
"""Characters of one entry: what a file says about itself is foreign too."""


@dataclass(frozen=True)
class Source:
    """One document to read: a verified regular file, or bytes found inside of one."""

    name: str
    file: BinaryIO
    """Seekable, at its start."""
    size: int
    depth: int = 0


@dataclass
class Notes:
    """What readers learn beside the text."""

    limits: ReadLimits = field(default_factory=ReadLimits)
    title: str = ""
    encoding: str | None = None
    language: str | None = None
    parser: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def skip(self, part: str) -> None:
        """Note a part that could not be read; the first hundred are kept."""
        if len(self.skipped) < _MAX_SKIPPED:
            self.skipped.append(part)

    def say(self, name: str, value: object) -> None:
        """Note what the file says about itself; empty values are nothing."""
        text = str(value).strip()[:_MAX_METADATA] if value is not None else ""
        if text:
            self.metadata[name] = text


Reader = Callable[[Source, Notes], Iterator[Piece]]


def library(name: str) -> ModuleType:
    """Import a parser's library.

    Raises:
        NeedsLibrary: the extra `rag` is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        raise NeedsLibrary(
            f"reading this format needs the library {root}", hint='pip install "lathe-llm[rag]"'
        ) from error


def read_text(source: Source, notes: Notes, declared: str | None = None) -> str:
    """The whole file as text; its encoding and replaced characters are noted.

    Raises:
        TooMuch: it cannot fit into the limit of text, said before it is read.
        NotADocument: it is binary.
    """
    limit = notes.limits.output_chars
    if source.size > 4 * limit:  # no encoding needs more bytes for a character
        raise too_much_text(limit)
    decoded = decode(source.file.read(), declared)
    if len(decoded.text) > limit:
        raise too_much_text(limit)
    notes.encoding = notes.encoding or decoded.encoding
    if decoded.replaced:
        notes.flags["replaced"] += decoded.replaced
    return decoded.text


def too_much_text(limit: int) -> TooMuch:
    """The error of a document that is larger than a document should be."""
    return TooMuch(f"the document has more than {limit:,} characters of text", hint="split the file")


class Outline:
    """The headings above the place that is being read."""

    def __init__(self, base: Sequence[str] = ()) -> None:
        self._base = tuple(base)
        self._open: list[tuple[int, str]] = []

    @property
    def path(self) -> tuple[str, ...]:
        """Outermost first."""
        return (*self._base, *(title for _, title in self._open))

    def enter(self, level: int, title: str) -> tuple[str, ...]:
        """Open a heading, closing those of its level and below; returns its own path."""
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, " ".join(title.split())[:300]))
        return self.path


def table_pieces(
    rows: Iterable[Sequence[str]],
    *,
    kind: BlockKind = "row",
    header: Sequence[str] | None = None,
    page: int | None = None,
    heading_path: tuple[str, ...] = (),
) -> Iterator[Piece]:
    """Rows as text that stands by itself, `Name: Ada; Born: 1815`; without `header` the first row may be one."""
    pending = iter(rows)
    if header is None:
        first = next((row for row in pending if any(cell.strip() for cell in row)), None)
        if first is None:
            return
        if not is_header(first):
            yield Piece(row_text((), first), kind, page, heading_path)
            header = ()
        else:
            second = next(pending, None)
            if second is None:
                yield Piece(row_text((), first), kind, page, heading_path)
                return
            header = first
            yield Piece(row_text(header, second), kind, page, heading_path)
    for row in pending:
        yield Piece(row_text(header, row), kind, page, heading_path)


def is_header(row: Sequence[str]) -> bool:
    """Every cell that is filled is a short name and no number, and no two are the same."""
    names = [cell.strip() for cell in row if cell.strip()]
    return (
        len(names) >= 2
        and len(set(names)) == len(names)
        and all(len(name) <= 80 and not _is_number(name) for name in names)
    )


def row_text(header: Sequence[str], cells: Sequence[str]) -> str:
    """One row in words; cells without a name stand alone, empty cells are left out."""
    filled = [cell for cell in cells if cell.strip()]
    if not header and len(filled) == 2 and len(filled[0]) <= 60 and not _is_number(filled[0]):
        return ": ".join(" ".join(cell.split()) for cell in filled)  # a fact sheet: `Founded: 1975`
    parts = []
    for place, cell in enumerate(cells):
        value = " ".join(cell.split())
        name = " ".join(header[place].split()) if place < len(header) else ""
        if value:
            parts.append(f"{name}: {value}" if name and name != value else value)
    return "; ".join(parts)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").lstrip("+-$€£ ").isdigit()
