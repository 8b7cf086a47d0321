"""HTML: hidden text out, main text by trafilatura, then headings, paragraphs, lists, code and table rows.

Invariant: what a reader of the page cannot see (comments, `display:none`, white on white, templates) is counted and
never reaches the text; a page in which trafilatura finds no main text is taken whole rather than lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lathe.engine.rag.ingest.errors import DocumentError
from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, library, read_text, table_pieces
from lathe.engine.rag.values import BlockKind, Piece

_INVISIBLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|(?<![-\w])opacity\s*:\s*0*(?:\.0+)?(?:\s*;|\s*$|\s*!)"
    r"|(?<![-\w])font-size\s*:\s*(?:(?:0+(?:\.0+)?|\.0+)(?:[a-z]+|%)?|0*\.\d+p[xt])(?:\s*;|\s*$|\s*!)"
    r"|text-indent\s*:\s*-\d{3,}|(?:left|top)\s*:\s*-\d{4,}",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"(?<![-\w])color\s*:\s*([^;!]+)", re.IGNORECASE)
_GROUND = re.compile(r"background(?:-color)?\s*:\s*([^;!]+)", re.IGNORECASE)
_WHITE = re.compile(r"^(?:#fff(?:fff)?|white|transparent|rgba?\(\s*255\s*,\s*255\s*,\s*255\b.*)$", re.IGNORECASE)
_UNREAD = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "object", "embed", "canvas", "math"})
_MAIN_MIN = 200
"""Characters of main text below which a page is rather taken whole."""

_PAGE: Mapping[str, BlockKind] = {
    "p": "paragraph", "div": "paragraph", "section": "paragraph", "article": "paragraph", "main": "paragraph",
    "body": "paragraph", "header": "paragraph", "footer": "paragraph", "nav": "paragraph", "aside": "paragraph",
    "address": "paragraph", "form": "paragraph", "fieldset": "paragraph", "details": "paragraph", "figure": "paragraph",
    "td": "paragraph", "th": "paragraph", "tr": "paragraph", "dl": "list", "dt": "list", "dd": "list", "ul": "list",
    "ol": "list", "li": "list", "blockquote": "quote", "pre": "code", "figcaption": "caption", "caption": "caption",
    "summary": "paragraph", "hr": "paragraph", "title": "paragraph",
}  # fmt: skip
_TEI: Mapping[str, BlockKind] = {
    "main": "paragraph", "body": "paragraph", "p": "paragraph", "list": "list", "item": "list", "quote": "quote",
    "cell": "paragraph", "row": "paragraph", "div": "paragraph", "figure": "caption",
}  # fmt: skip
"""trafilatura's own tree: `head` with its level in `rend`, `lb`, `hi`, `ref`, `code`, `table`/`row`/`cell`."""


def read_html(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the blocks of a page's main text."""
    text = read_text(source, notes)
    trafilatura = library("trafilatura")
    tree = parse_html(text)
    clear_hidden(tree, notes)
    notes.parser = f"trafilatura {trafilatura.__version__}"
    title = tree.findtext(".//title")
    notes.title = " ".join((title or "").split())[:300]
    notes.language = (tree.get("lang") or "").partition("-")[0].lower() or None
    for element in tree.iter("meta"):
        if element.get("name") in ("author", "date", "description", "keywords"):
            notes.say(element.get("name"), element.get("content"))
    whole = _length(tree)
    main = _main_text(trafilatura, tree) if whole > _MAIN_MIN else None
    found = main is not None and _length(main) >= min(_MAIN_MIN, whole // 4)
    yield from walk_blocks(main if found else tree)


def parse_html(text: str) -> Any:
    """The tree of a page or of an EPUB's chapter; lenient, without network, with libxml2's own limits.

    Raises:
        DocumentError: there is no element in it.
    """
    html = library("lxml.html")
    parser = html.HTMLParser(encoding="utf-8", remove_pis=True, no_network=True, huge_tree=False)
    try:
        return html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except library("lxml.etree").LxmlError as error:
        raise DocumentError(f"the HTML holds nothing: {error}") from error


def clear_hidden(tree: Any, notes: Notes) -> None:
    """Remove what nobody sees on the page, counting what held text."""
    doomed = []
    for element in tree.iter():
        if not isinstance(element.tag, str):
            if (element.text or "").strip():
                notes.flags["comment"] += 1
            doomed.append(element)
        elif element.tag in _UNREAD:
            doomed.append(element)
        elif _is_hidden(element):
            if _length(element):
                notes.flags["hidden"] += 1
            doomed.append(element)
    for element in doomed:
        _cut(element)


def _is_hidden(element: Any) -> bool:
    if element.get("hidden") is not None or (element.tag == "input" and element.get("type") == "hidden"):
        return True
    style = element.get("style")
    if not style:
        return False
    if _INVISIBLE.search(style):
        return True
    colour, ground = _COLOUR.search(style), _GROUND.search(style)
    return colour is not None and bool(_WHITE.match(colour[1].strip())) and ground is None


def _cut(element: Any) -> None:
    """Remove an element but keep the text behind it, which belongs to its parent."""
    parent = element.getparent()
    if parent is None:
        return
    if element.tail:
        before = element.getprevious()
        if before is not None:
            before.tail = (before.tail or "") + element.tail
        else:
            parent.text = (parent.text or "") + element.tail
        element.tail = None
    parent.remove(element)


def _main_text(trafilatura: Any, tree: Any) -> Any:
    from copy import deepcopy

    document = trafilatura.bare_extraction(
        deepcopy(tree), include_comments=False, include_tables=True, favor_recall=True, with_metadata=False
    )  # it takes the tree apart
    return None if document is None else document.body


def _length(element: Any) -> int:
    return sum(len(text.strip()) for text in element.itertext(with_tail=False) if text)


def walk_blocks(tree: Any, base: tuple[str, ...] = (), page: int | None = None) -> Iterator[Piece]:
    """Yield the blocks below an element, of HTML's vocabulary or of trafilatura's; no recursion, any depth."""
    etree = library("lxml.etree")
    outline = Outline(base)
    kinds: list[BlockKind] = ["paragraph"]
    buffer: list[str] = []

    def flush(kind: BlockKind) -> Iterator[Piece]:
        text = "".join(buffer)
        buffer.clear()
        text = text.strip("\n").rstrip() if kind == "code" else _collapse(text)
        if text.strip():
            yield Piece(text, kind, page, outline.path)

    vocabulary = _TEI if tree.tag in ("main", "body") and tree.find(".//head") is not None else _PAGE
    walker = etree.iterwalk(tree, events=("start", "end"))
    for event, element in walker:
        tag = element.tag
        level = _level(element)
        kind = vocabulary.get(tag) or _PAGE.get(tag)
        if tag in ("code", "pre") and "\n" in (element.text or ""):
            kind = "code"
        if event == "start":
            if tag == "table" and (table := _table(element)) is not None:
                yield from flush(kinds[-1])
                header, rows = table
                yield from table_pieces(rows, header=header, page=page, heading_path=outline.path)
                walker.skip_subtree()
                continue
            if tag in ("head", "title") and not level:
                walker.skip_subtree()
                continue
            if kind or level:
                yield from flush(kinds[-1])
                kinds.append(kind or "heading")
            if tag == "li" or tag == "item":
                buffer.append("- ")
            buffer.append(element.text or "")
            if tag in ("br", "lb"):
                buffer.append("\n")
            continue
        if level:
            text = _collapse("".join(buffer))
            buffer.clear()
            if text:
                yield Piece(text, "heading", page, outline.enter(level, text))
            kinds.pop()
        elif tag != "table" and tag not in ("head", "title") and kind:
            yield from flush(kinds.pop())
        if element is not tree:
            buffer.append(element.tail or "")
    yield from flush(kinds[-1])


def _level(element: Any) -> int:
    """1-6 for a heading of either vocabulary, else 0."""
    tag = element.tag
    name = element.get("rend", "") if tag == "head" else tag
    return int(name[1]) if len(name) == 2 and name[0] == "h" and name[1] in "123456" else 0


def _table(table: Any) -> tuple[list[str] | None, list[list[str]]] | None:
    """The header, where the page marks one, and the rows of a table of data; None for one that only lays out a page."""
    if table.find(".//table") is not None:
        return None
    rows, named = [], []
    for row in table.iter("tr", "row"):
        cells = list(row.iter("td", "th", "cell"))
        texts = [_cell_text(cell) for cell in cells]
        if any(len(text) > 1_000 for text in texts):
            return None
        if any(texts):
            rows.append(texts)
            named.append([cell.tag == "th" or cell.get("role") == "head" for cell in cells])
    if not any(len(row) > 1 for row in rows):
        return None
    if len(rows) > 1 and len(rows[0]) > 1 and all(named[0]):
        return rows[0], rows[1:]
    names_in_front = any(row and row[0] and not all(row) for row in named)
    return ([] if names_in_front else None), rows


def _cell_text(cell: Any) -> str:
    """The words of a cell; lines and blocks inside of it are kept apart."""
    parts: list[str] = []
    for event, element in library("lxml.etree").iterwalk(cell, events=("start", "end")):
        if element is not cell and (element.tag in ("br", "lb") or element.tag in _PAGE):
            parts.append(" ")
        if event == "start":
            parts.append(element.text or "")
        elif element is not cell:
            parts.append(element.tail or "")
    return " ".join("".join(parts).split())


def _collapse(text: str) -> str:
    text = re.sub(r"[ \t\r\f\u00a0]+", " ", text)
    text = re.sub(r" ?\n\s*", "\n", text).strip()
    text = re.sub(r"^- ?\n", "- ", text)
    return "" if text in ("-", "•") else text
