"""Retrieval metrics over ranked ids, as trec_eval and BEIR compute them, and the quantile of every report. Pure.

Invariant: a query without a relevant document is not counted, and a document counts once however often it is ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

Judgements = Mapping[str, Mapping[str, int]]
"""Query -> document -> grade; a grade of 0 is not relevant."""
Run = Mapping[str, Sequence[str]]
"""Query -> documents, best first."""
Value = TypeVar("Value", int, float)


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


def evaluate(run: Run, judgements: Judgements, *, ignore_identical_ids: bool = True) -> dict[str, float]:
    """The usual figures over all judged queries; a query that the run lacks counts as nothing found.

    Queries and documents of one data set share their ids, and some queries are documents too (ArguAna, Quora): as in
    BEIR, a document with its query's id is passed over, unless `ignore_identical_ids` says that the ids are unrelated.
    """
    judged = {query: grades for query, grades in judgements.items() if any(g > 0 for g in grades.values())}
    if not judged:
        return {}

    ranked = {
        query: [item for item in run.get(query, ()) if item != query or not ignore_identical_ids] for query in judged
    }

    def mean(metric, k: int) -> float:  # type: ignore[no-untyped-def]
        return math.fsum(metric(ranked[query], grades, k) for query, grades in judged.items()) / len(judged)

    return {
        "ndcg@10": mean(ndcg, 10), "recall@5": mean(recall, 5), "recall@10": mean(recall, 10),
        "recall@100": mean(recall, 100), "mrr@10": mean(reciprocal_rank, 10), "queries": float(len(judged)),
    }  # fmt: skip


def quantile(ordered: Sequence[Value], share: float) -> Value:
    """The nearest-rank quantile of ordered values: the least one that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _once(ranked: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ranked))
