"""Markdown through markdown-it's block parser; the text of a block is the author's own lines.

Invariant: HTML comments never reach the text (they are a place to hide instructions); inside code they are code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, library, read_text, table_pieces
from lathe.engine.rag.values import BlockKind, Piece

if TYPE_CHECKING:
    from markdown_it.token import Token

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_ENTRY = re.compile(r"^([A-Za-z][\w -]{0,40}):[ \t]*(\S.*)$", re.MULTILINE)
_LONG_LIST = 2_000
"""Characters from which a list is cut into its items."""


def read_markdown(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield headings, paragraphs, lists, code, table rows and quotes."""
    yield from markdown_pieces(read_text(source, notes), notes)


def markdown_pieces(text: str, notes: Notes, outline: Outline | None = None) -> Iterator[Piece]:
    """Cut Markdown into pieces; one that goes on below headings read before is given their outline."""
    markdown_it = library("markdown_it")
    notes.parser = notes.parser or f"markdown-it-py {markdown_it.__version__}"
    if outline is None and (front := _FRONT.match(text)):
        for name, value in _ENTRY.findall(front[1]):
            notes.say(name.strip().lower(), value.strip("\"' "))
        notes.title = notes.title or notes.metadata.get("title", "")
        text = text[front.end() :]
    lines = text.split("\n")
    outline = outline or Outline()
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    for opening, inner in _blocks(tokens):
        start, end = opening.map or (0, 0)
        raw = "\n".join(lines[start:end]).rstrip()
        match opening.type:
            case "heading_open":
                title = _plain(inner[0].content, notes) if inner else ""
                notes.title = notes.title or title
                yield Piece(title, "heading", None, outline.enter(int(opening.tag[1:]), title))
            case "fence" | "code_block":
                yield Piece(raw, "code", None, outline.path)
            case "table_open":
                yield from table_pieces(_cells(inner, notes), heading_path=outline.path)
            case "bullet_list_open" | "ordered_list_open":
                yield from _list(raw, inner, lines, outline.path, notes)
            case "html_block":
                yield Piece(_TAG.sub("", _uncommented(raw, notes)).strip("\n"), "paragraph", None, outline.path)
            case "hr":
                pass
            case _:
                kind: BlockKind = "quote" if opening.type == "blockquote_open" else "paragraph"
                yield Piece(_without_comments(raw, [opening, *inner], notes), kind, None, outline.path)


def _blocks(tokens: list[Token]) -> Iterator[tuple[Token, list[Token]]]:
    """Top-level blocks: the opening token and everything inside."""
    opening: Token | None = None
    inner: list[Token] = []
    for token in tokens:
        if opening is None:
            if token.nesting == 1:
                opening, inner = token, []
            else:
                yield token, []
        elif token.nesting == -1 and token.level == opening.level:
            yield opening, inner
            opening = None
        else:
            inner.append(token)


def _list(raw: str, inner: list[Token], lines: list[str], path: tuple[str, ...], notes: Notes) -> Iterator[Piece]:
    if len(raw) <= _LONG_LIST:
        yield Piece(_without_comments(raw, inner, notes), "list", None, path)
        return
    items = [token for token in inner if token.type == "list_item_open" and token.level == 1]
    for item in items:
        start, end = item.map or (0, 0)
        within = [token for token in inner if token.map and start <= token.map[0] < end]
        yield Piece(_without_comments("\n".join(lines[start:end]).rstrip(), within, notes), "list", None, path)


def _cells(inner: list[Token], notes: Notes) -> Iterator[list[str]]:
    row: list[str] = []
    for token in inner:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append(_plain(token.content, notes))
        elif token.type == "tr_close":
            yield row


def _without_comments(raw: str, tokens: list[Token], notes: Notes) -> str:
    """Drop comments from a block unless all that look like one stand inside code."""
    if "<!--" not in raw:
        return raw
    hidden = any(token.type == "html_block" and "<!--" in token.content for token in tokens) or any(
        child.type == "html_inline" and child.content.startswith("<!--")
        for token in tokens
        for child in token.children or ()
    )
    return _uncommented(raw, notes) if hidden else raw


def _uncommented(text: str, notes: Notes) -> str:
    text, count = _COMMENT.subn("", text)
    if count:
        notes.flags["comment"] += count
    return text


def _plain(text: str, notes: Notes) -> str:
    return _TAG.sub("", _uncommented(text, notes)).strip()
