"""Weights from the checkpoint's number formats to GGUF's, piece by piece.

Rounding is llama.cpp's, bit for bit: to nearest even for F16 and BF16, half away from zero for Q8_0's codes.
Invariant: a piece is a few megabytes whatever the tensor's size, and no value becomes infinite unnoticed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.safetensors import Array

PIECE_ELEMENTS = 1 << 20
"""Values per piece: 4 MB as float32."""
Q8_BLOCK = 32
_Q8_STEP = 1024
"""Blocks that are worked on at once: their intermediates stay in a core's cache."""

SOURCE_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""Safetensors types that weights come in; anything else is quantized or no weight."""

Floats = npt.NDArray[np.float32]


class Encoded(NamedTuple):
    """Bytes for the file, and how many of the values in them are infinite or no number."""

    data: Array
    faults: int


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut the first dimension into slices of about `PIECE_ELEMENTS` values."""
    width = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, PIECE_ELEMENTS // width)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def to_float32(piece: Array, dtype: str) -> Floats:
    """Widen values of a safetensors type; BF16 arrives as its bits."""
    if dtype == "BF16":
        return (piece.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return piece.astype(np.float32, copy=False)


def encode(piece: Array, dtype: str, target: Encoding) -> Encoded:
    """Turn stored values of a safetensors type into the bytes of a GGUF type."""
    match target:
        case Encoding.F32:
            data: Array = to_float32(piece, dtype)
        case Encoding.F16:
            data = piece if dtype == "F16" else _to_float16(piece, dtype)
        case Encoding.BF16:
            data = piece if dtype == "BF16" else to_bfloat16(to_float32(piece, dtype))
        case Encoding.Q8_0:
            data = to_q8_0(to_float32(piece, dtype))
    return Encoded(np.ascontiguousarray(data), _faults(data, target))


def _to_float16(piece: Array, dtype: str) -> npt.NDArray[np.float16]:
    if dtype == "BF16":
        return _bfloat16_as_float16().take(piece, mode="clip")  # by table: a third of the time of two conversions
    with np.errstate(over="ignore"):
        return to_float32(piece, dtype).astype(np.float16)


@functools.cache
def _bfloat16_as_float16() -> npt.NDArray[np.float16]:
    """Half-precision value of every bfloat16, by its bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        return to_float32(np.arange(1 << 16, dtype=np.uint16), "BF16").astype(np.float16)


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
    packed = np.empty((len(blocks), 2 + Q8_BLOCK), np.uint8)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for start in range(0, len(blocks), _Q8_STEP):
            part = blocks[start : start + _Q8_STEP]
            magnitude = np.abs(part)
            scale = np.maximum.reduce(magnitude.T.copy())[:, None] / np.float32(127)
            magnitude *= np.where(scale == 0, np.float32(0), np.float32(1) / scale) * np.float32(2)
            codes = (magnitude.astype(np.uint8) + np.uint8(1)) >> 1  # of twice the value: half goes away from zero
            negative = (part < 0).view(np.uint8)
            codes = (codes ^ (0 - negative)) + negative  # two's complement where negative
            packed[start : start + _Q8_STEP, :2] = scale.astype(np.float16).view(np.uint8)
            packed[start : start + _Q8_STEP, 2:] = codes
    return packed


def _faults(data: Array, kind: Encoding) -> int:
    """Count infinities and NaNs in what was encoded: on bits where that is quicker, in the scales of Q8_0."""
    match kind:
        case Encoding.F32:
            return int(data.size - np.count_nonzero(np.isfinite(data)))
        case Encoding.Q8_0:
            return _all_ones(data[:, :2].copy().view(np.uint16), 0x7C00)
        case Encoding.F16:
            return _all_ones(data.view(np.uint16), 0x7C00)
        case Encoding.BF16:
            return _all_ones(data, 0x7F80)


def _all_ones(bits: npt.NDArray[np.uint16], exponent: int) -> int:
    mask = np.uint16(exponent)
    return int(np.count_nonzero((bits & mask) == mask))
