"""Read tokenizer.model: the pieces of a SentencePiece model, from its protocol buffer, without the library.

Only the fields a conversion needs are looked at. Invariant: what is read has texts in UTF-8 and types that exist.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
from lathe.quantize.checkpoint import MAX_TOKENIZER_BYTES
from lathe.quantize.convert.vocabulary.model import MAX_TOKEN_BYTES, MAX_TOKENS
from lathe.quantize.errors import CheckpointError, FormatError
from lathe.quantize.protobuf import Span, WireFile

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
    add_prefix: bool = True
    """Whether a text starts with a space of its own."""


def read_pieces(path: Path) -> PieceModel:
    """Read a tokenizer.model; raise `CheckpointError` when it is none."""
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"it is larger than {MAX_TOKENIZER_BYTES:,} bytes")
        with WireFile(path, "E_CHECKPOINT") as wire:
            model = _model(wire)
    except (FormatError, ValueError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}") from error
    if not model.pieces:
        raise CheckpointError(f"{path} is no SentencePiece model: it has no pieces")
    return model


def _model(wire: WireFile) -> PieceModel:
    pieces: list[Piece] = []
    kind, add_prefix = UNIGRAM, True
    for number, value in wire.fields(wire.message):
        match number:
            case 1:
                pieces.append(_piece(wire, wire.span(value)))
                if len(pieces) > MAX_TOKENS:
                    raise ValueError(f"it has more than {MAX_TOKENS:,} pieces")
            case 2:
                kind = _number(wire, wire.span(value), 3, UNIGRAM)
            case 3:
                add_prefix = bool(_number(wire, wire.span(value), 3, 1))
    return PieceModel(pieces=pieces, kind=kind, add_prefix=add_prefix)


def _piece(wire: WireFile, message: Span) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in wire.fields(message, fixed=True):
        match number, value:
            case 1, Span():
                text = wire.read(value, MAX_TOKEN_BYTES).decode()
            case 2, Span() if value.size == 4:
                (score,) = struct.unpack("<f", wire.read(value))
            case 3, int():
                kind = value
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece has the type {kind}")
    return Piece(text, score, kind)


def _number(wire: WireFile, message: Span, wanted: int, otherwise: int) -> int:
    """Return a number field of a message."""
    found = (value for number, value in wire.fields(message) if number == wanted and isinstance(value, int))
    return next(found, otherwise)
