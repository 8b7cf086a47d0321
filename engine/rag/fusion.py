"""Joining rankings, and choosing among what they found. Pure.

Reciprocal rank fusion (Cormack, Clarke, Buettcher 2009) needs no scale: an item's score is the sum of w / (60 + rank)
over the rankings that have it. Maximal marginal relevance (Carbonell, Goldstein 1998) trades relevance for novelty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

Item = TypeVar("Item", int, str)
RANK_CONSTANT = 60
"""The constant of the paper; nothing here was tuned on test queries."""


def reciprocal_rank(rankings: Mapping[str, Sequence[Item]], weights: Mapping[str, float]) -> list[tuple[Item, float]]:
    """Fuse rankings by name, best first; ties are broken by the best single rank, then by the item."""
    scores: dict[Item, float] = {}
    best: dict[Item, int] = {}
    for name, ranking in rankings.items():
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + weights.get(name, 1.0) / (RANK_CONSTANT + rank)
            best[item] = min(best.get(item, rank), rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], best[pair[0]], pair[0]))


def marginal_relevance(relevance: Sequence[float], vectors: np.ndarray[Any, Any], k: int, trade: float) -> list[int]:
    """Choose k of some unit vectors: `trade` 1 takes the most relevant, 0 the most different.

    Relevance is brought to 0..1, so that it weighs against cosines whatever it was measured in.
    """
    import numpy as np

    values = np.asarray(relevance, np.float64)
    spread = float(values.max() - values.min()) if len(values) else 0.0
    scaled = (values - values.min()) / spread if spread else np.ones_like(values)
    similar = np.zeros(len(values))
    left = list(range(len(values)))
    chosen: list[int] = []
    while left and len(chosen) < k:
        picked = max(left, key=lambda i: (trade * scaled[i] - (1 - trade) * similar[i], -i))
        chosen.append(picked)
        left.remove(picked)
        similar = np.maximum(similar, vectors @ vectors[picked])
    return chosen
