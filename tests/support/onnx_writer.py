"""ONNX files written as raw protocol buffers, so that any field can be wrong and the onnx package is not needed."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

FLOAT, UINT8, INT8, INT64, FLOAT16 = 1, 2, 3, 7, 10
_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT64: 8, FLOAT16: 2}


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def integer(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number % (1 << 64))


def span(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def entry(key: str, value: str) -> bytes:
    return span(13, span(1, key) + span(2, value))


def tensor(name: str, shape: Iterable[int], kind: int = FLOAT, data: bytes | None = None) -> bytes:
    """A tensor with its data inside; zeros unless given."""
    shape = list(shape)
    data = bytes(math.prod(shape) * _BYTES[kind]) if data is None else data
    return b"".join(integer(1, size) for size in shape) + integer(2, kind) + span(8, name) + span(9, data)


def external_tensor(name: str, shape: Iterable[int], **entries: str) -> bytes:
    """A float tensor whose data is in another file."""
    dims = span(1, b"".join(map(varint, shape)))  # packed, as newer writers do
    return dims + integer(2, FLOAT) + span(8, name) + b"".join(map(entry, entries, entries.values())) + integer(14, 1)


def node(operator: str, inputs: Iterable[str], outputs: Iterable[str], *attributes: bytes) -> bytes:
    return (
        b"".join(span(1, name) for name in inputs)
        + b"".join(span(2, name) for name in outputs)
        + span(4, operator)
        + b"".join(span(5, attribute) for attribute in attributes)
    )


def int_attribute(name: str, value: int) -> bytes:
    return span(1, name) + integer(3, value) + integer(20, 2)


def graph(nodes: Iterable[bytes] = (), initializers: Iterable[bytes] = ()) -> bytes:
    return b"".join(span(1, item) for item in nodes) + span(2, "g") + b"".join(span(5, item) for item in initializers)


def model(body: bytes, *extra: bytes) -> bytes:
    opset = span(8, span(1, "") + integer(2, 21))
    return integer(1, 10) + span(2, "tests") + opset + span(7, body) + b"".join(extra)


def packed_floats(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<f", value) for value in values)
