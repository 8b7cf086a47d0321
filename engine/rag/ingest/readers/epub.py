"""EPUB: a zip with a reading order (the spine) of XHTML chapters; every chapter is content, so it is taken whole."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from lathe.engine.rag.ingest.archive import open_archive
from lathe.engine.rag.ingest.encoding import decode
from lathe.engine.rag.ingest.errors import DocumentError, NotADocument, TooMuch
from lathe.engine.rag.ingest.readers.base import Notes, Source, library
from lathe.engine.rag.ingest.readers.html import clear_hidden, parse_html, walk_blocks
from lathe.engine.rag.values import Piece

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_XHTML = ("application/xhtml+xml", "text/html")


def read_epub(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the blocks of every chapter in the order of the spine."""
    archive = open_archive(source.file)
    package_path, package = _package(archive)
    notes.parser = f"lathe epub 2, lxml {library('lxml.etree').__version__}"
    for name in ("title", "creator", "language", "publisher", "date", "description"):
        notes.say(name, package.findtext(f".//{_DC}{name}"))
    notes.title = notes.metadata.get("title", "")
    notes.language = notes.metadata.get("language", "").partition("-")[0].lower() or None
    for number, name in enumerate(_spine(package, posixpath.dirname(package_path)), 1):
        try:
            tree = parse_html(decode(archive.read(name), "utf-8").text)
        except (KeyError, zipfile.BadZipFile, NotImplementedError, NotADocument, DocumentError) as error:
            notes.skip(f"chapter {posixpath.basename(name)}: {error}")
            continue
        clear_hidden(tree, notes)
        body = tree.find("body")
        yield from walk_blocks(tree if body is None else body, page=number)


def _package(archive: zipfile.ZipFile) -> tuple[str, Any]:
    """The path and the tree of the package document that the container names."""
    try:
        container = _xml(archive, "META-INF/container.xml")
        root = container.find(f".//{_CONTAINER}rootfile")
        path = root.get("full-path") if root is not None else None
        if not path:
            raise DocumentError("the EPUB names no package document")
        return path, _xml(archive, path)
    except (KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DocumentError(f"the EPUB is incomplete: {error}") from error


def _spine(package: Any, folder: str) -> Iterator[str]:
    manifest = {item.get("id"): item for item in package.iter(f"{_OPF}item")}
    for reference in package.iter(f"{_OPF}itemref"):
        item = manifest.get(reference.get("idref"))
        if item is not None and item.get("media-type") in _XHTML and item.get("href"):
            yield posixpath.normpath(posixpath.join(folder, unquote(item.get("href"))))


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    parse = library("defusedxml.ElementTree")
    forbidden = library("defusedxml.common").DefusedXmlException
    try:
        return parse.fromstring(archive.read(name), forbid_dtd=True)
    except forbidden as error:
        raise TooMuch(
            f"{name} declares an XML document type or entities", hint="such files can grow without bound"
        ) from error
    except parse.ParseError as error:
        raise DocumentError(f"{name} is no XML: {error}") from error
