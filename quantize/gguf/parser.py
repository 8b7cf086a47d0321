"""From bytes to a `GgufHeader`: the structure of a GGUF file, with every count and bound checked before it is used.

Meaning is not judged here (see `semantics`). Invariant: each length is compared with its limit and with the bytes
that are left before anything of that length is read or allocated.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.source import Source
from lathe.quantize.gguf.types import (
    ALIGNMENTS,
    DEFAULT_ALIGNMENT,
    LAYOUTS,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_ITEMS,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
    MAX_TEMPLATE_BYTES,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    TENSOR_TYPE_BY_ID,
    VERSIONS,
    ValueType,
    item_bytes,
)
from lathe.quantize.gguf.values import GgufArray, GgufHeader, GgufTensor, Value

_MIN_KEY = 8 + 1 + 4 + 1
"""Bytes of the smallest entry: a one-letter key with a bool."""
_MIN_TENSOR = 8 + 1 + 4 + 4 + 8
"""Bytes of the smallest row of the tensor table: a one-letter name without dimensions."""


def parse(path: Path) -> GgufHeader:
    """Read the header of one file; raises `GgufError`, or `InputMissing` where there is no file."""
    with Source(path) as source:
        version, tensor_count, key_count = _preamble(source)
        metadata, types = _metadata(source, key_count)
        alignment = _alignment(source, metadata, types)
        tensors = _tensor_table(source, tensor_count)
        header_end = source.position
        data_offset = _padded(header_end, alignment) if tensors else header_end
        _check_layout(source, tensors, data_offset, alignment)
        return GgufHeader(
            path=path,
            file_bytes=source.size,
            version=version,
            alignment=alignment,
            metadata=metadata,
            value_types=types,
            tensors=tensors,
            data_offset=data_offset,
        )


def quoted(name: str) -> str:
    """Show a name from a file in a message: escaped, at most 80 characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _preamble(source: Source) -> tuple[int, int, int]:
    if source.size < len(MAGIC):
        raise source.error(f"{source.size} bytes are no GGUF file")
    magic = source.take(len(MAGIC))
    if magic == MAGIC[::-1]:
        raise source.error("a big-endian GGUF file; only little-endian ones are supported")
    if magic != MAGIC:
        raise source.error(f"not a GGUF file: it starts with {magic!r}")
    version = source.u32()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise source.error("a big-endian GGUF file; only little-endian ones are supported")
        raise source.error(f"GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are supported")
    tensor_count, key_count = source.u64(), source.u64()
    _require_count(source, "tensors", tensor_count, MAX_TENSORS, _MIN_TENSOR)
    _require_count(source, "keys", key_count, MAX_KEYS, _MIN_KEY)
    return version, tensor_count, key_count


def _require_count(source: Source, what: str, count: int, limit: int, least_bytes: int) -> None:
    if count > limit:
        raise source.error(f"{count:,} {what}; the limit is {limit:,}", "E_GGUF_LIMIT")
    source.require(count * least_bytes)


def _metadata(source: Source, count: int) -> tuple[dict[str, Value], dict[str, ValueType]]:
    metadata: dict[str, Value] = {}
    types: dict[str, ValueType] = {}
    text_bytes = 0
    for index in range(count):
        source.place = f"key {index}"
        key = _name(source, MAX_KEY_BYTES, "E_GGUF_METADATA")
        source.place = f"key {quoted(key)}"
        if key in metadata:
            raise source.error(f"{source.place} is there twice", "E_GGUF_METADATA")
        kind = _value_type(source)
        if kind is ValueType.ARRAY:
            metadata[key] = _array(source, key)
        elif kind is ValueType.STRING:
            text = _text(source, MAX_TEMPLATE_BYTES if key.startswith("tokenizer.chat_template") else MAX_STRING_BYTES)
            text_bytes += len(text)
            if text_bytes > MAX_TEXT_BYTES:
                raise source.error(f"the strings together pass {MAX_TEXT_BYTES:,} bytes", "E_GGUF_LIMIT")
            metadata[key] = text
        else:
            metadata[key] = _number(source, kind)
        types[key] = kind
    return metadata, types


def _value_type(source: Source) -> ValueType:
    number = source.u32()
    try:
        return ValueType(number)
    except ValueError:
        raise source.error(f"{source.place} has the unknown value type {number}", "E_GGUF_METADATA") from None


def _number(source: Source, kind: ValueType) -> int | float | bool:
    data = source.take(item_bytes(kind))
    if kind is ValueType.BOOL and data > b"\x01":
        raise source.error(f"{source.place} is a bool with the value {data[0]}", "E_GGUF_METADATA")
    value: int | float | bool = np.frombuffer(data, LAYOUTS[kind])[0].item()
    return value


def _array(source: Source, key: str) -> GgufArray:
    items = _value_type(source)
    if items is ValueType.ARRAY:
        raise source.error(f"{source.place} is an array of arrays", "E_GGUF_METADATA")
    count = source.u64()
    _require_count(source, f"items in {source.place}", count, MAX_ITEMS, item_bytes(items))
    array = GgufArray(source.path, key, items, count, source.position)
    if items is ValueType.STRING:
        for _ in source.strings(count, MAX_STRING_BYTES):
            pass
    else:
        source.skip(count * item_bytes(items))
    return array


def _text(source: Source, limit: int) -> str:
    length = source.u64()
    if length > limit:
        raise source.error(f"{source.place}: a string of {length:,} bytes; the limit is {limit:,}", "E_GGUF_LIMIT")
    return _decoded(source, source.take(length), "E_GGUF_METADATA")


def _decoded(source: Source, data: bytes, code: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise source.error(f"{source.place} is not UTF-8", code) from None


def _name(source: Source, limit: int, code: str) -> str:
    """Read a key or a tensor's name: not empty, short, printable."""
    length = source.u64()
    if not 0 < length <= limit:
        raise source.error(f"the name of {source.place} has {length:,} bytes; 1 to {limit} are allowed", code)
    name = _decoded(source, source.take(length), code)
    if not name.isprintable():
        raise source.error(f"{source.place} has control characters in its name {quoted(name)}", code)
    return name


def _alignment(source: Source, metadata: dict[str, Value], types: dict[str, ValueType]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key]
    smallest, largest = ALIGNMENTS
    if types[key] is not ValueType.UINT32 or not isinstance(value, int):
        raise source.error(f"key {key!r} must be of type uint32", "E_GGUF_METADATA")
    if not smallest <= value <= largest or value & (value - 1):
        raise source.error(
            f"key {key!r} is {value}; a power of two from {smallest} to {largest} is needed", "E_GGUF_METADATA"
        )
    return value


def _tensor_table(source: Source, count: int) -> tuple[GgufTensor, ...]:
    tensors: dict[str, GgufTensor] = {}
    for index in range(count):
        source.place = f"tensor {index}"
        name = _name(source, MAX_NAME_BYTES, "E_GGUF_TENSOR")
        source.place = f"tensor {quoted(name)}"
        if name in tensors:
            raise source.error(f"{source.place} is there twice", "E_GGUF_TENSOR")
        tensors[name] = _tensor(source, name)
    return tuple(tensors.values())


def _tensor(source: Source, name: str) -> GgufTensor:
    dimensions = source.u32()
    if dimensions > MAX_DIMENSIONS:
        raise _bad_tensor(source, f"has {dimensions:,} dimensions; the limit is {MAX_DIMENSIONS}")
    shape = tuple(source.u64() for _ in range(dimensions)) or (1,)
    number, offset = source.u32(), source.u64()
    if not all(0 < size < 1 << 63 for size in shape) or math.prod(shape) >= 1 << 63:
        raise _bad_tensor(source, f"has the impossible shape {shape}")
    if number not in TENSOR_TYPE_BY_ID:
        raise _bad_tensor(source, f"has the unknown type {number}")
    kind = TENSOR_TYPE_BY_ID[number]
    if shape[0] % kind.block:
        raise _bad_tensor(source, f"has rows of {shape[0]:,} values; {kind.name} needs a multiple of {kind.block}")
    return GgufTensor(name, kind, shape, offset, kind.size(shape))


def _check_layout(source: Source, tensors: tuple[GgufTensor, ...], data_offset: int, alignment: int) -> None:
    """Tensors follow one another in the table's order, each padded to the alignment, all inside the file."""
    expected = 0
    for tensor in tensors:
        source.place = f"tensor {quoted(tensor.name)}"
        if tensor.offset % alignment:
            raise _bad_tensor(source, f"has the offset {tensor.offset:,}, which is not a multiple of {alignment}")
        stop = data_offset + tensor.offset + tensor.nbytes
        if stop > source.size:
            raise _bad_tensor(source, f"ends at byte {stop:,}; the file has {source.size:,}")
        if tensor.offset != expected:
            word = "overlaps what comes before it" if tensor.offset < expected else "leaves a hole before it"
            raise _bad_tensor(source, f"{word}: offset {tensor.offset:,}, expected {expected:,}")
        expected = _padded(tensor.offset + tensor.nbytes, alignment)


def _bad_tensor(source: Source, message: str) -> GgufError:
    return source.error(f"{source.place} {message}", "E_GGUF_TENSOR")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
