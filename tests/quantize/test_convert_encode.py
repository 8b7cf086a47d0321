"""Number formats bit for bit: against the `gguf` package, against exact arithmetic, and through the threads."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from lathe.quantize.convert.encode import PIECE_ELEMENTS, encode, row_pieces, to_bfloat16, to_float32, to_q8_0
from lathe.quantize.convert.writer import Encoding

BITS = hn.arrays(np.uint32, st.integers(1, 40), elements=st.integers(0, 2**32 - 1))


@given(BITS)
def test_bfloat16_rounds_as_ggml_does(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)


@given(hn.arrays(np.float32, (3, 64), elements=st.floats(-1e6, 1e6, width=32)))
def test_q8_0_quantizes_as_ggml_does(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(to_q8_0(values).ravel(), expected.ravel())


def test_q8_0_rounds_halves_away_from_zero() -> None:
    block = np.zeros(32, np.float32)
    block[:6] = [127, 0.5, 1.5, -0.5, -1.5, 0.49999997]
    codes = to_q8_0(block)[0, 2:].view(np.int8)
    assert codes[:6].tolist() == [127, 1, 2, -1, -2, 0]


def test_every_bfloat16_widens_and_narrows_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    widened = to_float32(bits, "BF16")
    np.testing.assert_array_equal(widened.view(np.uint32) >> 16, bits)
    finite = np.isfinite(widened)
    np.testing.assert_array_equal(to_bfloat16(widened[finite]), bits[finite])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = widened.astype(np.float16)
    data, faults = encode(bits, "BF16", Encoding.F16)
    np.testing.assert_array_equal(data.view(np.uint16)[finite], expected.view(np.uint16)[finite])
    assert faults == int(np.count_nonzero(~np.isfinite(expected)))


@pytest.mark.parametrize("target", Encoding)
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_faults_are_counted_in_every_combination(dtype: str, target: Encoding) -> None:
    values = np.linspace(-2, 2, 256, dtype=np.float32).reshape(4, 64)
    values[2, 5] = np.inf
    values[3, 9] = np.nan
    stored = {
        "F64": values.astype(np.float64),
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": to_bfloat16(values),
    }[dtype]
    assert encode(stored, dtype, target).faults == 2
    clean = np.nan_to_num(values, posinf=1, nan=1)
    assert encode(clean, "F32", target).faults == 0


@pytest.mark.parametrize("target", Encoding)
def test_views_of_any_layout_are_encoded_as_their_copies(target: Encoding) -> None:
    values = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)
    for view in (values.T, values[::2], values[:, ::3]):
        expected = encode(np.ascontiguousarray(view), "F32", target).data
        np.testing.assert_array_equal(encode(view, "F32", target).data, expected)


@given(st.integers(1, 3000), st.integers(1, 10**7))
def test_pieces_cover_every_row_once_and_stay_small(rows: int, columns: int) -> None:
    pieces = list(row_pieces((rows, columns)))
    assert [row for part in pieces for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start == 1 or (part.stop - part.start) * columns <= PIECE_ELEMENTS for part in pieces)
