"""Retrieval metrics over ranked ids, as trec_eval and BEIR compute them. Pure.

Invariant: a query without a relevant document is not counted, and a document counts once however often it is ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Judgements = Mapping[str, Mapping[str, int]]
"""Query -> document -> grade; a grade of 0 is not relevant."""
Run = Mapping[str, Sequence[str]]
"""Query -> documents, best first."""


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Discounted cumulative gain with linear gains, over the best possible."""
    gained = sum(max(0, grades.get(item, 0)) / math.log2(rank + 1) for rank, item in enumerate(_once(ranked)[:k], 1))
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
    best = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal, 1))
    return gained / best if best else 0.0


def recall(ranked: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """The share of relevant documents among the first k."""
    relevant = {item for item, grade in grades.items() if grade > 0}
    return len(relevant & set(_once(ranked)[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranked: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """One over the rank of the first relevant document among the first k."""
    return next((1 / rank for rank, item in enumerate(_once(ranked)[:k], 1) if grades.get(item, 0) > 0), 0.0)


def evaluate(run: Run, judgements: Judgements) -> dict[str, float]:
    """The usual figures over all judged queries; a query that the run lacks counts as nothing found."""
    judged = {query: grades for query, grades in judgements.items() if any(g > 0 for g in grades.values())}
    if not judged:
        return {}

    def mean(metric, k: int) -> float:  # type: ignore[no-untyped-def]
        return math.fsum(metric(run.get(query, ()), grades, k) for query, grades in judged.items()) / len(judged)

    return {
        "ndcg@10": mean(ndcg, 10), "recall@5": mean(recall, 5), "recall@10": mean(recall, 10),
        "recall@100": mean(recall, 100), "mrr@10": mean(reciprocal_rank, 10), "queries": float(len(judged)),
    }  # fmt: skip


def _once(ranked: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ranked))
