"""Write a GGUF v3 file front to back: header, metadata, tensor table, then tensors that arrive in pieces.

Little endian, alignment 32. Invariant: memory holds one piece at a time, and a file that `write_gguf` finished has
exactly the bytes its table promises.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import msgspec
from lathe.quantize.errors import CheckpointError, QuantizeError
from lathe.quantize.gguf.types import DEFAULT_ALIGNMENT, MAGIC, ValueType
from lathe.quantize.safetensors import Array
from lathe.quantize.types import TENSOR_TYPES

VERSION = 3
LARGEST_FLOAT = 3.4e38
"""Of 32 bits, roughly."""


_PACKING = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class Value(msgspec.Struct, frozen=True):
    """A typed metadata value; `items` is the element type of an array."""

    type: ValueType
    data: Any
    items: ValueType | None = None


Metadata = dict[str, Value]


def u32(number: int) -> Value:
    """Make an unsigned 32-bit value."""
    if not 0 <= number < 1 << 32:
        raise CheckpointError(f"{number:,} does not fit into the 32 bits that GGUF has for it")
    return Value(ValueType.UINT32, number)


def f32(number: float) -> Value:
    """Make a 32-bit float value."""
    if not abs(number) < LARGEST_FLOAT:
        raise CheckpointError(f"{number} does not fit into the 32 bits that GGUF has for it")
    return Value(ValueType.FLOAT32, number)


def flag(truth: bool) -> Value:
    """Make a boolean value."""
    return Value(ValueType.BOOL, truth)


def text(string: str) -> Value:
    """Make a string value."""
    return Value(ValueType.STRING, string)


def array(items: ValueType, data: Sequence[Any] | bytes) -> Value:
    """Make an array value of one element type."""
    return Value(ValueType.ARRAY, data, items)


class Encoding(StrEnum):
    """The tensor types that a conversion writes; the values are their names."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"


class TensorEntry(msgspec.Struct, frozen=True):
    """A row of the tensor table; `shape` is numpy's order, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: str
    """Name of a tensor type; of an `Encoding` where values are encoded here."""

    @property
    def nbytes(self) -> int:
        return TENSOR_TYPES[self.type].size(self.shape[::-1])


def padded(size: int) -> int:
    """Round up to the alignment."""
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def file_bytes(metadata: Mapping[str, Value], tensors: Sequence[TensorEntry]) -> int:
    """Predict the size of the file to the byte."""
    return padded(len(header_bytes(metadata, tensors))) + sum(padded(entry.nbytes) for entry in tensors)


def header_bytes(metadata: Mapping[str, Value], tensors: Sequence[TensorEntry]) -> bytes:
    """Pack everything before the tensor data, without its padding."""
    header = bytearray(MAGIC)
    header += struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += _string(key) + struct.pack("<I", value.type)
        if value.type is ValueType.ARRAY:
            assert value.items is not None
            header += struct.pack("<IQ", value.items, len(value.data)) + _pack_items(value.items, value.data)
        else:
            header += _pack_items(value.type, (value.data,))
    offset = 0
    for entry in tensors:
        header += _string(entry.name) + struct.pack("<I", len(entry.shape))
        header += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        header += struct.pack("<IQ", TENSOR_TYPES[entry.type].id, offset)
        offset += padded(entry.nbytes)
    return bytes(header)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorEntry],
    pieces: Iterable[tuple[int, Array]],
) -> None:
    """Write the file; `pieces` are (index of its tensor, bytes), in the order of the table."""
    with path.open("wb") as file:
        header = header_bytes(metadata, tensors)
        file.write(header.ljust(padded(len(header)), b"\0"))
        _write_pieces(file, tensors, iter(pieces))


def _write_pieces(file: IO[bytes], tensors: Sequence[TensorEntry], pieces: Iterator[tuple[int, Array]]) -> None:
    written = [0] * len(tensors)
    current = 0
    for index, piece in pieces:
        for finished in range(current, index):
            _finish(file, tensors[finished], written[finished])
        current = index
        file.write(piece.data)
        written[index] += piece.nbytes
    for finished in range(current, len(tensors)):
        _finish(file, tensors[finished], written[finished])


def _finish(file: IO[bytes], entry: TensorEntry, written: int) -> None:
    if written != entry.nbytes:
        raise QuantizeError(f"tensor {entry.name} came out as {written:,} bytes instead of {entry.nbytes:,}")
    file.write(bytes(padded(written) - written))


def _string(value: str | bytes) -> bytes:
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _pack_items(kind: ValueType, items: Sequence[Any] | bytes) -> bytes:
    if kind is ValueType.STRING:
        return b"".join(map(_string, items))
    return struct.pack(f"<{len(items)}{_PACKING[kind]}", *items)
