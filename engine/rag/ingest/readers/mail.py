"""E-mail: EML and mbox through the standard library, Outlook's MSG through olefile; attachments where they can be read.

Invariant: a message is data. Nothing it refers to is fetched, and an attachment that cannot be read is a noted part of
the message, not an error of the whole.
"""

from __future__ import annotations

import email
import email.policy
import io
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any, BinaryIO

from lathe.engine.errors import LatheError
from lathe.engine.rag.ingest.encoding import Decoded, decode
from lathe.engine.rag.ingest.errors import DocumentError, NoText
from lathe.engine.rag.ingest.readers.base import MAX_DEPTH, Notes, Source, library, too_much_text
from lathe.engine.rag.ingest.readers.html import clear_hidden, parse_html, walk_blocks
from lathe.engine.rag.values import Piece

_MAX_PARTS = 1_000
_HEADERS = ("from", "to", "cc", "date")
_SHOWN = 500
"""Characters of one header: lists of recipients can be long."""

ReadInside = Callable[[Source, Notes], Iterator[Piece]]
"""Reads a document of any format; given by whoever knows all formats."""


def read_eml(source: Source, notes: Notes, inside: ReadInside) -> Iterator[Piece]:
    """Yield one message: its headers, its text, its attachments."""
    notes.parser = "lathe mail 2"
    yield from _message(source.file.read(), source, notes, inside, ())


def read_mbox(source: Source, notes: Notes, inside: ReadInside) -> Iterator[Piece]:
    """Yield every message of a mailbox, one page each; the mailbox is never in memory as a whole."""
    notes.parser = "lathe mail 2"
    for number, data in enumerate(_messages(source.file), 1):
        if len(data) > notes.limits.output_chars:
            notes.skip(f"message {number} is larger than {notes.limits.output_chars:,} bytes")
            continue
        try:
            for piece in _message(data, source, notes, inside, (f"Message {number}",)):
                yield Piece(piece.text, piece.kind, number, piece.heading_path)
        except LatheError as error:
            notes.skip(f"message {number}: {error.message}")
    notes.title = ""


def _messages(file: BinaryIO) -> Iterator[bytes]:
    """Cut a mailbox at lines that begin with `From ` after an empty line (RFC 4155)."""
    lines: list[bytes] = []
    blank = True
    for line in file:
        if blank and line.startswith(b"From "):
            if any(part.strip() for part in lines):
                yield b"".join(lines)
            lines = []
        else:
            lines.append(line.removeprefix(b">") if line.startswith(b">From ") else line)
        blank = not line.strip()
    if any(part.strip() for part in lines):
        yield b"".join(lines)


def _message(data: bytes, source: Source, notes: Notes, inside: ReadInside, base: tuple[str, ...]) -> Iterator[Piece]:
    if len(data) > 4 * notes.limits.output_chars:
        raise too_much_text(notes.limits.output_chars)
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        headers = {name: _header(message, name) for name in ("subject", *_HEADERS)}
    except (ValueError, LookupError, RecursionError) as error:
        raise DocumentError(f"the message cannot be parsed: {error}") from error
    if not any(headers.values()) and not message.defects and message.get("received") is None:
        raise DocumentError("the file has no message headers")
    yield from _headers(headers, notes, base)
    path = (*base, headers["subject"]) if headers["subject"] else base
    try:
        body = _body(message)
        yield from _text(body, notes, path)
        if message.get_content_maintype() == "multipart":
            parts = list(message.iter_attachments())
        else:
            parts = [message] if body is None else []  # a scanner's mail is the PDF itself
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        notes.skip(f"body: {type(error).__name__}: {str(error)[:200]}")
        parts = []
    for part in parts[:_MAX_PARTS]:
        yield from _attached(part, source, notes, inside, path)


def _headers(headers: dict[str, str], notes: Notes, base: tuple[str, ...]) -> Iterator[Piece]:
    if headers["subject"]:
        notes.title = notes.title or headers["subject"]
        yield Piece(headers["subject"], "heading", None, (*base, headers["subject"]))
    for name in _HEADERS:
        if headers[name] and name not in notes.metadata:
            notes.say(name, headers[name])
    path = (*base, headers["subject"]) if headers["subject"] else base
    shown = [f"{name.capitalize()}: {headers[name][:_SHOWN]}" for name in _HEADERS if headers[name]]
    yield Piece("\n".join(shown), "record", None, path)


def _header(message: Any, name: str) -> str:
    """One header as text; a damaged one as it stands."""
    try:
        return " ".join(str(message.get(name) or "").split())
    except (ValueError, LookupError, AttributeError, IndexError, TypeError):  # the header parser's own bugs
        raw = next((value for key, value in message.raw_items() if key.lower() == name), "")
        return " ".join(str(raw).split())


def _body(message: Any) -> Any:
    """The part to read: plain text, or the HTML where that says nothing."""
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None or _decoded(body).text.strip():
        return body
    return message.get_body(preferencelist=("html",)) or body


def _decoded(body: Any) -> Decoded:
    return decode(body.get_payload(decode=True) or b"", body.get_content_charset())


def _text(body: Any, notes: Notes, path: tuple[str, ...]) -> Iterator[Piece]:
    if body is None:
        return
    decoded = _decoded(body)
    if decoded.replaced:
        notes.flags["replaced"] += decoded.replaced
    if body.get_content_subtype() == "html":
        yield from _html(decoded.text, notes, path)
        return
    for paragraph in decoded.text.split("\n\n"):
        quoted = paragraph.lstrip().startswith(">")
        yield Piece(paragraph.strip("\n").rstrip(), "quote" if quoted else "paragraph", None, path)


def _html(text: str, notes: Notes, path: tuple[str, ...]) -> Iterator[Piece]:
    if text.strip():
        tree = parse_html(text)
        clear_hidden(tree, notes)
        yield from walk_blocks(tree, path)


def _attached(part: Any, source: Source, notes: Notes, inside: ReadInside, path: tuple[str, ...]) -> Iterator[Piece]:
    name = str(part.get_filename() or part.get_content_type())
    try:
        if part.get_content_type() == "message/rfc822":
            content = part.get_content()
            data = content.as_bytes() if isinstance(content, EmailMessage) else bytes(part)
            name = name if name.endswith(".eml") else f"{name}.eml"
        else:
            data = part.get_payload(decode=True) or b""
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        notes.skip(f"attachment {name}: {type(error).__name__}")
        return
    yield from _inside(name, data, source, notes, inside, path)


def _inside(
    name: str, data: bytes, source: Source, notes: Notes, inside: ReadInside, path: tuple[str, ...]
) -> Iterator[Piece]:
    """A document inside the message, its name above its own headings."""
    if source.depth + 1 >= MAX_DEPTH:
        notes.skip(f"attachment {name}: more than {MAX_DEPTH} messages deep")
        return
    own = Notes(limits=notes.limits)
    try:
        for piece in inside(Source(name, io.BytesIO(data), len(data), source.depth + 1), own):
            yield Piece(piece.text, piece.kind, piece.page, (*path, name, *piece.heading_path))
    except LatheError as error:
        notes.skip(f"attachment {name}: {error.message}")
    notes.flags.update(own.flags)
    for line in own.skipped:
        notes.skip(f"attachment {name}: {line}")


_SUBJECT, _SENDER, _SENDER_MAIL, _TO, _CC, _BODY, _HTML = "0037", "0C1A", "0C1F", "0E04", "0E03", "1000", "1013"
"""Property numbers of MAPI messages (MS-OXPROPS); a stream's name ends with its number and its type."""
_ATTACHED_NAME, _ATTACHED_DATA = "3707", "3701"


def read_msg(source: Source, notes: Notes, inside: ReadInside) -> Iterator[Piece]:
    """Yield an Outlook message: an OLE file in which each property is a stream of its own."""
    olefile = library("olefile")
    notes.parser = f"olefile {olefile.__version__}"
    try:
        ole = olefile.OleFileIO(source.file)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise DocumentError(f"the message cannot be opened: {error}") from error
    sender = " ".join(filter(None, (_property(ole, _SENDER), _property(ole, _SENDER_MAIL))))
    headers = {
        "subject": _property(ole, _SUBJECT), "from": sender,
        "to": _property(ole, _TO), "cc": _property(ole, _CC), "date": "",
    }  # fmt: skip
    body, markup = _property(ole, _BODY, lines=True), _stream(ole, f"__substg1.0_{_HTML}0102")
    if not any(headers.values()) and not body and not markup:
        raise NoText("the message has neither headers nor a body")
    yield from _headers(headers, notes, ())
    path = (headers["subject"],) if headers["subject"] else ()
    if body:
        for paragraph in body.split("\n\n"):
            yield Piece(paragraph.strip("\n").rstrip(), "paragraph", None, path)
    elif markup:
        yield from _html(decode(markup).text, notes, path)
    folders = sorted({entry[0] for entry in ole.listdir() if entry[0].startswith("__attach_version1.0_")})
    for folder in folders[:_MAX_PARTS]:
        name = _property(ole, _ATTACHED_NAME, folder) or folder.removeprefix("__attach_version1.0_")
        data = _stream(ole, f"{folder}/__substg1.0_{_ATTACHED_DATA}0102")
        if data:
            yield from _inside(name, data, source, notes, inside, path)


def _property(ole: Any, number: str, folder: str = "", *, lines: bool = False) -> str:
    """A text property, in UTF-16 or in the sender's code page."""
    base = f"{folder}/__substg1.0_{number}" if folder else f"__substg1.0_{number}"
    wide, narrow = _stream(ole, f"{base}001F"), _stream(ole, f"{base}001E")
    text = wide.decode("utf-16-le", "replace") if wide else decode(narrow).text if narrow else ""
    text = text.replace("\r\n", "\n").strip("\0\n ")
    return text if lines else " ".join(text.split())


def _stream(ole: Any, name: str) -> bytes:
    try:
        return bytes(ole.openstream(name).read()) if ole.exists(name) else b""
    except (OSError, ValueError, IndexError):
        return b""
