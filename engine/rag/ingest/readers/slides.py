"""PPTX through python-pptx: one page per slide, its title as the heading, then shapes, tables, charts and notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.archive import check_parts, open_archive
from lathe.engine.rag.ingest.errors import DocumentError
from lathe.engine.rag.ingest.readers.base import Notes, Source, library, table_pieces
from lathe.engine.rag.values import Piece

_MAX_NESTING = 20
"""Groups within groups."""


def read_slides(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield every slide's text in the order of the slides, hidden slides counted and left out."""
    pptx = library("pptx")
    check_parts(open_archive(source.file))
    source.file.seek(0)
    try:
        deck = pptx.Presentation(source.file)
        slides = list(deck.slides)
    except MemoryError:
        raise
    except Exception as error:
        raise DocumentError(f"the presentation cannot be opened: {error or type(error).__name__}") from error
    notes.parser = f"python-pptx {pptx.__version__}"
    for name in ("title", "author", "subject", "keywords", "modified"):
        notes.say(name, getattr(deck.core_properties, name, None))
    notes.title = notes.metadata.get("title", "")
    for number, slide in enumerate(slides, 1):
        if slide.element.get("show") in ("0", "false"):
            notes.flags["hidden"] += 1
            continue
        try:
            yield from _slide(slide, number, notes)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001
            notes.skip(f"slide {number}: {str(error)[:200] or type(error).__name__}")


def _slide(slide: Any, number: int, notes: Notes) -> Iterator[Piece]:
    shape = slide.shapes.title
    title = " ".join(shape.text_frame.text.split()) if shape is not None and shape.has_text_frame else ""
    path = (title,) if title else ()
    if title:
        notes.title = notes.title or title
        yield Piece(title, "heading", number, path)
    own = shape.shape_id if shape is not None else None
    for found in _shapes(slide.shapes):
        if found.shape_id == own:
            continue
        if getattr(found, "has_table", False):
            rows = [[cell.text for cell in row.cells] for row in found.table.rows]
            yield from table_pieces(rows, page=number, heading_path=path)
        elif getattr(found, "has_chart", False):
            yield from _chart(found.chart, number, path)
        elif found.has_text_frame:
            lines = [paragraph.text.replace("\v", "\n").strip() for paragraph in found.text_frame.paragraphs]
            yield Piece("\n".join(line for line in lines if line), "paragraph", number, path)
        elif words := (found.element.xpath(".//p:cNvPr/@descr") or [""])[0]:
            yield Piece(str(words).strip(), "caption", number, path)
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None:
        yield Piece(frame.text.replace("\v", "\n").strip(), "paragraph", number, (*path, "Notes"))


def _shapes(shapes: Any) -> Iterator[Any]:
    """Shapes in reading order (top to bottom, then left to right), groups opened."""
    waiting = [(shape, 0) for shape in reversed(_ordered(shapes))]
    while waiting:
        shape, depth = waiting.pop()
        if hasattr(shape, "shapes") and depth < _MAX_NESTING:
            waiting.extend((inner, depth + 1) for inner in reversed(_ordered(shape.shapes)))
        else:
            yield shape


def _ordered(shapes: Any) -> list[Any]:
    return sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0))


def _chart(chart: Any, number: int, path: tuple[str, ...]) -> Iterator[Piece]:
    """The chart's data as rows: category, then the value of each series."""
    title = chart.chart_title.text_frame.text if chart.has_title and chart.chart_title.has_text_frame else "Chart"
    plot = chart.plots[0]
    categories = [str(category) for category in plot.categories]
    series = [(str(line.name), list(line.values)) for line in plot.series]
    header = [title, *(name for name, _ in series)]
    rows = [
        [
            category,
            *("" if place >= len(values) or values[place] is None else f"{values[place]:g}" for _, values in series),
        ]
        for place, category in enumerate(categories)
    ]
    yield from table_pieces(rows, header=header, page=number, heading_path=path)
