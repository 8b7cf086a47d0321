"""Zip containers (Office files, EPUB) checked before any library opens them.

Invariant: nothing that passes here can unpack to more than `MAX_BYTES`, holds more than `MAX_MEMBERS`, or declares an
XML document type; OOXML and EPUB need none of it, and entities that multiply need exactly that.
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO
from xml.parsers import expat

from lathe.engine.rag.ingest.errors import DocumentError, Encrypted, TooMuch

MAX_MEMBERS = 20_000
MAX_BYTES = 384 * 1024 * 1024
"""Unpacked, all members together."""
MAX_RATIO = 250
"""Unpacked to packed, of a member larger than `_RATIO_FROM`; text and XML stay below 60."""
_RATIO_FROM = 4 * 1024 * 1024
_CHUNK = 64 * 1024
_XML = (".xml", ".rels", ".opf", ".ncx", ".vml")
_ENCRYPTED = 0x1


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Open a container whose table of contents is within the limits.

    Raises:
        TooMuch: a bomb, or simply too large.
        Encrypted: members need a password.
        DocumentError: it is no zip file.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise DocumentError(f"the container is broken: {error}") from error
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise TooMuch(f"the container holds {len(members):,} files (limit {MAX_MEMBERS:,})")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise TooMuch(f"the container unpacks to {total:,} bytes (limit {MAX_BYTES:,})", hint="it may be a zip bomb")
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise Encrypted("the container needs a password", hint="remove the password and add it again")
        if member.file_size > _RATIO_FROM and member.file_size > MAX_RATIO * max(1, member.compress_size):
            ratio = member.file_size // max(1, member.compress_size)
            raise TooMuch(f"a part is packed {ratio:,} to 1 (limit {MAX_RATIO})", hint="it may be a zip bomb")
    return archive


def check_parts(archive: zipfile.ZipFile) -> None:
    """Refuse XML parts that declare a document type, reading no further than their first element.

    Raises:
        TooMuch: a part declares one.
        DocumentError: a part cannot be unpacked.
    """
    for member in archive.infolist():
        if member.filename.lower().endswith(_XML):
            try:
                with archive.open(member) as part:
                    refuse_document_type(part, member.filename)
            except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError, RuntimeError) as error:
                raise DocumentError(f"a part of the container is broken: {error}") from error
            except Exception as error:
                if type(error).__name__ == "error":  # zlib.error
                    raise DocumentError(f"a part of the container is broken: {error}") from error
                raise


class _Prolog(Exception):
    """The first element begins: the prolog held no declaration."""


def refuse_document_type(stream: object, name: str) -> None:
    """Read an XML prolog; raises TooMuch where it declares a document type, passes broken XML on to its parser."""

    def declared(*_: object) -> None:
        raise TooMuch(f"{name} declares an XML document type", hint="entities of such files can grow without bound")

    def begun(*_: object) -> None:
        raise _Prolog

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = declared
    parser.EntityDeclHandler = declared
    parser.StartElementHandler = begun
    try:
        while data := stream.read(_CHUNK):  # type: ignore[attr-defined]
            parser.Parse(data, False)
    except (_Prolog, expat.ExpatError):
        return
