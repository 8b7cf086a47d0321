"""Why a file gives no text. Every one becomes a row of the store's errors; none of them ends a run."""

from __future__ import annotations

from lathe.engine.errors import DataError, PolicyError, UnavailableError


class DocumentError(DataError):
    """The file is broken, or not what it claims to be."""

    code = "E_DOCUMENT"


class NotADocument(DocumentError):
    """The file holds no text by its nature: an image, a program, a pipe. Nothing is missing without it."""

    code = "E_NOT_A_DOCUMENT"


class NoText(DocumentError):
    """A document by its form, but without a single letter: scanned pages, an empty sheet."""

    code = "E_NO_TEXT"


class Encrypted(DocumentError):
    """A password is needed."""

    code = "E_ENCRYPTED"


class TooMuch(PolicyError):
    """The file, or what it unpacks to, is over a limit: size, text, members, ratio, depth."""

    code = "E_DOCUMENT_LIMIT"


class NeedsLibrary(UnavailableError):
    """The library for this format is not installed."""

    code = "E_NEEDS_EXTRA"
