"""How large the quantizer's output files will be. Pure.

This is llama.cpp's way of writing, foretold: the source's metadata, what is set besides, the table of tensors, and each
tensor padded. Invariant: sizes are exact to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from lathe.quantize.gguf.types import DEFAULT_ALIGNMENT, LAYOUTS, ValueType
from lathe.quantize.gguf.values import GgufArray, GgufHeader, Value
from lathe.quantize.plan import Override, PlannedTensor

_SHARD_KEYS = {"split.no": ValueType.UINT16, "split.count": ValueType.UINT16, "split.tensors.count": ValueType.INT32}


def file_sizes(
    tensors: Sequence[PlannedTensor], header: GgufHeader, overrides: dict[str, Override], keep_split: bool
) -> tuple[int, ...]:
    """Size of every output file, to the byte.

    `header` is the first shard's; `overrides` is all that will be set besides what the source has.
    """
    entries = {
        key: _entry_bytes(key, kind, header.metadata[key])
        for key, kind in header.value_types.items()
        if key not in _SHARD_KEYS
    }
    for key in ("general.quantization_version", "general.file_type"):
        entries[key] = _entry_bytes(key, ValueType.UINT32, 0)
    for key, value in overrides.items():
        entries[key] = _entry_bytes(key, _override_type(value), value)
    shards = sorted({tensor.shard for tensor in tensors}) if keep_split else [None]
    split = {key: _entry_bytes(key, kind, 0) for key, kind in _SHARD_KEYS.items()} if len(shards) > 1 else {}
    sizes = []
    for shard in shards:
        parts = [tensor for tensor in tensors if shard is None or tensor.shard == shard]
        keys = (entries if shard in (None, 0) else {}) | split
        table = sum(8 + len(tensor.name.encode()) + 4 + 8 * _dimensions(tensor.shape) + 12 for tensor in parts)
        head = _padded(24 + sum(keys.values()) + table)
        sizes.append(head + sum(_padded(tensor.bytes) for tensor in parts))
    return tuple(sizes)


def _override_type(value: Override) -> ValueType:
    match value:
        case bool():
            return ValueType.BOOL
        case int():
            return ValueType.UINT32
        case float():
            return ValueType.FLOAT32
        case str():
            return ValueType.STRING


def _entry_bytes(key: str, kind: ValueType, value: Value) -> int:
    head = 8 + len(key.encode()) + 4
    if isinstance(value, str):
        return head + 8 + len(value.encode())
    if isinstance(value, GgufArray):
        if value.items is ValueType.STRING:
            return head + 12 + sum(8 + len(item) for batch in value.batches() for item in batch)
        return head + 12 + value.count * int(LAYOUTS[value.items][-1])
    return head + int(LAYOUTS[kind][-1])


def _dimensions(shape: tuple[int, ...]) -> int:
    """ggml does not count trailing ones."""
    return max([1, *(at + 1 for at, size in enumerate(shape) if size > 1)])


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
