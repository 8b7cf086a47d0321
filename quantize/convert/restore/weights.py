"""Dequantized weights, streamed into one safetensors file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from lathe.quantize.convert.encode import Floats, encode, row_pieces
from lathe.quantize.convert.family import Rule
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.stream import fault
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.errors import GgufError, UnsupportedError
from lathe.quantize.gguf.header import GgufHeader, GgufTensor
from lathe.quantize.progress import Report
from lathe.quantize.safetensors import Array

_WIDTH = {Encoding.F32: 4, Encoding.F16: 2, Encoding.BF16: 2}
_MATRICES = ("cls.output.weight", "token_types.weight")
"""May have one row, which llama.cpp's tools write as a vector."""


@dataclass(frozen=True)
class RestoredTensor:
    """A tensor of the checkpoint, and where its values are."""

    name: str
    shape: tuple[int, ...]
    """As the checkpoint has it."""
    header: GgufHeader
    tensor: GgufTensor
    rule: Rule

    def nbytes(self, dtype: Encoding) -> int:
        """Size in the checkpoint."""
        return math.prod(self.shape) * _WIDTH[dtype]


def restored(name: str, header: GgufHeader, tensor: GgufTensor, rule: Rule, hparams: Hparams) -> RestoredTensor:
    """Plan one tensor; refuse a layout that was changed without a way back."""
    if not rule.reversible:
        raise UnsupportedError(f"tensor {tensor.name} was cut when it was converted: the checkpoint's is lost")
    shape = tensor.shape[::-1]
    if len(shape) == 1 and tensor.name in _MATRICES:
        shape = (1, *shape)
    if rule.view_back is not None:
        shape = rule.view_back(np.broadcast_to(np.uint8(0), shape), hparams).shape
    return RestoredTensor(name, shape, header, tensor, rule)


def write_weights(
    path: Path, tensors: Sequence[RestoredTensor], hparams: Hparams, dtype: Encoding, report: Report, *, force: bool
) -> dict[str, int]:
    """Write the file, a few megabytes at a time; `force` keeps values that are not finite, and counts them by tensor.

    Raises `UnsupportedError` for such values otherwise.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        size = tensor.nbytes(dtype)
        entries[tensor.name] = {
            "dtype": dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = msgspec.json.encode(entries)
    header = header.ljust(-(-len(header) // 8) * 8)
    done = 0
    faults: dict[str, int] = {}
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            for values in _values(tensor, hparams):
                data, count = encode(values, "F32", dtype)
                if count:
                    name = tensor.tensor.name
                    faults[name] = faults.get(name, 0) + count
                    if not force:
                        raise UnsupportedError(
                            fault(name, count),
                            hint="bf16 and f32 hold larger values than f16; force it to keep them",
                        )
                file.write(data.data)
                done += data.nbytes
                report(tensor.name, done, offset, "B")
    return faults


def _values(restored: RestoredTensor, hparams: Hparams) -> Iterator[Floats]:
    """Yield a tensor's values in the checkpoint's order, by rows."""
    tensor, rule = restored.tensor, restored.rule
    with restored.header.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    position = restored.header.position(tensor)
    if position + tensor.nbytes > len(mapped):
        raise GgufError(f"{restored.header.path} became shorter while it was read")
    width, *others = tensor.shape
    rows = math.prod(others)
    stored: Array = np.frombuffer(mapped, np.uint8, tensor.nbytes, position).reshape(rows, -1)
    order = np.argsort(rule.rows(rows if others else width, hparams)) if rule.rows else None

    def undone(stored: Array) -> Floats:
        values = _dequantized(stored, tensor)
        return values if rule.undo is None else rule.undo(values)

    if not others or rule.view_back is not None:  # rearranged by values: biases, and GPT-2's matrices; both are small
        values = undone(stored).reshape(tensor.shape[::-1])
        values = values if order is None else values[order]
        yield values if rule.view_back is None else rule.view_back(values, hparams)
        return
    for part in row_pieces((rows, width)):
        yield undone(stored[part] if order is None else stored[order[part]])


def _dequantized(rows: Array, tensor: GgufTensor) -> Floats:
    """Turn stored rows into numbers."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        values = dequantize(np.ascontiguousarray(rows), GGMLQuantizationType(tensor.type.id))
    except NotImplementedError as error:
        raise UnsupportedError(f"tensor {tensor.name} has the type {tensor.type.name}: no dequantization") from error
    return np.ascontiguousarray(values, np.float32).reshape(len(rows), -1)
