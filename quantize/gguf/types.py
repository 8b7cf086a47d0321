"""GGUF's vocabulary: metadata value types, tensor types by id, file types by id, and our limits.

Invariant: the numbers are those of `gguf.h`, `ggml.h` and `llama.h` of the pinned llama.cpp; ids that it removed or
that only exist inside a computation (Q8_1, Q8_K) are absent, so that a file that uses them is refused.
"""

from __future__ import annotations

from enum import IntEnum

from lathe.quantize.types import FILE_TYPES, TENSOR_TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENTS = (32, 65536)
"""Smallest and largest accepted; below 32 llama.cpp's CPU buffers abort."""
MAX_DIMENSIONS = 4

MAX_HEADER_BYTES = 128 << 20
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 1 << 20
MAX_TEMPLATE_BYTES = 256 << 10
MAX_TEXT_BYTES = 16 << 20
"""Of all string values together; arrays are not counted, they stay on disk."""
MAX_ITEMS = 2_000_000
"""Per array."""
MAX_NAME_BYTES = 63
"""Of a tensor's name; ggml keeps 64 with the terminator."""


class ValueType(IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


LAYOUTS = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "|b1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}
"""NumPy layout of the types that have a fixed size; the digit is that size in bytes."""

TENSOR_TYPE_BY_ID = {kind.id: kind for kind in TENSOR_TYPES.values()} | {
    kind.id: kind
    for kind in (
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
    )
}
"""Every type that a tensor in a file may have: those that weights are stored in, and plain numbers."""

FILE_TYPE_NAMES = {kind.id: kind.name for kind in FILE_TYPES.values()} | {4: "Q4_1_SOME_F16", 39: "NVFP4"}
"""general.file_type -> name; the added ones are found in files but not offered as targets."""


def item_bytes(kind: ValueType) -> int:
    """Size of one value; for strings the smallest possible."""
    return 8 if kind is ValueType.STRING else int(LAYOUTS[kind][-1])
