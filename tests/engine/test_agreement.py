"""Two models on the same input: differences in the scale of the truth."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lathe.engine.measure.agreement import compare

ROWS = arrays.arrays(np.float32, (3, 5), elements=st.floats(-20, 20, width=32))


@given(ROWS)
def test_a_model_agrees_with_itself(rows: np.ndarray) -> None:
    found = compare(rows, rows.copy(), logits=True)
    assert found.max_difference == 0
    assert found.mean_kld == 0
    assert found.same_top == 1


@given(ROWS, ROWS)
def test_divergence_is_that_of_the_distributions(one: np.ndarray, other: np.ndarray) -> None:
    found = compare(one, other, logits=True)
    p, q = (np.exp(rows.astype(float)) / np.exp(rows.astype(float)).sum(1, keepdims=True) for rows in (one, other))
    assert found.mean_kld is not None
    assert abs(found.mean_kld - (p * np.log(p / q)).sum(1).mean()) < 1e-3
    assert found.max_difference == np.abs(one - other).max()


def test_padding_of_a_vocabulary_is_no_difference_and_no_number_is_one() -> None:
    rows = np.array([[1, 2, 3]], np.float32)
    assert compare(rows, np.array([[1, 2, 3, 9]], np.float32), logits=True).relative == 0
    assert compare(rows, np.array([[1, 2, np.nan]], np.float32), logits=False).relative == float("inf")
    assert compare(np.array([[1, 2, np.nan]], np.float32), rows, logits=True).relative == float("inf")
    assert compare(np.array([[1, 2, np.inf]], np.float32), rows, logits=False).relative == float("inf")
    assert compare(np.full((1, 3), np.nan, np.float32), rows, logits=False).relative == float("inf")
    vectors = compare(rows, 2 * rows, logits=False)
    assert (vectors.cosine > 0.999, vectors.mean_kld, vectors.max_difference) == (True, None, 3)
