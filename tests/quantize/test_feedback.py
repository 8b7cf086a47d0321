"""Blocks taken apart and put together against gguf's decoder, and rounding that knows its input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from lathe.quantize import moments as moments_module
from lathe.quantize.blocks import LAYOUTS, numbers_of, store
from lathe.quantize.feedback import Feedback, refinable, refine, values
from lathe.quantize.moments import MomentFolder
from lathe.quantize.tensor_quantizer import _quantize
from lathe.quantize.types import TENSOR_TYPES

pytestmark = pytest.mark.native


def quantized(kind: str, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Rows as llama.cpp quantizes them."""
    size = TENSOR_TYPES[kind].size((weights.shape[1],))
    rows = np.empty((len(weights), size), np.uint8)
    _quantize(TENSOR_TYPES[kind], weights, rows.reshape(-1), None, 0, len(weights), (0, len(weights)))
    return rows


def weights(rows: int = 24, columns: int = 512, seed: int = 1) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, columns)) * random.gamma(2, 0.5, columns)).astype(np.float32)


def inputs(columns: int = 512, seed: int = 2) -> npt.NDArray[np.float32]:
    """Activations whose channels go together, as real ones do."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns // 4, columns)) * random.gamma(1, 1, columns)
    return (random.standard_normal((2000, columns // 4)) @ mixing / 8).astype(np.float32)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_numbers_and_grids_mean_what_gguf_reads(kind: str) -> None:
    rows = quantized(kind, weights())
    numbers, grid = numbers_of(kind, rows)
    expected = dequantize(rows, GGMLQuantizationType[kind])
    np.testing.assert_allclose(values(grid, numbers), expected, rtol=1e-5, atol=1e-6)
    assert numbers.min() >= grid.low
    assert numbers.max() <= grid.high
    np.testing.assert_array_equal(store(kind, rows, numbers), rows)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_numbers_can_be_stored_and_nothing_else_changes(kind: str) -> None:
    rows = quantized(kind, weights(rows=5))
    numbers, grid = numbers_of(kind, rows)
    random = np.random.default_rng(3)
    other = random.integers(grid.low, grid.high + 1, numbers.shape).astype(np.int16)
    again, same_grid = numbers_of(kind, store(kind, rows, other))
    np.testing.assert_array_equal(again, other)
    np.testing.assert_array_equal(same_grid.scale, grid.scale)
    if grid.offset is not None:
        np.testing.assert_array_equal(same_grid.offset, grid.offset)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rounding_with_feedback_puts_out_less_error(kind: str) -> None:
    original, given = weights(), inputs()
    feedback = Feedback.prepare(given.T @ given / len(given))
    assert feedback is not None
    plain = quantized(kind, original)
    better = refine(kind, plain, original, feedback)
    assert better.shape == plain.shape

    def put_out(rows: npt.NDArray[np.uint8]) -> float:
        difference = dequantize(rows, GGMLQuantizationType[kind]) - original
        return float(np.square(given @ difference.T).mean())

    assert put_out(better) < 0.8 * put_out(plain)
    difference = dequantize(better, GGMLQuantizationType[kind]) - original
    damping = 0.01 * float(np.square(given).mean()) * float(np.square(difference).sum())
    assert feedback.error(difference) == pytest.approx(len(original) * put_out(better) + damping, rel=1e-3)


def test_no_row_gets_worse() -> None:
    original, given = weights(rows=60), inputs()
    feedback = Feedback.prepare(given.T @ given / len(given))
    assert feedback is not None
    plain = quantized("Q5_K", original)
    better = refine("Q5_K", plain, original, feedback)
    for before, after, row in zip(plain, better, original, strict=True):
        errors = [
            feedback.error(dequantize(one[None], GGMLQuantizationType.Q5_K) - row[None]) for one in (before, after)
        ]
        assert errors[1] <= errors[0] * (1 + 1e-5)


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from lathe.quantize import feedback as module

    original, given = weights(), inputs()
    feedback = Feedback.prepare(given.T @ given / len(given))
    assert feedback is not None
    plain = quantized("Q4_K", original)
    whole = refine("Q4_K", plain, original, feedback)
    monkeypatch.setattr(module, "_SLAB_BYTES", 4 * 512 * 7)
    parts = refine("Q4_K", plain, original, feedback)
    assert np.mean(whole != parts) < 0.01  # sums of another order may move a tie


def test_a_row_of_zeros_stays_zeros() -> None:
    original = weights(rows=3)
    original[1] = 0
    given = inputs()
    feedback = Feedback.prepare(given.T @ given / len(given))
    assert feedback is not None
    for kind in LAYOUTS:
        better = refine(kind, quantized(kind, original), original, feedback)
        assert not dequantize(better, GGMLQuantizationType[kind])[1].any()


def test_moments_that_say_nothing_are_not_used() -> None:
    assert Feedback.prepare(np.zeros((4, 4), np.float32)) is None
    assert Feedback.prepare(np.full((4, 4), np.nan, np.float32)) is None
    one = np.zeros((4, 4), np.float32)
    one[0, 0] = 1
    assert Feedback.prepare(one) is not None, "channels that the text never used are damped, not divided by"


def test_types_with_codebooks_of_groups_are_left_alone() -> None:
    assert not refinable("IQ3_S")
    assert not refinable("F16")
    assert refinable("IQ4_XS")


def test_moments_on_disk_serve_every_weight_of_their_input(tmp_path: Path) -> None:
    folder = tmp_path / "moments"
    given = inputs(columns=64)
    moments = (given.T @ given / len(given)).astype(np.float32)
    MomentFolder(folder).save(("q", "k"), moments)
    again = MomentFolder(folder)
    again.save(("down",), np.eye(8, dtype=np.float32))
    assert "q" in again
    assert "v" not in again
    assert again.feedback("v") is None
    found, expected = again.feedback("k"), Feedback.prepare(moments)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.factor, expected.factor)
    assert again.feedback("down") is not None


def test_inputs_stay_prepared_as_far_as_memory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MomentFolder(tmp_path)
    for number in range(3):
        folder.save((f"w{number}",), (number + 1) * np.eye(16, dtype=np.float32))
    calls: list[float] = []
    prepare = Feedback.prepare

    def counted(moments: np.ndarray) -> Feedback | None:
        calls.append(float(moments[0, 0]))
        return prepare(moments)

    monkeypatch.setattr(Feedback, "prepare", counted)
    monkeypatch.setattr(moments_module, "MEMORY", 2 * 2 * 4 * 16 * 16)  # two inputs
    for name in ("w0", "w1", "w0", "w1"):
        assert folder.feedback(name) is folder.feedback(name)
    assert calls == [1, 2]
    folder.feedback("w2")  # the one that was used longest ago makes room
    folder.feedback("w1")
    folder.feedback("w0")
    assert calls == [1, 2, 3, 1]
    monkeypatch.setattr(moments_module, "MEMORY", 1)
    assert folder.feedback("w2") is not None, "one is always there"
    assert folder.feedback("nothing") is None
