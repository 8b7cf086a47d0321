"""Plain text and source code. Text is cut at blank lines, code at top-level definitions, nothing else is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, read_text
from lathe.engine.rag.values import Piece

_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?:pub(?:\([a-z]+\))?|export|default|public|private|protected|internal|static|final"
    r"|abstract|async|unsafe|extern|inline|const|virtual|override|sealed|open|data)[ \t]+)*"
    r"(?P<word>class|def|function|fn|func|struct|enum|interface|trait|impl|module|namespace|package|object|type|sub|proc)"
    r"[ \t]+(?P<name>[A-Za-z_$][\w$]*(?:(?:::|\.)[\w$]+)*)"
)
_COMMENTED_HEAD = 12


def read_plain(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield paragraphs."""
    text = read_text(source, notes)
    notes.parser = "lathe text 1"
    for paragraph in _BLANK.split(text):
        yield Piece(paragraph.strip("\n").rstrip())


def read_source(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield top-level definitions with what stands between them; the path names class and function."""
    text = read_text(source, notes)
    notes.parser = "lathe code 1"
    yield from code_pieces(text)


def code_pieces(text: str, base: tuple[str, ...] = ()) -> Iterator[Piece]:
    """Cut source text where a line of the outermost or class level begins a definition after a blank line.

    No grammar of any language is known here: definitions are lines that begin with a word such as `class` or `fn`, and
    the deepest one above names what a piece belongs to. Decorators and comments stay with what follows them.
    """
    outline = Outline(base)
    lines: list[str] = []
    path = outline.path
    for chunk in _BLANK.split(text):
        chunk = chunk.strip("\n").rstrip()
        found = _definition(chunk)
        if found is not None:
            level, name = found
            if lines:
                yield Piece("\n\n".join(lines), "code", None, path)
                lines = []
            path = outline.enter(level, name)
        elif lines and not chunk[:1].isspace() and chunk:
            yield Piece("\n\n".join(lines), "code", None, path)
            lines = []
            path = base
            outline = Outline(base)
        lines.append(chunk)
    if lines:
        yield Piece("\n\n".join(lines), "code", None, path)


def _definition(chunk: str) -> tuple[int, str] | None:
    """The first definition of a chunk when only comments and decorators stand above it: its level and its name."""
    for line in chunk.split("\n", _COMMENTED_HEAD)[:_COMMENTED_HEAD]:
        if found := _DEFINITION.match(line):
            return len(found["indent"].expandtabs(4)) // 2, f"{found['word']} {found['name']}"
        if line.strip() and not line.lstrip().startswith(("#", "//", "/*", "*", "@", "--", "[", '"""')):
            return None
    return None
