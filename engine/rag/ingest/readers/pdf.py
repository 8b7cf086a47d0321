"""PDF through pypdf, long ones through PDFium: page by page, with headings from the document's outline.

Invariant: one broken page costs that page. Streams are unpacked under pypdf's own limits, which are set lower here;
what runs away all the same meets the limits of the process.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.errors import DocumentError, Encrypted, NeedsLibrary, NoText, TooMuch
from lathe.engine.rag.ingest.readers.base import Notes, Outline, Source, library, too_much_text
from lathe.engine.rag.values import Piece

MAX_PAGES = 20_000
_MAX_HEADINGS = 20_000
_LONG = 50
"""Pages from which PDFium reads instead of pypdf."""
_PDFIUM_HYPHEN = re.compile("[\x02\ufffe]\n?")
"""What PDFium puts where a word is cut at the end of a line, instead of hyphen and line end."""
_STREAM_BYTES = 48 * 1024 * 1024
"""What one stream may unpack to; a page of text needs a thousandth of it."""
_REPEATED_SHARE = 0.6
"""Of the pages: a first or last line that stands on so many is a running head, and is left out."""
_REPEATED_PAGES = 5
_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_HYPHEN = re.compile(r"(?<=[a-zà-öø-ÿ])[-\u00ad\u2010]\n(?=[a-zà-öø-ÿ]{2})")
_DIGITS = re.compile(r"\d+")


def read_pdf(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the paragraphs of every page."""
    pypdf = library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    pypdf.overwrite_configuration(
        zlib_maximum_output_length=_STREAM_BYTES,
        lzw_maximum_output_length=_STREAM_BYTES,
        run_length_maximum_output_length=_STREAM_BYTES,
        array_based_stream_maximum_output_length=_STREAM_BYTES,
        stream_decoding_work_maximum_length=4 * _STREAM_BYTES,
        page_tree_maximum_entries=2 * MAX_PAGES,
        outline_maximum_entries=_MAX_HEADINGS,
        jbig2dec_binary=None,  # no other program is started
    )
    notes.parser = f"pypdf {pypdf.__version__}"
    reader = _opened(pypdf, source)
    count = _count(reader)
    for name in ("title", "author", "subject", "keywords", "creation_date"):
        notes.say(name.removeprefix("creation_"), _quietly(lambda name=name: getattr(reader.metadata, name, None)))
    title = notes.metadata.get("title", "")
    notes.title = "" if title.casefold() in ("untitled", "(anonymous)", "anonymous") else title
    headings = _headings(reader, notes)
    texts: list[str] = []
    room = notes.limits.output_chars
    for text in _texts(reader, count, source, notes):
        texts.append(text)
        room -= len(text)
        if room < 0:
            raise too_much_text(notes.limits.output_chars)
    running = _running_lines(texts)
    empty = 0
    for number, text in enumerate(texts, 1):
        text = _without(text, running)
        empty += not text.strip()
        yield from _page(text, number, headings)
    if empty == count and notes.skipped:
        raise DocumentError(f"no page could be read; {notes.skipped[0]}")
    if empty == count:
        raise NoText(f"none of the {count:,} pages has text: scanned images?", hint="run OCR on it first")
    if empty:
        notes.metadata["pages_without_text"] = str(empty)


def _opened(pypdf: Any, source: Source) -> Any:
    try:
        reader = pypdf.PdfReader(source.file, strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Encrypted("the PDF needs a password", hint="remove the password and add it again")
    except (Encrypted, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "DependencyError":
            raise Encrypted("the PDF is encrypted with AES", hint="remove the encryption and add it again") from error
        raise DocumentError(f"the PDF cannot be opened: {error or type(error).__name__}") from error
    return reader


def _count(reader: Any) -> int:
    try:
        count = len(reader.pages)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        raise DocumentError(f"the PDF's pages cannot be listed: {error or type(error).__name__}") from error
    if count > MAX_PAGES:
        raise TooMuch(f"the PDF has {count:,} pages (limit {MAX_PAGES:,})", hint="split the file")
    if not count:
        raise NoText("the PDF has no pages")
    return int(count)


def _texts(reader: Any, count: int, source: Source, notes: Notes) -> Iterator[str]:
    """The text of every page. pypdf reads a page in some 20 ms, PDFium in one: a book would meet the time limit."""
    if count >= _LONG:
        try:
            pdfium = library("pypdfium2")
        except NeedsLibrary:
            pass
        else:
            yield from _by_pdfium(pdfium, source, notes)
            return
    for number in range(count):
        yield _page_text(reader, number, notes)


def _by_pdfium(pdfium: Any, source: Source, notes: Notes) -> Iterator[str]:
    notes.parser = f"{notes.parser}, pypdfium2 {pdfium.version.PYPDFIUM_INFO}"
    source.file.seek(0)
    try:
        with pdfium.PdfDocument(source.file) as document:
            for number in range(len(document)):
                yield _pdfium_page(pdfium, document, number, notes)
    except pdfium.PdfiumError as error:
        raise DocumentError(f"the PDF cannot be opened: {error}") from error


def _pdfium_page(pdfium: Any, document: Any, number: int, notes: Notes) -> str:
    try:
        page = document[number]
        text = page.get_textpage().get_text_bounded()
        page.close()  # and its text with it
    except pdfium.PdfiumError as error:
        notes.skip(f"page {number + 1}: {error}")
        return ""
    return _PDFIUM_HYPHEN.sub("-\n", str(text).replace("\r\n", "\n"))


def _page_text(reader: Any, number: int, notes: Notes) -> str:
    try:
        return str(reader.pages[number].extract_text())
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        notes.skip(f"page {number + 1}: {str(error)[:200] or type(error).__name__}")
        return ""


def _page(text: str, number: int, headings: list[tuple[int, str, tuple[str, ...]]]) -> Iterator[Piece]:
    """The page's paragraphs; a heading of the outline takes effect at the line that repeats its title."""
    pages = [page for page, _, _ in headings]
    before = bisect_right(pages, number - 1)
    path = headings[before - 1][2] if before else ()
    here = headings[before : bisect_right(pages, number)]
    lines: list[str] = []
    for line in text.split("\n"):
        if here and (place := _named(line, here)) is not None:
            yield from _paragraphs(lines, number, path)
            path, lines = here[place][2], []
            here = here[place + 1 :]
            yield Piece(line.strip(), "heading", number, path)
        else:
            lines.append(line)
    yield from _paragraphs(lines, number, path)


def _paragraphs(lines: list[str], number: int, path: tuple[str, ...]) -> Iterator[Piece]:
    for paragraph in _BLANK.split("\n".join(line.rstrip() for line in lines)):
        yield Piece(_HYPHEN.sub("", paragraph.strip("\n")), "paragraph", number, path)


def _named(line: str, headings: list[tuple[int, str, tuple[str, ...]]]) -> int | None:
    """Which heading this line is: it ends with the title, perhaps after a number."""
    folded = "".join(line.split()).casefold()
    if not folded or len(folded) > 200:
        return None
    for place, (_, title, _) in enumerate(headings):
        wanted = "".join(title.split()).casefold()
        if wanted and folded.endswith(wanted) and not folded[: -len(wanted)].strip("0123456789.()§ivx"):
            return place
    return None


def _headings(reader: Any, notes: Notes) -> list[tuple[int, str, tuple[str, ...]]]:
    """(page from 1, title, path) of the outline in order; loops and broken targets end or shorten it."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    outline = Outline()
    try:
        waiting = [(item, 1) for item in reversed(reader.outline)]
        while waiting and len(found) < _MAX_HEADINGS:
            item, level = waiting.pop()
            if isinstance(item, list):
                waiting.extend((child, level + 1) for child in reversed(item))
                continue
            path = outline.enter(level, str(item.title or ""))
            page = _quietly(lambda item=item: reader.get_destination_page_number(item))
            if isinstance(page, int) and page >= 0:
                found.append((page + 1, path[-1], path))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        notes.skip(f"outline: {str(error)[:200] or type(error).__name__}")
    return sorted(found, key=lambda entry: entry[0])


def _running_lines(texts: list[str]) -> frozenset[str]:
    """First and last lines that most pages share, page numbers aside."""
    filled = [text for text in texts if text.strip()]
    if len(filled) < _REPEATED_PAGES:
        return frozenset()
    counts = Counter(key for text in filled for key in {_key(line) for line in _edges(text)} if key)
    return frozenset(key for key, count in counts.items() if count >= _REPEATED_SHARE * len(filled))


def _without(text: str, running: frozenset[str]) -> str:
    if not running:
        return text
    lines = text.split("\n")
    if sum(1 for line in lines if line.strip()) < 3:
        return text  # a form or a label: its one line may be what differs by a number
    edges = {line for line in _edges(text) if _key(line) in running}
    kept = [line for place, line in enumerate(lines) if not (line in edges and (place < 3 or place >= len(lines) - 3))]
    return "\n".join(kept)


def _edges(text: str) -> list[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    return lines[:1] + lines[-1:]


def _key(line: str) -> str:
    return _DIGITS.sub("#", " ".join(line.split()))


def _quietly(look: Any) -> Any:
    """What a lookup gives, or None where the file is broken there."""
    try:
        return look()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        return None
