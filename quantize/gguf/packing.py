"""Metadata that was read from a GGUF file as the bytes that it would be written as. Pure.

Invariant: a value that was read and packed again has the bytes it had in the file.
"""

from __future__ import annotations

import struct

import numpy as np
from lathe.quantize.gguf.types import DEFAULT_ALIGNMENT, LAYOUTS, ValueType
from lathe.quantize.gguf.values import GgufArray, Value


def packed_value(kind: ValueType, value: Value) -> bytes:
    """A metadata value behind its type."""
    if isinstance(value, GgufArray):
        head = struct.pack("<IIQ", ValueType.ARRAY, value.items, value.count)
        if value.items is ValueType.STRING:
            return head + b"".join(struct.pack("<Q", len(item)) + item for batch in value.batches() for item in batch)
        return head + value.numpy().tobytes()
    if isinstance(value, str):
        return struct.pack("<I", kind) + packed_text(value)
    return struct.pack("<I", kind) + np.array(value, LAYOUTS[kind]).tobytes()


def packed_text(value: str) -> bytes:
    """A string behind its length."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def packed_tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A row of the tensor table; `shape` is ggml's order, fastest dimension first."""
    dimensions = b"".join(struct.pack("<Q", size) for size in shape)
    return packed_text(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", kind, offset)


def padded(data: bytes) -> bytes:
    """Bytes up to the alignment."""
    return data + bytes(-len(data) % DEFAULT_ALIGNMENT)
