"""Seals: a SHA-256 over every other field of a row and its key.

Invariant: two different rows never have the same bytes under the hash: fields are framed by msgpack, not joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

_encode = msgspec.msgpack.Encoder().encode
DOCUMENT_FIELDS = (
    "id", "path", "source", "sha256", "size", "mtime_ns", "media_type", "title", "language", "partition", "parser",
    "metadata", "flags", "passages", "chars", "version",
)  # fmt: skip
PASSAGE_FIELDS = (
    "id", "document", "ordinal", "text", "heading", "heading_path", "start", "end", "page", "kind", "tokens", "flags",
)  # fmt: skip
COLUMN_FIELDS = ("number", "embedder", "state", "created_at")


def seal(values: Sequence[object]) -> bytes:
    """Seal a row's fields in their fixed order."""
    return hashlib.sha256(_encode(values)).digest()


def vector_seal(embedder_sha256: str, passage_id: int, passage_seal: bytes, vector: bytes) -> bytes:
    """Seal a vector together with whose it is: the passage as it is worded, and the model that made it."""
    return hashlib.sha256(_encode((embedder_sha256, passage_id, passage_seal)) + vector).digest()
