"""How well two models agree on the same input: rows of logits or vectors, compared. Pure.

Invariant: the comparison is symmetric in nothing: the first is the truth, and differences are told in its scale.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.measure.logprobs import log_normalizer

Rows = npt.NDArray[np.float32]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What differs."""

    rows: int
    max_difference: float
    """Largest absolute difference of any value."""
    scale: float
    """Largest absolute value of the truth that is finite."""
    mean_kld: float | None = None
    """Of the rows as distributions over the next token; None for vectors."""
    same_top: float | None = None
    """Share of rows with the same most probable token."""
    cosine: float
    """Least over the rows."""

    @property
    def relative(self) -> float:
        """`max_difference` over `scale`."""
        return self.max_difference / self.scale if self.scale > 0 else self.max_difference


def compare(truth: Rows, other: Rows, *, logits: bool) -> Agreement:
    """Compare rows; values that are not finite, on either side, differ by infinity."""
    width = min(truth.shape[1], other.shape[1])  # converters pad vocabularies
    truth, other = truth[:, :width].astype(np.float32), other[:, :width].astype(np.float32)
    finite = np.isfinite(truth)
    if not (finite.all() and np.isfinite(other).all()):
        scale = float(np.abs(truth[finite]).max(initial=0))
        return Agreement(rows=len(truth), max_difference=float("inf"), scale=scale, cosine=-1.0)
    kld = same = None
    if logits:
        kld = float(_divergence(truth, other).mean())
        same = float((truth.argmax(axis=1) == other.argmax(axis=1)).mean())
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.einsum("ij,ij->i", truth, other) / np.where(lengths > 0, lengths, 1)
    return Agreement(
        rows=len(truth),
        max_difference=float(np.abs(truth - other).max()),
        scale=float(np.abs(truth).max()),
        mean_kld=kld,
        same_top=same,
        cosine=float(cosines.min()),
    )


def _divergence(truth: Rows, other: Rows) -> npt.NDArray[np.float64]:
    scratch = np.empty_like(truth)
    log_p = truth - log_normalizer(truth, scratch)[:, None]
    log_q = other - log_normalizer(other, scratch)[:, None]
    result: npt.NDArray[np.float64] = np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return result
