"""Inside quantized blocks: the numbers that weights were rounded to, taken out and put back, scales untouched.

A block type stores small integers with shared scales; a weight is `scale * level(number) + offset`. `Grid` holds what
a number means for every weight of some rows. Layouts are those of ggml-common.h. Pure numpy. Invariant: storing the
numbers just taken out gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int16]

_NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""Levels of IQ4_NL and IQ4_XS."""


class Grid(msgspec.Struct, frozen=True):
    """What numbers mean; arrays are rows x columns."""

    scale: Floats
    offset: Floats | None
    """None: zero."""
    low: int
    high: int
    levels: Floats | None = None
    """Value of each number before scaling; None: the number itself."""


class Layout(msgspec.Struct, frozen=True):
    """How one type is laid out."""

    block: int
    bytes: int
    read: Callable[[Bytes], tuple[Numbers, Grid]]
    """Blocks (n x bytes) to numbers (n x block) and their grid."""
    write: Callable[[Bytes, Numbers], None]
    """Put numbers into blocks, in place."""


def numbers_of(kind: str, rows: Bytes) -> tuple[Numbers, Grid]:
    """Take the numbers out of rows of bytes."""
    layout = LAYOUTS[kind]
    numbers, grid = layout.read(rows.reshape(-1, layout.bytes))
    shape = (len(rows), -1)
    offset = None if grid.offset is None else grid.offset.reshape(shape)
    return numbers.reshape(shape), Grid(grid.scale.reshape(shape), offset, grid.low, grid.high, grid.levels)


def store(kind: str, rows: Bytes, numbers: Numbers) -> Bytes:
    """A copy of the rows with other numbers."""
    layout = LAYOUTS[kind]
    result = rows.copy()
    layout.write(result.reshape(-1, layout.bytes), numbers.reshape(-1, layout.block))
    return result


def _half(blocks: Bytes, at: int) -> Floats:
    """A float16 of each block, as a column."""
    value: Floats = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)
    return value


def _spread(values: Floats, block: int) -> Floats:
    """One value per group to one per weight."""
    return np.repeat(values, block // values.shape[1], axis=1)


# -- blocks of 32 with one scale ---------------------------------------------------------------------------------------


def _nibbles(blocks: Bytes, at: int) -> Numbers:
    packed = blocks[:, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int16)


def _put_nibbles(blocks: Bytes, at: int, numbers: Numbers) -> None:
    blocks[:, at : at + 16] = (numbers[:, :16] & 15) | ((numbers[:, 16:] & 15) << 4)


def _fifth_bits(blocks: Bytes, at: int) -> Numbers:
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little").astype(np.int16)


def _put_fifth_bits(blocks: Bytes, at: int, numbers: Numbers) -> None:
    blocks[:, at : at + 4] = np.packbits((numbers >> 4 & 1).astype(np.uint8), axis=1, bitorder="little")


def _small(offset_stored: bool, fifth: bool, levels: Floats | None = None) -> Layout:
    """Q4_0, Q4_1, Q5_0, Q5_1 and IQ4_NL: scale, perhaps offset, perhaps fifth bits, then nibbles."""
    high_bits = 4 if offset_stored else 2
    nibbles = high_bits + (4 if fifth else 0)
    centre = 0 if offset_stored or levels is not None else (16 if fifth else 8)
    top = 31 if fifth else 15

    def read(blocks: Bytes) -> tuple[Numbers, Grid]:
        numbers = _nibbles(blocks, nibbles)
        if fifth:
            numbers |= _fifth_bits(blocks, high_bits) << 4
        offset = _spread(_half(blocks, 2), 32) if offset_stored else None
        return numbers - centre, Grid(_spread(_half(blocks, 0), 32), offset, -centre, top - centre, levels)

    def write(blocks: Bytes, numbers: Numbers) -> None:
        _put_nibbles(blocks, nibbles, numbers + centre)
        if fifth:
            _put_fifth_bits(blocks, high_bits, numbers + centre)

    return Layout(32, nibbles + 16, read, write)


def _read_q8_0(blocks: Bytes) -> tuple[Numbers, Grid]:
    numbers = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.int16)
    return numbers, Grid(_spread(_half(blocks, 0), 32), None, -127, 127)


def _write_q8_0(blocks: Bytes, numbers: Numbers) -> None:
    blocks[:, 2:] = numbers.astype(np.int8).view(np.uint8)


# -- superblocks of 256 ------------------------------------------------------------------------------------------------


def _six_bit_pairs(packed: Bytes) -> tuple[Floats, Floats]:
    """The 8 scales and 8 minima in the 12 bytes of Q4_K and Q5_K."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _paired_grid(blocks: Bytes, top: int) -> Grid:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    return Grid(
        _spread(_half(blocks, 0) * scales, 256), _spread(-_half(blocks, 2) * minima, 256), 0, top
    )  # fmt: skip


def _quarter_nibbles(blocks: Bytes, at: int) -> Numbers:
    """128 bytes: each 32 hold 32 numbers in their low halves and the next 32 in their high halves."""
    packed = blocks[:, at : at + 128].reshape(-1, 4, 1, 32)
    return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 256).astype(np.int16)


def _put_quarter_nibbles(blocks: Bytes, at: int, numbers: Numbers) -> None:
    pairs = (numbers & 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    blocks[:, at : at + 128] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _read_q4_k(blocks: Bytes) -> tuple[Numbers, Grid]:
    return _quarter_nibbles(blocks, 16), _paired_grid(blocks, 15)


def _write_q4_k(blocks: Bytes, numbers: Numbers) -> None:
    _put_quarter_nibbles(blocks, 16, numbers)


def _read_q5_k(blocks: Bytes) -> tuple[Numbers, Grid]:
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _quarter_nibbles(blocks, 48) | high.reshape(-1, 256).astype(np.int16) << 4, _paired_grid(blocks, 31)


def _write_q5_k(blocks: Bytes, numbers: Numbers) -> None:
    _put_quarter_nibbles(blocks, 48, numbers)
    bits = (numbers >> 4 & 1).astype(np.uint8).reshape(-1, 8, 32)
    blocks[:, 16:48] = np.bitwise_or.reduce(bits << np.arange(8, dtype=np.uint8)[:, None], axis=1)


def _read_q6_k(blocks: Bytes) -> tuple[Numbers, Grid]:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2)
    upper = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    numbers = (nibbles | upper << 4).astype(np.int16).reshape(-1, 256) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return numbers, Grid(_spread(_half(blocks, 208) * scales, 256), None, -32, 31)


def _write_q6_k(blocks: Bytes, numbers: Numbers) -> None:
    parts = (numbers + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    blocks[:, :128] = (parts[:, :, :2] & 15 | (parts[:, :, 2:] & 15) << 4).reshape(-1, 128)
    shifted = (parts >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks[:, 128:192] = np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64)


_QUARTERS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def _two_bits(blocks: Bytes, at: int) -> Bytes:
    """64 bytes: each 32 hold four runs of 32 numbers, two bits each."""
    numbers: Bytes = (blocks[:, at : at + 64].reshape(-1, 2, 1, 32) >> _QUARTERS & 3).astype(np.uint8)
    return numbers.reshape(-1, 256)


def _put_two_bits(blocks: Bytes, at: int, numbers: Numbers) -> None:
    runs = (numbers & 3).astype(np.uint8).reshape(-1, 2, 4, 32) << _QUARTERS
    blocks[:, at : at + 64] = np.bitwise_or.reduce(runs, axis=2).reshape(-1, 64)


def _read_q2_k(blocks: Bytes) -> tuple[Numbers, Grid]:
    packed = blocks[:, :16]
    scale = _half(blocks, 80) * (packed & 15).astype(np.float32)
    offset = -_half(blocks, 82) * (packed >> 4).astype(np.float32)
    return _two_bits(blocks, 16).astype(np.int16), Grid(_spread(scale, 256), _spread(offset, 256), 0, 3)


def _write_q2_k(blocks: Bytes, numbers: Numbers) -> None:
    _put_two_bits(blocks, 16, numbers)


_MASKS = np.arange(8, dtype=np.uint8)[:, None]


def _read_q3_k(blocks: Bytes) -> tuple[Numbers, Grid]:
    high = (blocks[:, None, :32] >> _MASKS & 1).reshape(-1, 256)
    numbers = (_two_bits(blocks, 32) | high << 2).astype(np.int16) - 4
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = packed[:, None, 8:12] >> _QUARTERS & 3
    scales = (low | top.reshape(-1, 16) << 4).astype(np.float32) - 32
    return numbers, Grid(_spread(_half(blocks, 108) * scales, 256), None, -4, 3)


def _write_q3_k(blocks: Bytes, numbers: Numbers) -> None:
    shifted = numbers + 4
    _put_two_bits(blocks, 32, shifted)
    bits = (shifted >> 2 & 1).astype(np.uint8).reshape(-1, 8, 32)
    blocks[:, :32] = np.bitwise_or.reduce(bits << _MASKS, axis=1)


def _read_iq4_xs(blocks: Bytes) -> tuple[Numbers, Grid]:
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    upper = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | upper.astype(np.uint8) << 4).astype(np.float32) - 32
    packed = blocks[:, 8:].reshape(-1, 8, 16)
    numbers = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 256).astype(np.int16)
    return numbers, Grid(_spread(_half(blocks, 0) * scales, 256), None, 0, 15, _NONLINEAR)


def _write_iq4_xs(blocks: Bytes, numbers: Numbers) -> None:
    parts = numbers.astype(np.uint8).reshape(-1, 8, 2, 16)
    blocks[:, 8:] = (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(-1, 128)


LAYOUTS: dict[str, Layout] = {
    "Q8_0": Layout(32, 34, _read_q8_0, _write_q8_0),
    "Q4_0": _small(offset_stored=False, fifth=False),
    "Q4_1": _small(offset_stored=True, fifth=False),
    "Q5_0": _small(offset_stored=False, fifth=True),
    "Q5_1": _small(offset_stored=True, fifth=True),
    "IQ4_NL": _small(offset_stored=False, fifth=False, levels=_NONLINEAR),
    "Q2_K": Layout(256, 84, _read_q2_k, _write_q2_k),
    "Q3_K": Layout(256, 110, _read_q3_k, _write_q3_k),
    "Q4_K": Layout(256, 144, _read_q4_k, _write_q4_k),
    "Q5_K": Layout(256, 176, _read_q5_k, _write_q5_k),
    "Q6_K": Layout(256, 210, _read_q6_k, _write_q6_k),
    "IQ4_XS": Layout(256, 136, _read_iq4_xs, _write_iq4_xs),
}
"""Types whose weights are rounded one by one; the other i-quants choose from codebooks of whole groups."""
