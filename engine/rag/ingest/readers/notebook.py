"""Jupyter notebooks: Markdown cells as Markdown, code cells as code with their text output; images are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.errors import DocumentError
from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, read_text
from lathe.engine.rag.ingest.readers.markdown import markdown_pieces
from lathe.engine.rag.values import BlockKind, Piece

_OUTPUT = 4_000
"""Characters of one cell's output that are kept: logs are no documentation."""


def read_notebook(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the cells in order; the page of a piece is the number of its cell."""
    try:
        book = json.loads(read_text(source, notes))
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        if not isinstance(cells, list):
            raise TypeError("its cells are no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DocumentError(f"the notebook cannot be read: {error or type(error).__name__}") from error
    notes.parser = "lathe notebook 1"
    outline = Outline()
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            notes.skip(f"cell {number} is no object")
            continue
        text = _joined(cell.get("source", cell.get("input", "")))
        if cell.get("cell_type") in ("markdown", "heading"):
            for piece in markdown_pieces(text, notes, outline):
                yield Piece(piece.text, piece.kind, number, piece.heading_path)
        else:
            kind: BlockKind = "code" if cell.get("cell_type") == "code" else "cell"
            yield Piece(text.strip("\n"), kind, number, outline.path)
            yield Piece(_output(cell.get("outputs")), "cell", number, outline.path)


def _output(outputs: Any) -> str:
    parts = []
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict):
            data = output.get("data")
            plain = data.get("text/plain") if isinstance(data, dict) else None
            parts.append(_joined(output.get("text", plain or "")))
    return "\n".join(part.rstrip() for part in parts if part.strip())[:_OUTPUT]


def _joined(value: Any) -> str:
    return "".join(str(part) for part in value) if isinstance(value, list) else str(value or "")
