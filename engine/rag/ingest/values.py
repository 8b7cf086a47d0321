"""What ingest is told and what it answers with, as values; `read_folder` in `folder.py` joins them.

    async for item in read_folder(roots, known, limits, cleaning, log_path=..., report=...):
        match item: ParsedDocument -> split, embed, store     FileProblem -> a row of the store's errors
                    Unchanged -> keep what is stored          Gone        -> delete what is stored
Invariant: every file that the walk met answers with exactly one item, and `Gone` items come last, only for known files
below a root that could be walked completely: a folder that is away for a moment never empties a store.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.rag.values import ParsedDocument

Treatment = Literal["keep", "mask", "drop"]
"""Of a finding: counted only; its characters replaced by its name; the whole block left out."""


class KnownFile(msgspec.Struct, frozen=True):
    """A file as the store remembers it."""

    sha256: str
    file_bytes: int = -1
    """-1 with `modified_ns` 0: not remembered, so the content decides alone."""
    modified_ns: int = 0


class Cleaning(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to text between reading and splitting; part of a store's recipe."""

    form: Literal["NFC", "NFKC", "none"] = "NFC"
    """NFC keeps what the author wrote; NFKC also folds ligatures, full-width and superscript forms."""
    hidden: Literal["strip", "keep"] = "strip"
    """Zero-width, bidi, tag and control characters; counted either way."""
    personal: Treatment = "keep"
    """E-mail addresses, phone numbers, card, bank and identity numbers, secrets."""
    phone_region: str | None = None
    """Such as `DE`: also finds numbers without a country code; None finds those that start with `+`."""
    injection: Literal["keep", "drop"] = "keep"
    """Text that addresses a model instead of a reader."""


class FileProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A file that gave no text; one row of the store's errors."""

    path: str
    failure: Failure
    kind: Literal["failed", "skipped"] = "failed"
    """`skipped`: it is no document (an image, a pipe, a link out of the folder), so nothing is missing."""
    file_bytes: int | None = None
    modified_ns: int = 0


class Unchanged(msgspec.Struct, frozen=True):
    """A known file whose content is the same."""

    path: str
    known: KnownFile


class Gone(msgspec.Struct, frozen=True):
    """A known file that is no longer there."""

    path: str


Item = ParsedDocument | FileProblem | Unchanged | Gone


class ReadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is; `files_total` and `bytes_total` grow until the walk has ended."""

    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    walked: bool = False
    """The totals are final."""
    current: str = ""
