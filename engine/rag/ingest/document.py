"""One file becomes one document: recognise, read, assemble under the cap, clean. Runs inside the limited child.

Invariant: the text of a document never exceeds `output_chars`, however much its parser would yield.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from lathe.engine.rag.ingest.errors import NoText
from lathe.engine.rag.ingest.readers.base import Notes, Source, too_much_text
from lathe.engine.rag.ingest.recognise import Format, recognise
from lathe.engine.rag.values import SEPARATOR, ParsedDocument, Piece, assemble

_BLOCK_CHARS = 24
"""What a block costs beside its text; it counts against the cap, so that ten million short blocks meet it too."""


def read_pieces(source: Source, notes: Notes, found: Format | None = None) -> Iterator[Piece]:
    """Yield the pieces of a document of any format."""
    found = found or recognise(source.name, source.file)
    module, _, function = found.reader.partition(":")
    reader = getattr(import_module(f"lathe.engine.rag.ingest.readers.{module}"), function)
    yield from reader(source, notes, read_pieces) if found.messages else reader(source, notes)


def parse(source: Source, notes: Notes, path: str) -> ParsedDocument:
    """Read one document.

    Raises:
        LatheError: why it cannot be read; `errors.py` lists the kinds.
    """
    found = recognise(source.name, source.file)
    text, blocks = assemble(_capped(read_pieces(source, notes, found), notes.limits.output_chars))
    if not text:
        raise NoText("the document has no text" + (f": {notes.skipped[0]}" if notes.skipped else ""))
    return ParsedDocument(
        path=path,
        media_type=found.media_type,
        text=text,
        blocks=blocks,
        title=notes.title,
        language=notes.language,
        encoding=notes.encoding,
        parser=notes.parser,
        metadata=dict(notes.metadata),
        flags=dict(notes.flags),
        skipped=tuple(notes.skipped),
    )


def _capped(pieces: Iterator[Piece], limit: int) -> Iterator[Piece]:
    room = limit
    for piece in pieces:
        room -= len(piece.text) + len(SEPARATOR) + _BLOCK_CHARS
        if room < 0:
            raise too_much_text(limit)
        yield piece
