"""RSS and Atom feeds as records, any other XML as the text of its elements; entities and document types are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.errors import DocumentError, TooMuch
from lathe.engine.rag.ingest.readers.base import Notes, Source, library, read_text
from lathe.engine.rag.ingest.readers.html import clear_hidden, parse_html, walk_blocks
from lathe.engine.rag.values import Piece

_ENTRIES = ("item", "entry")
_FIELDS = {
    "pubdate": "Date",
    "published": "Date",
    "updated": "Date",
    "author": "Author",
    "creator": "Author",
    "link": "Link",
}
_BODIES = ("encoded", "content", "description", "summary")


def read_xml(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the entries of a feed, or the text of an XML document."""
    root = _tree(source, notes)
    entries = [element for element in root.iter() if _name(element) in _ENTRIES]
    if _name(root) in ("rss", "feed", "rdf") and entries:
        channel = next((element for element in root.iter() if _name(element) in ("channel", "feed")), root)
        notes.title = _child_text(channel, "title")
        for entry in entries:
            yield from _entry(entry, notes)
        return
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if _is_leaf(element):
            yield Piece(" ".join("".join(element.itertext()).split()), "paragraph", None, ())
        else:
            waiting.extend(reversed(element))


def _tree(source: Source, notes: Notes) -> Any:
    parse = library("defusedxml.ElementTree")
    forbidden = library("defusedxml.common").DefusedXmlException
    notes.parser = "lathe xml 2"
    try:
        text = read_text(source, notes)
        head, mark, rest = text.lstrip().partition("?>")
        if head.startswith("<?xml") and mark:
            text = rest  # its encoding has been dealt with
        return parse.fromstring(text.lstrip(), forbid_dtd=False, forbid_entities=True, forbid_external=True)
    except forbidden as error:
        raise TooMuch("the XML declares entities", hint="entities can grow without bound") from error
    except (parse.ParseError, ValueError) as error:
        raise DocumentError(f"no XML: {error}") from error


def _entry(entry: Any, notes: Notes) -> Iterator[Piece]:
    title = _child_text(entry, "title")
    path = (title,) if title else ()
    if title:
        yield Piece(title, "heading", None, path)
    lines = []
    for child in entry:
        label = _FIELDS.get(_name(child))
        value = " ".join("".join(child.itertext()).split()) or str(child.get("href") or "")
        if label and value:
            lines.append(f"{label}: {value}")
    yield Piece("\n".join(lines), "record", None, path)
    for name in _BODIES:
        body = next((child for child in entry if _name(child) == name), None)
        markup = "".join(body.itertext()) if body is not None else ""
        if markup.strip():
            tree = parse_html(markup)
            clear_hidden(tree, notes)
            yield from walk_blocks(tree, path)
            return


def _is_leaf(element: Any) -> bool:
    """It holds words of its own: with those of the elements inside of it, it is one text."""
    return bool((element.text or "").strip()) or any((child.tail or "").strip() for child in element)


def _child_text(element: Any, name: str) -> str:
    child = next((child for child in element if _name(child) == name), None)
    return " ".join("".join(child.itertext()).split()) if child is not None else ""


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2].lower()
