"""Weights from the checkpoint's number formats to GGUF's, piece by piece.

Rounding is llama.cpp's, bit for bit: to nearest even for F16 and BF16, half away from zero for Q8_0's codes.
Invariant: a piece is a few megabytes whatever the tensor's size, and no value becomes infinite unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.safetensors import Array

PIECE_ELEMENTS = 1 << 20
"""Values per piece: 4 MB as float32, which stays in the caches of small machines."""
Q8_BLOCK = 32

Floats = npt.NDArray[np.float32]


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut the first dimension into slices of about `PIECE_ELEMENTS` values."""
    if not shape:
        yield slice(None)
        return
    width = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, PIECE_ELEMENTS // width)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def to_float32(piece: Array, dtype: str) -> Floats:
    """Widen values of a safetensors type; BF16 arrives as its bits."""
    if dtype == "BF16":
        return (piece.astype(np.uint32) << 16).view(np.float32)
    return piece.astype(np.float32, copy=False)


def encode(piece: Array, dtype: str, target: Encoding) -> Array:
    """Turn stored values of a safetensors type into the bytes of a GGUF type."""
    if target == dtype:
        return np.ascontiguousarray(piece)
    values = to_float32(piece, dtype)
    match target:
        case Encoding.F32:
            return np.ascontiguousarray(values)
        case Encoding.F16:
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values).astype(np.float16)
        case Encoding.BF16:
            return to_bfloat16(values)
        case Encoding.Q8_0:
            return to_q8_0(values)


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to the upper half of the bits, to nearest even; a NaN stays one, quiet."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():  # the sum above may have carried a NaN into the sign
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype(np.uint16)


def to_q8_0(values: Floats) -> npt.NDArray[np.uint8]:
    """Quantize to blocks of 32: a half-precision scale, then 32 signed bytes."""
    blocks = values.reshape(-1, Q8_BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    magnitude = np.abs(scaled)
    floor = np.floor(magnitude)
    rounded = np.copysign(floor + np.floor(2 * (magnitude - floor)), scaled)  # half away from zero
    packed = np.empty((len(blocks), 2 + Q8_BLOCK), np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        packed[:, :2] = scale.astype(np.float16).view(np.uint8)
        packed[:, 2:] = rounded.astype(np.int8).view(np.uint8)
    return packed


def count_not_finite(piece: Array, dtype: str) -> int:
    """Count infinities and NaNs; works on the bits of 16-bit types, which is one pass over half the bytes."""
    if dtype in ("BF16", "F16"):
        mask = np.uint16(0x7F80 if dtype == "BF16" else 0x7C00)
        return int(np.count_nonzero((piece.view(np.uint16) & mask) == mask))
    if piece.dtype.kind != "f":
        return 0
    return int(piece.size - np.count_nonzero(np.isfinite(piece)))
