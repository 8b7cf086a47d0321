"""Llama files from before GGUF (`ggml`, `ggmf`, `ggjt`) to GGUF: tensors are copied as they are.

Those files say less than GGUF needs: the context's length and the norm's epsilon come from the caller. Invariant: only
tensor types whose bytes still mean the same are copied; llama.cpp changed Q4 and Q8 with version 3, the rest with 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import IO

import msgspec
import numpy as np
from lathe.quantize.artefact import new_artefact
from lathe.quantize.convert.convert import ConversionReport
from lathe.quantize.convert.families.llama import BEFORE_GGUF
from lathe.quantize.convert.names import Names
from lathe.quantize.convert.plan import require_whole_layers
from lathe.quantize.convert.shapes import check_shapes
from lathe.quantize.convert.vocabulary.model import Specials, TokenType, Vocabulary, checked
from lathe.quantize.convert.writer import Metadata, TensorEntry, f32, file_bytes, text, u32, write_gguf
from lathe.quantize.errors import FormatError, UnsupportedError
from lathe.quantize.gguf.header import read_header
from lathe.quantize.gguf.types import TENSOR_TYPE_BY_ID
from lathe.quantize.legacy_ggml import LegacyGgml, read_legacy
from lathe.quantize.progress import Report, silent
from lathe.quantize.safetensors import Array
from lathe.quantize.types import FILE_TYPES

_PLAIN = frozenset({"F32", "F16"})
_CHANGED_LAST = frozenset({"Q4_0", "Q4_1", "Q8_0"})
_PIECE = 4 << 20
_UNKNOWN, _BOS, _EOS = 0, 1, 2
"""Ids that every Llama of that time had."""
_FIRST_BYTE = 3


class _Stored(msgspec.Struct, frozen=True):
    """A tensor of the old file, under its new name."""

    entry: TensorEntry
    position: int


def convert_legacy(
    source: Path,
    output: Path,
    *,
    context_length: int = 2048,
    rms_epsilon: float = 5e-6,
    force: bool = False,
    report: Report | None = None,
) -> ConversionReport:
    """Convert a pre-GGUF Llama file to GGUF.

    Llama 2 was trained with a context of 4096 and an epsilon of 1e-5; the defaults are those of the first Llama.
    Raises `FormatError` for other files, `UnsupportedError` for other models and for tensor types that changed.
    """
    began = monotonic()
    facts = read_legacy(source)
    if facts.architecture != "llama":
        raise UnsupportedError(
            f"{source} is a {facts.container} file of {facts.architecture or 'a model that cannot be told'}; "
            "only Llama files were carried over to GGUF",
            hint="the legacy backend can still run it",
        )
    with source.open("rb") as file:
        tokens, scores, tensors = _walk(file, facts)
    entries = [tensor.entry for tensor in tensors]
    require_whole_layers([entry.name for entry in entries], facts.layers or 0)
    metadata = _metadata(facts, tensors, context_length, rms_epsilon) | _vocabulary(tokens, scores).metadata()
    check_shapes("llama", metadata, entries, len(tokens))
    expected = file_bytes(metadata, entries)
    with new_artefact(output, inputs=[source], expected_bytes=expected, force=force) as part, source.open("rb") as file:
        write_gguf(part, metadata, entries, _pieces(file, tensors, report or silent))
        read_header(part)
    return ConversionReport(
        output=output,
        architecture="llama",
        file_type=facts.file_type or "unknown",
        tensors=len(tensors),
        parameters=facts.parameters or 0,
        bytes=expected,
        seconds=monotonic() - began,
        warnings=(
            f"the context of {context_length:,} and the epsilon of {rms_epsilon} are assumed: the file has neither",
            "the tokenizer was not compared with its original: the file has none",
        ),
    )


def _walk(file: IO[bytes], facts: LegacyGgml) -> tuple[list[bytes], list[float], list[_Stored]]:
    """Read vocabulary and tensor table of a file whose structure was checked before."""
    file.seek(4 if facts.container == "ggml" else 8)
    count = _numbers(file, "<7I", facts)[0]
    tokens: list[bytes] = []
    scores: list[float] = []
    for _ in range(count):
        (length,) = _numbers(file, "<I", facts)
        tokens.append(file.read(length))
        scores.append(0.0 if facts.container == "ggml" else struct.unpack("<f", file.read(4))[0])
    names = Names(BEFORE_GGUF)
    tensors: list[_Stored] = []
    while file.tell() < facts.file_bytes:
        dimensions, length, number = _numbers(file, "<3I", facts)
        shape = _numbers(file, f"<{dimensions}I", facts)[::-1]
        name, kind = file.read(length).decode("ascii"), TENSOR_TYPE_BY_ID.get(number)
        if kind is None or _changed(kind.name, facts):
            raise UnsupportedError(
                f"{facts.path} has tensors of type {kind.name if kind else number} in {facts.container} version "
                f"{facts.version}; their layout changed later, and llama.cpp cannot read it any more",
                hint="convert an unquantized file of the model, or run it with the legacy backend",
            )
        found = names.find(name)
        if found is None:
            raise FormatError(f"{facts.path}: tensor {name!r} is not a Llama's", code="E_GGML")
        position = file.tell()
        if facts.container == "ggjt":
            position += -position % 32
        entry = TensorEntry(found[0], shape, kind.name)
        tensors.append(_Stored(entry, position))
        file.seek(position + entry.nbytes)
    return tokens, scores, tensors


def _changed(kind: str, facts: LegacyGgml) -> bool:
    """Tell whether a type's bytes meant something else when the file was written."""
    if kind in _PLAIN:
        return False
    return facts.container != "ggjt" or facts.version < 2 or (facts.version == 2 and kind in _CHANGED_LAST)


def _numbers(file: IO[bytes], layout: str, facts: LegacyGgml) -> tuple[int, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise FormatError(f"{facts.path} became shorter while it was read", code="E_GGML")
    return struct.unpack(layout, data)


def _metadata(facts: LegacyGgml, tensors: Sequence[_Stored], context: int, epsilon: float) -> Metadata:
    shapes = {tensor.entry.name: tensor.entry.shape for tensor in tensors}
    embedding, heads, layers = facts.embedding or 0, facts.heads or 1, facts.layers or 0
    feed, keys = shapes.get("blk.0.ffn_gate.weight", (0,))[0], shapes.get("blk.0.attn_k.weight", (0,))[0]
    width = embedding // heads
    llama = {
        "block_count": u32(layers),
        "context_length": u32(context),
        "embedding_length": u32(embedding),
        "feed_forward_length": u32(feed),
        "attention.head_count": u32(heads),
        "attention.head_count_kv": u32(keys // width),
        "attention.layer_norm_rms_epsilon": f32(epsilon),
        "rope.dimension_count": u32(width),
    }
    described = f"from a {facts.container} file of version {facts.version}"
    general = {"type": text("model"), "name": text(facts.path.stem), "description": text(described)}
    if facts.file_type in FILE_TYPES:
        general["file_type"] = u32(FILE_TYPES[facts.file_type].id)
    return (
        {"general.architecture": text("llama")}
        | {f"general.{key}": value for key, value in general.items()}
        | {f"llama.{key}": value for key, value in llama.items()}
        | {"general.quantization_version": u32(2)}
    )


def _vocabulary(tokens: list[bytes], scores: list[float]) -> Vocabulary:
    """Rebuild the SentencePiece vocabulary: bytes were stored raw, spaces as spaces."""
    special = {_UNKNOWN: (b"<unk>", TokenType.UNKNOWN), _BOS: (b"<s>", TokenType.CONTROL)}
    special[_EOS] = (b"</s>", TokenType.CONTROL)
    texts, types = list(tokens), [int(TokenType.NORMAL)] * len(tokens)
    for number, token in enumerate(tokens):
        if number in special:
            texts[number], types[number] = special[number]
        elif not token:
            texts[number], types[number] = f"[PAD{number}]".encode(), int(TokenType.UNUSED)
        elif _FIRST_BYTE <= number < _FIRST_BYTE + 256 and len(token) == 1:
            texts[number], types[number] = f"<0x{token[0]:02X}>".encode(), int(TokenType.BYTE)
        else:
            texts[number] = token.replace(b" ", "▁".encode())
    specials = Specials(ids={"bos": _BOS, "eos": _EOS, "unk": _UNKNOWN}, add={"bos": True, "eos": False})
    return checked(Vocabulary(model="llama", tokens=texts, types=types, scores=scores, specials=specials))


def _pieces(file: IO[bytes], tensors: Sequence[_Stored], report: Report) -> Iterator[tuple[int, Array]]:
    total, done = sum(tensor.entry.nbytes for tensor in tensors), 0
    for index, tensor in enumerate(tensors):
        file.seek(tensor.position)
        left = tensor.entry.nbytes
        while left and (data := file.read(min(left, _PIECE))):
            yield index, np.frombuffer(data, np.uint8)
            left -= len(data)
            done += len(data)
            report(tensor.entry.name, done, total, "B")
