"""Read tokenizer.model: the pieces of a SentencePiece model, from its protocol buffer, without the library.

Only the fields a conversion needs are looked at, and everything else is skipped by its length. Invariant: no length
in the file makes a read leave it or allocate more than it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from lathe.quantize.checkpoint import MAX_TOKENIZER_BYTES
from lathe.quantize.convert.vocabulary.model import MAX_TOKENS
from lathe.quantize.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

UNIGRAM, BPE = 1, 2
"""`TrainerSpec.ModelType`."""


class Piece(msgspec.Struct, frozen=True):
    """A token; `type` has GGUF's numbering, which is SentencePiece's."""

    text: str
    score: float
    type: int


class PieceModel(msgspec.Struct, frozen=True, kw_only=True):
    """A SentencePiece model."""

    pieces: list[Piece]
    kind: int = UNIGRAM
    charsmap: bytes = b""
    """Compiled normalization rules."""
    add_prefix: bool = True
    """Whether a text starts with a space of its own."""
    squeeze_spaces: bool = True
    """Whether runs of spaces become one."""


def read_pieces(path: Path) -> PieceModel:
    """Read a tokenizer.model; raise `CheckpointError` when it is none."""
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_TOKENIZER_BYTES:,} bytes, the limit for a tokenizer")
    pieces: list[Piece] = []
    facts: dict[str, object] = {}
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            match number, value:
                case 1, memoryview():
                    pieces.append(_piece(value))
                case 2, memoryview():
                    facts["kind"] = next((found for field, found in _fields(value) if field == 3), UNIGRAM)
                case 3, memoryview():
                    facts |= _normalizer(value)
            if len(pieces) > MAX_TOKENS:
                raise ValueError(f"it has more than {MAX_TOKENS:,} pieces")
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}") from error
    if not pieces:
        raise CheckpointError(f"{path} is no SentencePiece model: it has no pieces")
    return msgspec.convert({"pieces": pieces, **facts}, PieceModel)


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        match number, value:
            case 1, memoryview():
                text = bytes(value).decode()
            case 2, float():
                score = value
            case 3, int():
                kind = value
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece has the type {kind}")
    return Piece(text, score, kind)


def _normalizer(data: memoryview) -> dict[str, bytes | bool]:
    facts: dict[str, bytes | bool] = {}
    for number, value in _fields(data):
        match number, value:
            case 2, memoryview():
                facts["charsmap"] = bytes(value)
            case 3, int():
                facts["add_prefix"] = bool(value)
            case 4, int():
                facts["squeeze_spaces"] = bool(value)
    return facts


def _fields(data: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    """Yield the fields of a message: number and value; 64-bit fixed values are of no use here and are skipped."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif wire == _FIXED32:
            yield number, struct.unpack_from("<f", data, position)[0]
            position += 4
        elif wire == _FIXED64:
            position += 8
        elif wire == _BYTES:
            length, position = _varint(data, position)
            if length > len(data) - position:
                raise ValueError(f"a field of {length:,} bytes does not fit")
            yield number, data[position : position + length]
            position += length
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number is longer than 64 bits")
