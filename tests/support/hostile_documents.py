"""Writes documents that attack their reader: bombs, loops, lies, broken bytes and names that terminals obey."""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1 if n > 1 else str()};" * 10}">' for n in range(1, 10))
    + "]><lolz>&lol9;</lolz>"
)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
NAMES = (
    b"line\nbreak.txt",
    b"esc\x1b]0;owned\x07.txt",
    "right\u202eto-left.txt".encode(),
    b"x" * 251 + b".txt",
    b"not-\xff-utf8.txt",
    "cafe\u0301.txt".encode(),
)


def pdf(objects: dict[int, bytes], root: int = 1) -> bytes:
    """A PDF of hand-written objects with a right cross-reference table."""
    out = bytearray(b"%PDF-1.7\n")
    places = {}
    for number, body in objects.items():
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    last = max(objects)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (last + 1)
    for number in range(1, last + 1):
        out += b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 65535 f \n"
    out += b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF" % (last + 1, root, start)
    return bytes(out)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def pdf_page(content: bytes, entries: bytes = b"") -> bytes:
    """A PDF of one page with this content stream."""
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
            b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
            4: stream(content, entries),
        }
    )


def pdf_text(text: str) -> bytes:
    """A PDF that shows one line."""
    return pdf_page(b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % text.encode("latin-1"))


def pdf_bomb(layers: int = 2, size: int = 300_000_000) -> bytes:
    """A page whose content unpacks to `size` bytes, packed `layers` times."""
    packer = zlib.compressobj(9)
    data = b"".join((*(packer.compress(bytes(1_000_000)) for _ in range(size // 1_000_000)), packer.flush()))
    for _ in range(layers - 1):
        data = zlib.compress(data, 9)
    return pdf_page(data, b"/Filter [%s]" % (b"/FlateDecode " * layers))


def pdf_page_loop() -> bytes:
    """Pages that are their own grandchildren."""
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 1 >>",
        }
    )


def pdf_outline_loop() -> bytes:
    """An outline whose entries follow each other in a circle; its one page can be read."""
    content = b"BT /F1 12 Tf 72 720 Td (Round and round) Tj ET"
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R /Outlines 5 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
            b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
            4: stream(content),
            5: b"<< /Type /Outlines /First 6 0 R /Last 7 0 R >>",
            6: b"<< /Title (A) /Parent 5 0 R /Next 7 0 R /Dest [3 0 R /Fit] >>",
            7: b"<< /Title (B) /Parent 5 0 R /Next 6 0 R /First 6 0 R /Dest [3 0 R /Fit] >>",
        }
    )


def pdf_encrypted(password: str = "secret") -> bytes:
    """A PDF that needs a password (RC4, which needs no library)."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_text("Nobody reads this"))))
    writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def container(parts: dict[str, bytes | str]) -> bytes:
    """A zip of parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return out.getvalue()


def docx_with(document_xml: bytes | str) -> bytes:
    """A DOCX whose main part is given."""
    types = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" '
        'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
        'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
        'Target="word/document.xml"/></Relationships>'
    )
    return container({"[Content_Types].xml": types, "_rels/.rels": relations, "word/document.xml": document_xml})


def epub_with(chapter: str, package_head: str = "") -> bytes:
    """An EPUB of one chapter."""
    return container(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
            "OEBPS/book.opf": package_head + '<package xmlns="http://www.idpf.org/2007/opf" '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>Book</dc:title></metadata><manifest>'
            '<item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest>'
            '<spine><itemref idref="c"/></spine></package>',
            "OEBPS/c.xhtml": chapter,
        }
    )


def zip_lie() -> bytes:
    """A zip whose table of contents says that a part of 50 MB has 100 bytes."""
    data = bytearray(docx_with(b"<a>" + b" " * 50_000_000 + b"</a>"))
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"word/document.xml"))
    data[place + 24 : place + 28] = struct.pack("<I", 100)
    return bytes(data)


HOSTILE: dict[str, tuple[str, object]] = {
    "bomb.pdf": ("E_DOCUMENT", lambda: pdf_bomb(2)),
    "nested-bomb.pdf": ("E_DOCUMENT", lambda: pdf_bomb(4)),
    "page-loop.pdf": ("E_", pdf_page_loop),
    "encrypted.pdf": ("E_ENCRYPTED", pdf_encrypted),
    "cut.pdf": ("E_", lambda: pdf_text("Cut")[:120]),
    "ratio.docx": ("E_DOCUMENT_LIMIT", lambda: docx_with(b"<a>" + b" " * 40_000_000 + b"</a>")),
    "lie.docx": ("E_DOCUMENT", zip_lie),
    "members.docx": ("E_DOCUMENT_LIMIT", lambda: container({f"word/{n}": b"" for n in range(20_001)})),
    "laughs.docx": ("E_DOCUMENT_LIMIT", lambda: docx_with(LAUGHS)),
    "laughs.epub": ("E_DOCUMENT_LIMIT", lambda: epub_with("<p>x</p>", LAUGHS.partition("]>")[0] + "]>")),
    "laughs.xml": ("E_DOCUMENT_LIMIT", LAUGHS.encode),
    "cut.docx": ("E_DOCUMENT", lambda: docx_with("<a/>")[:-30]),
    "empty.zip": ("E_NOT_A_DOCUMENT", lambda: container({"readme.txt": "text"})),
    "picture.pdf": ("E_NOT_A_DOCUMENT", lambda: PNG),
    "random.txt": ("E_NOT_A_DOCUMENT", lambda: bytes(range(256)) * 40),
    "zero.txt": ("E_EMPTY", lambda: b""),
    "blank.txt": ("E_NO_TEXT", lambda: b" \n\n \t\n"),
    "deep.json": ("E_DOCUMENT", lambda: b"[" * 200_000),
    "broken.json": ("E_DOCUMENT", lambda: b'{"a": '),
    "deep.xml": ("E_", lambda: b"<a>" * 200_000),
    "notebook.ipynb": ("E_DOCUMENT", lambda: b'{"cells": 3}'),
    "headless.eml": ("E_", lambda: b"\0\1\2\3" * 100),
    "line.txt": ("E_DOCUMENT_LIMIT", lambda: b"x" * 100_000_000),
}
"""Name -> (the code its row begins with, its bytes)."""


def write_hostile(folder: Path, names: tuple[str, ...] | None = None) -> dict[str, str]:
    """Write the files, and one that can be read after all of them; returns name -> expected code."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, (code, make) in HOSTILE.items():
        if names is None or name in names:
            (folder / name).write_bytes(make())  # type: ignore[operator]
            expected[name] = code
    (folder / "zz-good.txt").write_text("Everything before me was hostile, and I can still be read.")
    return expected


def write_special(folder: Path) -> None:
    """Pipes, sockets, loops of links, links that lead out, a huge sparse file, and a file that can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.txt")
    here = Path.cwd()
    os.chdir(folder)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.txt")
    finally:
        os.chdir(here)
    (folder / "loop").symlink_to(folder)
    (folder / "a.txt").symlink_to(folder / "b.txt")
    (folder / "b.txt").symlink_to(folder / "a.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "out.txt").symlink_to("/etc/hostname")
    (folder / "zero.txt").symlink_to("/dev/zero")
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(2 * 1024**3)
    (folder / "good.txt").write_text("An ordinary file among strange ones.")


def write_names(folder: Path) -> None:
    """Files whose names are not nice."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(f"Named {len(name)} bytes.")
