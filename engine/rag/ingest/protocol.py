"""What the engine and the parser's process say to each other: frames of `engine/wire.py`, one file at a time.

`Ready` comes first; each `Read` is answered by `Same` or `Failed`, or by any number of `Part`s and then `Parsed`. A
long document travels in parts because a frame has a limit and a document's blocks may outweigh its text.
"""

from __future__ import annotations

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.rag.ingest.values import Cleaning
from lathe.engine.rag.values import Block, ParsedDocument, ReadLimits


class Read(msgspec.Struct, frozen=True, tag=True):
    """Read one file; paths are bytes because names need not be text."""

    path: bytes
    limits: ReadLimits
    cleaning: Cleaning
    known_sha256: str | None = None
    """Answer `Same` without parsing when the content still has this hash."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    pid: int


class Part(msgspec.Struct, frozen=True, tag=True):
    text: str = ""
    blocks: tuple[Block, ...] = ()


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """The rest of a document; its text and blocks are those of the parts."""

    document: ParsedDocument
    leaving: bool = False
    """The process has grown and ends after this answer; the next file gets a fresh one."""


class Same(msgspec.Struct, frozen=True, tag=True):
    """The content has the hash it was known by."""

    sha256: str
    file_bytes: int
    modified_ns: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    failure: Failure
    document: bool = True
    """False: the file is no document at all, so nothing is missing without it."""
    file_bytes: int | None = None
    leaving: bool = False


FromParser = Ready | Part | Parsed | Same | Failed
