"""What a file is: by its first bytes, then by what a container holds, and by its name only where content cannot tell.

Invariant: a wrong extension never sends a file to a reader that cannot read it, and a format without a reader says
which it is and what to do.
"""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

from lathe.engine.rag.ingest.archive import open_archive
from lathe.engine.rag.ingest.errors import DocumentError, Encrypted, NotADocument

_HEAD = 64 * 1024


class Format(NamedTuple):
    """A format that has a reader."""

    media_type: str
    reader: str
    """`module:function` below `readers`."""
    messages: bool = False
    """Its reader reads documents inside of it."""


TEXT = Format("text/plain", "plain:read_plain")
MARKDOWN = Format("text/markdown", "markdown:read_markdown")
HTML = Format("text/html", "html:read_html")
XML = Format("application/xml", "xml:read_xml")
CSV = Format("text/csv", "records:read_csv")
JSON = Format("application/json", "records:read_json")
JSON_LINES = Format("application/x-ndjson", "records:read_json_lines")
NOTEBOOK = Format("application/x-ipynb+json", "notebook:read_notebook")
SOURCE = Format("text/x-source", "plain:read_source")
EML = Format("message/rfc822", "mail:read_eml", messages=True)
MBOX = Format("application/mbox", "mail:read_mbox", messages=True)
MSG = Format("application/vnd.ms-outlook", "mail:read_msg", messages=True)
PDF = Format("application/pdf", "pdf:read_pdf")
EPUB = Format("application/epub+zip", "epub:read_epub")
_OOXML = "application/vnd.openxmlformats-officedocument."
DOCX = Format(f"{_OOXML}wordprocessingml.document", "word:read_word")
PPTX = Format(f"{_OOXML}presentationml.presentation", "slides:read_slides")
XLSX = Format(f"{_OOXML}spreadsheetml.sheet", "sheets:read_xlsx")
XLSB = Format("application/vnd.ms-excel.sheet.binary.macroenabled.12", "sheets:read_calamine")
XLS = Format("application/vnd.ms-excel", "sheets:read_calamine")
ODS = Format("application/vnd.oasis.opendocument.spreadsheet", "sheets:read_calamine")

FORMATS = (
    TEXT, MARKDOWN, HTML, XML, CSV, JSON, JSON_LINES, NOTEBOOK, SOURCE, EML, MBOX, MSG,
    PDF, EPUB, DOCX, PPTX, XLSX, XLSB, XLS, ODS,
)  # fmt: skip

_SOURCES = (
    ".py", ".pyi", ".js", ".mjs", ".cjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".kts", ".scala", ".c", ".h",
    ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".m", ".mm", ".cs", ".go", ".rs", ".rb", ".php", ".pl", ".pm", ".lua",
    ".r", ".jl", ".swift", ".dart", ".ex", ".exs", ".erl", ".hs", ".ml", ".mli", ".clj", ".cljs", ".lisp",
    ".el", ".scm", ".f90", ".f", ".pas", ".vb", ".sql", ".sh", ".bash", ".zsh", ".fish", ".ps1", ".bat",
    ".cmake", ".mk", ".gradle", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".conf", ".proto", ".graphql", ".tf",
    ".css", ".scss", ".less", ".vue", ".svelte", ".zig", ".nim", ".v", ".sv", ".vhd", ".cu", ".cuh", ".glsl",
    ".asm", ".s", ".dockerfile",
)  # fmt: skip
_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd"), MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xht", ".shtml"), HTML),
    **dict.fromkeys((".xml", ".rss", ".atom", ".dbk", ".tei"), XML),
    **dict.fromkeys((".csv", ".tsv"), CSV),
    **dict.fromkeys((".jsonl", ".ndjson"), JSON_LINES),
    ".json": JSON, ".geojson": JSON, ".ipynb": NOTEBOOK, ".eml": EML, ".mbox": MBOX,
    **dict.fromkeys(_SOURCES, SOURCE),
}  # fmt: skip
_NAMES = {"makefile": SOURCE, "dockerfile": SOURCE, "cmakelists.txt": SOURCE, "jenkinsfile": SOURCE}

_MEDIA: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "an image"), (b"\xff\xd8\xff", "an image"), (b"GIF8", "an image"),
    (b"II*\0", "an image"), (b"MM\0*", "an image"), (b"\0\0\x01\0", "an icon"), (b"8BPS", "an image"),
    (b"ID3", "a recording"), (b"OggS", "a recording"), (b"fLaC", "a recording"), (b"\x1aE\xdf\xa3", "a video"),
    (b"\x7fELF", "a program"), (b"\xca\xfe\xba\xbe", "a program"), (b"\0asm", "a program"),
    (b"GGUF", "a model"), (b"SQLite format 3\0", "a database"), (b"wOFF", "a font"), (b"wOF2", "a font"),
    (b"\x1f\x8b", "a compressed file"), (b"BZh", "a compressed file"), (b"\xfd7zXZ\0", "a compressed file"),
    (b"(\xb5/\xfd", "a compressed file"), (b"7z\xbc\xaf'\x1c", "an archive"), (b"Rar!", "an archive"),
)  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OPEN_DOCUMENT = "application/vnd.oasis.opendocument."


def recognise(name: str, file: BinaryIO) -> Format:
    """Tell what a file is; leaves it at its start.

    Raises:
        NotADocument: it is no document, or of a format that is not read; the message says which.
        DocumentError: it is a broken container.
    """
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise NotADocument("the file is empty", code="E_EMPTY")
    if head.startswith(b"PK\x03\x04"):
        found = _container(file)
        file.seek(0)
        return found
    if head.startswith(_OLE):
        found = _compound(file, name)
        file.seek(0)
        return found
    if b"%PDF-" in head[:1024]:
        return PDF
    for mark, what in _MEDIA:
        if head.startswith(mark):
            raise NotADocument(f"{what}, not a document", hint=_unpack(what))
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"FORM"):
        raise NotADocument("an image, a recording or a video, not a document")
    if head.startswith(b"{\\rtf"):
        raise NotADocument("RTF is not read", hint="save it as DOCX")
    return _text(name, head)


def _unpack(what: str) -> str:
    return "unpack it and add the folder" if "archive" in what or "compressed" in what else ""


def _text(name: str, head: bytes) -> Format:
    """Kinds of text; content decides where it can, else the name."""
    lowered = name.lower()
    stem, dot, tail = lowered.rpartition(".")
    by_name = _NAMES.get(lowered) or _SUFFIXES.get(f".{tail}" if dot and stem else "")
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return HTML
    if start.startswith(b"<?xml"):
        return HTML if b"<html" in head.lower() and by_name is HTML else XML
    if by_name in (HTML, XML) and b"<" not in head:
        return TEXT
    if by_name in (JSON, NOTEBOOK) and not start.startswith((b"{", b"[", b'"')) and b"\0" not in head[:64]:
        return TEXT
    if by_name is not None:
        return by_name
    if head.startswith(b"From ") and b"\nFrom:" in head:
        return MBOX
    return TEXT


def _container(file: BinaryIO) -> Format:
    """What a zip file is, by the parts that each format cannot be without."""
    with open_archive(file) as archive:
        names = set(archive.namelist())
        mimetype = ""
        if "mimetype" in names and archive.getinfo("mimetype").file_size < 200:
            mimetype = archive.read("mimetype").decode("ascii", "replace").strip()
    if mimetype == "application/epub+zip" or "META-INF/container.xml" in names:
        return EPUB
    if "word/document.xml" in names or "word/document2.xml" in names:
        return DOCX
    if "ppt/presentation.xml" in names:
        return PPTX
    if "xl/workbook.bin" in names:
        return XLSB
    if "xl/workbook.xml" in names:
        return XLSX
    if mimetype.startswith(f"{_OPEN_DOCUMENT}spreadsheet"):
        return ODS
    if mimetype.startswith(_OPEN_DOCUMENT):
        raise NotADocument("OpenDocument text and slides are not read", hint="save it as DOCX or PPTX")
    raise NotADocument("an archive, not a document", hint="unpack it and add the folder")


def _compound(file: BinaryIO, name: str) -> Format:
    """What an OLE file is, by the names of its streams, which stand in it as UTF-16."""
    data = file.read(8 * 1024 * 1024)
    size = file.seek(0, io.SEEK_END)
    if size > len(data):
        file.seek(max(0, size - len(data)))  # the directory may stand at either end
        data += file.read(len(data))

    def holds(stream: str) -> bool:
        return stream.encode("utf-16-le") in data

    if holds("EncryptedPackage"):
        raise Encrypted("the Office file needs a password", hint="remove the password and add it again")
    if holds("__substg1.0_") or holds("__properties_version1.0"):
        return MSG
    if holds("WordDocument"):
        raise NotADocument("Word files from before 2007 are not read", hint="save it as DOCX")
    if holds("PowerPoint Document"):
        raise NotADocument("PowerPoint files from before 2007 are not read", hint="save it as PPTX")
    if holds("Workbook") or (holds("Book") and name.lower().endswith(".xls")):
        return XLS
    raise DocumentError("an OLE file of an unknown kind")
