"""What an importance matrix says about a model: how evenly each tensor's input is used, and how layers resemble.

The figures of `llama-imatrix --show-statistics`, without printing. Pure.
"""

from __future__ import annotations

import math
import re

import msgspec
import numpy as np
from lathe.quantize.imatrix import Entry, Imatrix

_LAYER = re.compile(r"blk\.(\d+)\.")
_INACTIVE = 1e-5
"""Mean squares up to here count as unused."""


class TensorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How the importances of one tensor are spread, as `llama-imatrix --show-statistics` has it."""

    name: str
    total: float
    """Of the mean squares over all channels."""
    minimum: float
    maximum: float
    mean: float
    deviation: float
    active: float
    """Share of channels above 1e-5."""
    channels: int
    entropy: float
    """In bits."""
    evenness: float
    """Entropy over its possible maximum, 0..1."""
    outliers: float
    """Share of channels more than one deviation above the mean."""
    similarity: float | None
    """Cosine with the same tensor one layer below; None for the first."""


def statistics(matrix: Imatrix) -> list[TensorStatistics]:
    """Describe every tensor that saw at least one token, sorted by name."""
    return [
        _of(name, entry, _below(name, matrix))
        for name, entry in sorted(matrix.entries.items())
        if (entry.counts > 0).any()
    ]


def _below(name: str, matrix: Imatrix) -> Entry | None:
    """The same tensor's entry one layer down."""
    if not (found := _LAYER.search(name)):
        return None
    return matrix.entries.get(f"{name[: found.start(1)]}{int(found[1]) - 1}{name[found.end(1) :]}")


def _of(name: str, entry: Entry, below: Entry | None) -> TensorStatistics:
    seen = entry.counts > 0
    values = (entry.sums[seen] / entry.counts[seen][:, None]).astype(np.float64).ravel()
    total, mean, deviation = float(values.sum()), float(values.mean()), float(values.std())
    shares = values[values > 0] / total if total > 0 else values[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    return TensorStatistics(
        name=name,
        total=total,
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=mean,
        deviation=deviation,
        active=float((values > _INACTIVE).mean()),
        channels=len(values),
        entropy=entropy,
        evenness=entropy / math.log2(len(values)) if len(values) > 1 else 1.0,
        outliers=float((values > mean + deviation).mean()) if deviation > 0 else 0.0,
        similarity=None if below is None else _cosine(entry, below),
    )


def _cosine(one: Entry, other: Entry) -> float | None:
    left, right = one.sums.ravel().astype(np.float64), other.sums.ravel().astype(np.float64)
    if left.size != right.size:
        return None
    length = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / length if length > 0 else None
