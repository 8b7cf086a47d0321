"""How the quantizer's output is laid out: the size of each file, and the bytes before the tensors. Pure.

This is llama.cpp's way of writing, foretold: the source's metadata in its order, what is set moved to the end, then the
tensors in the plan's order. Invariant: sizes are exact to the byte; who relies on a head compares it with the file's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from lathe.quantize.gguf.packing import packed_tensor, packed_text, packed_value, padded
from lathe.quantize.gguf.types import DEFAULT_ALIGNMENT, LAYOUTS, MAGIC, ValueType
from lathe.quantize.gguf.values import GgufArray, GgufHeader, Value
from lathe.quantize.plan import Override, PlannedTensor, QuantizeOptions, QuantPlan, chosen_type
from lathe.quantize.types import tensor_type

_SHARD_KEYS = {"split.no": ValueType.UINT16, "split.count": ValueType.UINT16, "split.tensors.count": ValueType.INT32}
_QUANTIZATION_VERSION = 2


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


def foreseen_head(
    plan: QuantPlan, header: GgufHeader, overrides: dict[str, Override], options: QuantizeOptions
) -> bytes:
    """What llama.cpp will write before the tensors of an unsplit output, to the byte, padding included.

    `header` is the first shard's; `overrides` is all that will be set besides what the source has.
    """
    keys = {key: packed_value(header.value_types[key], value) for key, value in header.metadata.items()}

    def put(key: str, kind: ValueType, value: Value) -> None:
        keys.pop(key, None)
        keys[key] = packed_value(kind, value)

    recipe = chosen_type(options)
    put("general.quantization_version", ValueType.UINT32, _QUANTIZATION_VERSION)
    put("general.file_type", ValueType.UINT32, header.number("general.file_type") or 0 if recipe is None else recipe.id)
    for key in _SHARD_KEYS:
        keys.pop(key, None)
    for key, value in overrides.items():
        put(key, _override_type(value), abs(value) if type(value) is int else value)
    if options.prune_layers:
        key = f"{header.architecture}.block_count"
        layers = header.hyper("block_count")
        put(key, ValueType.UINT32, (layers if isinstance(layers, int) else 0) - len(set(options.prune_layers)))
    table, offset = b"", 0
    for tensor in plan.tensors:
        shape = tensor.shape[: _dimensions(tensor.shape)]
        table += packed_tensor(tensor.name, shape, tensor_type(tensor.target).id, offset)
        offset += _padded(tensor.bytes)
    start = struct.pack("<4sIQQ", MAGIC, 3, len(plan.tensors), len(keys))
    return padded(start + b"".join(packed_text(key) + value for key, value in keys.items()) + table)


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


def padded_bytes(tensor: PlannedTensor) -> int:
    """What a tensor takes in the file."""
    return _padded(tensor.bytes)


def _dimensions(shape: tuple[int, ...]) -> int:
    """ggml does not count trailing ones."""
    return max([1, *(at + 1 for at, size in enumerate(shape) if size > 1)])


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
