"""DOCX through python-docx: headings, paragraphs, lists, tables, notes; no deleted text, hidden text counted.

python-docx opens the package and knows the styles. The text itself is taken from the XML, because its `Paragraph.text`
passes by insertions under review, content controls and equations, all of which a reader sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.archive import check_parts, open_archive
from lathe.engine.rag.ingest.errors import DocumentError
from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, library, table_pieces
from lathe.engine.rag.values import Piece

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_BLANKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_WRAPPERS = frozenset({f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml", f"{_W}smartTag"})
_PASSED = frozenset({f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", f"{_W}rPr", f"{_W}instrText", f"{_W}delText"})
_HEADING = re.compile(r"(?:heading|überschrift|titre|título|titolo|rubrik|kop)\s*([1-9])", re.IGNORECASE)
_EXTRAS = ("footnotes", "endnotes")


def read_word(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the blocks of the body in order, then foot- and endnotes."""
    docx = library("docx")
    check_parts(open_archive(source.file))
    source.file.seek(0)
    try:
        document = docx.Document(source.file)
    except MemoryError:
        raise
    except Exception as error:
        raise DocumentError(f"the Word file cannot be opened: {error or type(error).__name__}") from error
    notes.parser = f"python-docx {docx.__version__}"
    properties = document.core_properties
    for name in ("title", "author", "subject", "keywords", "modified"):
        notes.say(name, getattr(properties, name, None))
    notes.title = notes.metadata.get("title", "")
    levels = _levels(document)
    outline = Outline()
    for element in _children(document.element.body, f"{_W}p", f"{_W}tbl"):
        if element.tag == f"{_W}tbl":
            rows = [[_text(cell, notes) for cell in _children(row, f"{_W}tc")] for row in _children(element, f"{_W}tr")]
            yield from table_pieces(rows, heading_path=outline.path)
            continue
        text = _text(element, notes).strip("\n")
        level = _level(element, levels)
        if level and text.strip():
            notes.title = notes.title or text.strip()
            yield Piece(text.strip(), "heading", None, outline.enter(level, text))
        elif element.find(f"{_W}pPr/{_W}numPr") is not None:
            yield Piece(f"- {text.strip()}" if text.strip() else "", "list", None, outline.path)
        else:
            yield Piece(text, "paragraph", None, outline.path)
    yield from _apart(document, notes)


def _children(parent: Any, *kinds: str) -> Iterator[Any]:
    """The children of some kinds, also those inside content controls; what a child holds is its own, tables too."""
    waiting = list(reversed(parent))
    while waiting:
        element = waiting.pop()
        if element.tag in kinds:
            yield element
        elif element.tag in _WRAPPERS:
            waiting.extend(reversed(element))


def _text(element: Any, notes: Notes) -> str:
    """The visible text below an element; iterative, because nesting is the file's choice."""
    parts: list[str] = []
    walker = library("lxml.etree").iterwalk(element, events=("start", "end"))
    for event, node in walker:
        tag = node.tag
        if event == "end":
            if tag == f"{_W}p" and node is not element:
                parts.append("\n")
            continue
        if tag in _PASSED:
            walker.skip_subtree()
        elif tag == f"{_W}r" and _vanishes(node):
            if any((text.text or "").strip() for text in node.iter(f"{_W}t")):
                notes.flags["hidden"] += 1
            walker.skip_subtree()
        elif tag in (f"{_W}t", f"{_M}t"):
            parts.append(node.text or "")
        elif tag in _BLANKS:
            parts.append(_BLANKS[tag])
    return "".join(parts).strip("\n")


def _vanishes(run: Any) -> bool:
    """The run is hidden, white, or too small to be seen."""
    look = run.find(f"{_W}rPr")
    if look is None:
        return False
    vanish = look.find(f"{_W}vanish")
    if vanish is not None and vanish.get(f"{_W}val") not in ("0", "false"):
        return True
    colour, shade, size = look.find(f"{_W}color"), look.find(f"{_W}shd"), look.find(f"{_W}sz")
    white = colour is not None and (colour.get(f"{_W}val") or "").upper() == "FFFFFF"
    if white and shade is None and look.find(f"{_W}highlight") is None and not _on_dark_ground(run):
        return True
    half_points = size.get(f"{_W}val") if size is not None else None
    return half_points is not None and half_points.isdigit() and int(half_points) <= 2


def _on_dark_ground(run: Any) -> bool:
    """White text is an ordinary heading of a shaded table cell or paragraph."""
    return any(
        above.find(f"{_W}{kind}/{_W}shd") is not None for above in run.iterancestors() for kind in ("tcPr", "pPr")
    )


def _levels(document: Any) -> dict[str, int]:
    """Style id -> heading level, by the style's name or its outline level, inherited."""
    levels: dict[str, int] = {}
    for style in document.styles.element.iter(f"{_W}style"):
        identity = style.get(f"{_W}styleId") or ""
        name = style.find(f"{_W}name")
        label = name.get(f"{_W}val") if name is not None else ""
        outline = style.find(f"{_W}pPr/{_W}outlineLvl")
        based = style.find(f"{_W}basedOn")
        if found := _HEADING.match(label or ""):
            levels[identity] = int(found[1])
        elif (label or "").lower() == "title":
            levels[identity] = 1
        elif outline is not None and (outline.get(f"{_W}val") or "").isdigit():
            levels[identity] = int(outline.get(f"{_W}val")) + 1
        elif based is not None and based.get(f"{_W}val") in levels:
            levels[identity] = levels[based.get(f"{_W}val")]
    return {identity: level for identity, level in levels.items() if level <= 9}


def _level(paragraph: Any, levels: dict[str, int]) -> int:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    own = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
    if own is not None and (own.get(f"{_W}val") or "").isdigit() and int(own.get(f"{_W}val")) < 9:
        return int(own.get(f"{_W}val")) + 1
    return levels.get(style.get(f"{_W}val") or "", 0) if style is not None else 0


def _apart(document: Any, notes: Notes) -> Iterator[Piece]:
    """Foot- and endnotes, which stand in parts of their own; review comments are counted, not read."""
    etree = library("lxml.etree")
    safe = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    for relation in document.part.rels.values():
        kind = str(relation.reltype).rpartition("/")[2]
        if relation.is_external or kind not in (*_EXTRAS, "comments"):
            continue
        try:
            root = etree.fromstring(relation.target_part.blob, parser=safe)
        except etree.LxmlError as error:
            notes.skip(f"{kind}: {error}")
            continue
        if kind == "comments":
            notes.flags["comment"] += sum(1 for _ in root.iter(f"{_W}comment"))
            continue
        for note in root:
            yield Piece(_text(note, notes).strip(), "caption", None, (kind.capitalize(),))
