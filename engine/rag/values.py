"""The values between reading, splitting, embedding and storing. Pure: nothing here does I/O.

    file -> read -> ParsedDocument -> clean -> ParsedDocument -> split -> Passage -> embed, store
Invariant: `document.text` is the only text there is; blocks and passages are spans of it, in code points, so a
citation can always be shown in its surroundings: `document.text[passage.start:passage.end] == passage.text`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

BlockKind = Literal["heading", "paragraph", "list", "code", "row", "table", "quote", "caption", "cell", "record"]
"""`row`: of a table, its header repeated in words; `cell`: of a notebook; `record`: of CSV or JSON lines."""
SEPARATOR = "\n\n"
"""Stands between two blocks in the text of a document."""


class Piece(msgspec.Struct, frozen=True):
    """A block as a parser finds it, before it has a place in the document's text."""

    text: str
    kind: BlockKind = "paragraph"
    page: int | None = None
    """From 1; of a PDF, a slide or a sheet."""
    heading_path: tuple[str, ...] = ()
    """The headings above it, outermost first; a heading's own path ends with itself."""


class Block(msgspec.Struct, frozen=True):
    """A span of a document's text with its place in the structure."""

    start: int
    end: int
    kind: BlockKind = "paragraph"
    page: int | None = None
    heading_path: tuple[str, ...] = ()
    flags: dict[str, int] | None = None
    """Findings inside this block, as in `ParsedDocument.flags`; passages made of it inherit them."""


class ParsedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a parser made of one file; cleaning turns one into another."""

    path: str
    """Absolute path of the file as it was read."""
    media_type: str
    """Such as `text/markdown`; found from the content first, the extension second."""
    text: str
    blocks: tuple[Block, ...]
    """In order, without overlap; text outside of blocks separates them and is never embedded."""
    title: str = ""
    language: str | None = None
    """ISO 639-1, where it could be told."""
    encoding: str | None = None
    """Of text files: what the bytes were decoded as."""
    parser: str = ""
    """Library and version, such as `pypdf 6.14`; part of the recipe."""
    metadata: dict[str, str] = {}
    """What the file says about itself: author, date, sender."""
    flags: dict[str, int] = {}
    """Kind of finding -> count: `hidden`, `comment`, `control`, `bidi`, `zero_width`, `tag`, `combining`, `replaced`,
    `injection`, `template_token`, `email`, `phone`, `card`, `iban`, `identity`, `secret`."""
    skipped: tuple[str, ...] = ()
    """Parts that could not be read, one line each, while the rest could."""
    sha256: str = ""
    """Of the file's bytes as they were read: what tells a changed file from a touched one."""
    file_bytes: int = 0
    modified_ns: int = 0
    """Modification time of the file, nanoseconds since 1970."""

    def text_of(self, block: Block) -> str:
        """The block's own text."""
        return self.text[block.start : block.end]


class ReadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What reading one file may cost before it becomes an error row."""

    file_bytes: int = 512 * 1024 * 1024
    memory_bytes: int = 1024 * 1024 * 1024
    cpu_s: float = 30.0
    wall_s: float = 60.0
    output_chars: int = 50 * 1024 * 1024


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document small enough for the embedder: the unit of search and citation."""

    ordinal: int
    """From 0, in the order of the document."""
    text: str
    start: int
    end: int
    tokens: int
    """By the embedder's own tokenizer, without special tokens."""
    kind: BlockKind = "paragraph"
    """Of its first block."""
    page: int | None = None
    heading_path: tuple[str, ...] = ()
    flags: dict[str, int] = {}


def assemble(pieces: Iterable[Piece]) -> tuple[str, tuple[Block, ...]]:
    """Join pieces into one text and the blocks that point into it; pieces of nothing but white space are dropped."""
    texts: list[str] = []
    blocks: list[Block] = []
    position = 0
    for piece in pieces:
        if not piece.text.strip():
            continue
        if texts:
            texts.append(SEPARATOR)
            position += len(SEPARATOR)
        blocks.append(Block(position, position + len(piece.text), piece.kind, piece.page, piece.heading_path))
        texts.append(piece.text)
        position += len(piece.text)
    return "".join(texts), tuple(blocks)
