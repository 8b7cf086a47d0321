"""One tensor to one type, outside any file: what llama_model_quantize does to it, to the byte, or better.

Native code: only ever called in a job's child. Invariant: rows are worked in slabs of `_SLAB_BYTES` of float32, so
memory is not bounded by the tensor; without `feedback` the bytes are llama.cpp's own.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.quantize import libllama
from lathe.quantize.blocks import numbers_of
from lathe.quantize.errors import GgufError, InputMissing, UnsupportedError
from lathe.quantize.feedback import Feedback, refinable, refine, values
from lathe.quantize.gguf.values import GgufHeader, GgufTensor
from lathe.quantize.types import CRASH_WITHOUT_IMATRIX, TensorType

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_SLAB_BYTES = 128 * 1024 * 1024
_PIECE_ROWS = 64
"""Least rows worth a thread."""
_SAMPLED_ROWS = 512


@functools.cache
def _chunk() -> Any:
    function = libllama.ggml().ggml_quantize_chunk
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    function.restype = ctypes.c_size_t
    return function


def quantize_tensor(
    header: GgufHeader,
    tensor: GgufTensor,
    kind: TensorType,
    importances: Floats | None = None,
    feedback: Feedback | None = None,
    threads: int = 1,
) -> Iterator[Bytes]:
    """Yield the tensor's bytes as `kind`, slab by slab.

    Args:
        importances: one value per channel and matrix, as `Imatrix.importances` has them.
        feedback: round again with the second moments of the input, where the type allows it.

    Raises:
        UnsupportedError: the source is quantized, or its rows do not fit the blocks.
        GgufError: it holds values that are no numbers.
    """
    row, count = tensor.shape[0], math.prod(tensor.shape[1:])
    kind.size(tensor.shape)
    if kind.name in CRASH_WITHOUT_IMATRIX and importances is None:
        raise InputMissing(f"{tensor.name} as {kind.name} needs importances", code="E_IMATRIX_NEEDED")
    per_matrix = tensor.shape[1] if len(tensor.shape) > 1 else 1
    step = max(1, min(count, _SLAB_BYTES // (4 * row)))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, step):
            rows = _read(header, tensor, start, min(step, count - start))
            result = np.empty(kind.size((row, len(rows))), np.uint8)
            work = functools.partial(_quantize, kind, rows, result, importances, start, per_matrix)
            for _ in pool.map(work, _pieces(start, len(rows), per_matrix, threads)):
                pass
            if feedback is not None and refinable(kind.name):
                result = refine(kind.name, result.reshape(len(rows), -1), rows, feedback).ravel()
            yield result


def sampled_error(
    header: GgufHeader,
    tensor: GgufTensor,
    kind: TensorType,
    importances: Floats | None = None,
    feedback: Feedback | None = None,
) -> float:
    """Expected squared error of what the tensor puts out as `kind`, summed over rows; from a sample of them.

    Weighted by the second moments of the input where they are known, else by importances, else not at all. Of a tensor
    with several matrices the first is taken to speak for all.
    """
    row, rows = tensor.shape[0], tensor.shape[1]
    step = max(1, rows // _SAMPLED_ROWS)
    weights = np.concatenate([_read(header, tensor, at, 1) for at in range(0, rows, step)])
    result = np.empty(kind.size((row, len(weights))), np.uint8)
    first = importances[:row] if importances is not None else None
    _quantize(kind, weights, result, first, 0, len(weights), (0, len(weights)))
    packed = result.reshape(len(weights), -1)
    if feedback is not None and refinable(kind.name):
        packed = refine(kind.name, packed, weights, feedback)
    difference = weights - _dequantized(kind, packed)
    scale = math.prod(tensor.shape[1:]) / len(weights)
    if feedback is not None:
        return scale * feedback.error(difference)
    power = np.square(difference).astype(np.float64)
    return scale * float((power if first is None else power * first).sum())


def _dequantized(kind: TensorType, packed: Bytes) -> Floats:
    if refinable(kind.name):
        numbers, grid = numbers_of(kind.name, packed)
        return values(grid, numbers)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    restored: Floats = dequantize(packed, GGMLQuantizationType[kind.name])
    return restored


def _read(header: GgufHeader, tensor: GgufTensor, start: int, count: int) -> Floats:
    """Rows as float32."""
    row = tensor.shape[0]
    offset = header.position(tensor) + start * tensor.type.size((row,))
    match tensor.type.name:
        case "F32":
            values: Floats = np.fromfile(header.path, np.float32, row * count, offset=offset)
        case "F16":
            values = np.fromfile(header.path, np.float16, row * count, offset=offset).astype(np.float32)
        case "BF16":
            upper = np.fromfile(header.path, np.uint16, row * count, offset=offset).astype(np.uint32)
            values = (upper << 16).view(np.float32)
        case other:
            raise UnsupportedError(f"{tensor.name} is {other} already; start from an F16, BF16 or F32 file")
    if not np.isfinite(values).all():
        raise GgufError(f"{tensor.name} holds weights that are no numbers", code="E_GGUF_TENSOR")
    return values.reshape(count, row)


def _pieces(start: int, count: int, per_matrix: int, threads: int) -> Iterator[tuple[int, int]]:
    """Split rows [start, start + count) for the threads; a piece stays within one matrix and its importances."""
    size = max(_PIECE_ROWS, -(-count // threads))
    at = start
    while at < start + count:
        end = min(at + size, start + count, (at // per_matrix + 1) * per_matrix)
        yield at, end
        at = end


def _quantize(
    kind: TensorType,
    rows: Floats,
    result: Bytes,
    importances: Floats | None,
    start: int,
    per_matrix: int,
    piece: tuple[int, int],
) -> None:
    row = rows.shape[1]
    source = rows[piece[0] - start : piece[1] - start]
    row_bytes = kind.size((row,))
    target = result[(piece[0] - start) * row_bytes : (piece[1] - start) * row_bytes]
    weights = None
    if importances is not None:
        matrix = piece[0] // per_matrix
        weights = importances[matrix * row : (matrix + 1) * row].ctypes.data
    if kind.name == "F32":
        target[:] = source.view(np.uint8).ravel()
        return
    written = _chunk()(kind.id, source.ctypes.data, target.ctypes.data, 0, len(source), row, weights)
    if written != target.size:
        raise GgufError(f"llama.cpp wrote {written} bytes of {kind.name} where {target.size} belong")
