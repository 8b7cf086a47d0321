"""Results of lm-evaluation-harness as runs and records of ours, so that they are compared, gated and reported alike.

Each sample becomes a record with its prompt, answers and log-likelihoods; each metric a mean over samples, or, where
the harness gives a log-likelihood with a weight, a perplexity. Pure. Invariant: the means equal the harness's own
table, except for metrics that it computes over whole corpora, which are left out and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from lathe.engine.evals.results import Record, Statistics
from lathe.engine.evals.values import Response, Task, TaskKind, sha256_of
from lathe.engine.generation import Score

_KINDS: dict[str, TaskKind] = {
    "multiple_choice": "choice", "loglikelihood": "choice", "loglikelihood_rolling": "perplexity",
    "generate_until": "generate",
}  # fmt: skip
_WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What the harness measured."""

    tasks: tuple[Task, ...]
    records: tuple[Record, ...]
    left_out: tuple[str, ...] = ()
    """`task metric`: not a mean over samples."""


def convert(results: Mapping[str, Any]) -> Converted:
    """Turn what `simple_evaluate` returned into values."""
    tasks, records, left_out = [], [], []
    for name, samples in results.get("samples", {}).items():
        config = results["configs"][name]
        higher = {k: bool(v) for k, v in results.get("higher_is_better", {}).get(name, {}).items()}
        kind = _KINDS.get(config.get("output_type", ""), "generate")
        found = [_record(name, kind, alike) for alike in _by_document(samples)]
        measured = sorted({_metric(sample, metric) for sample in samples for metric in sample.get("metrics", ())})
        kept = [metric for metric in measured if any(metric in record.statistics for record in found)]
        left_out += [f"{name} {metric}" for metric in measured if metric not in kept]
        tasks.append(
            Task(id=_name(name), kind=kind, cases=(), metrics=tuple(_declared(m, found, higher) for m in kept))
        )
        records += found
    return Converted(tasks=tuple(tasks), records=tuple(records), left_out=tuple(left_out))


def _declared(metric: str, records: Sequence[Record], higher: Mapping[str, bool]) -> str | dict[str, dict[str, Any]]:
    if metric in _WEIGHTED:
        return metric
    share = all(one.statistics[metric][0] in (0.0, 1.0) for one in records if metric in one.statistics)
    better = "higher" if higher.get(metric.partition(".")[0], True) else "lower"
    return {"mean": {"as": metric, "better": better, "share": share}}


def _by_document(samples: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """One group per document: a task with several filters judges each answer several times."""
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(sample["doc_id"], []).append(sample)
    return list(groups.values())


def _metric(sample: Mapping[str, Any], metric: str) -> str:
    """A metric's name, with the filter where there is one: `exact_match.strict-match`."""
    chosen = sample.get("filter", "none")
    return metric if chosen == "none" else f"{metric}.{chosen}"


def _name(task: str) -> str:
    """A task's name as ours may be written."""
    return "".join(letter if letter.isalnum() or letter in "_.-" else "-" for letter in task)[:64]


def _record(task: str, kind: TaskKind, samples: Sequence[Mapping[str, Any]]) -> Record:
    sample = samples[0]
    arguments = [list(part) if isinstance(part, list | tuple) else [part] for part in _arguments(sample)]
    prompt = str(arguments[0][0]) if arguments else ""
    continuations = tuple(str(part[1]) for part in arguments) if kind == "choice" else ()
    response = _response(kind, sample.get("filtered_resps", ()), sample.get("resps", ()))
    statistics: dict[str, Statistics] = {}
    for judged in samples:
        for metric in judged.get("metrics", ()):
            if (one := _statistics(metric, judged.get(metric))) is not None:
                statistics[_metric(judged, metric)] = one
    values = {name: _figure(name, one) for name, one in statistics.items()}
    target = sample.get("target")
    gold = (target,) if kind == "choice" and isinstance(target, int) and 0 <= target < len(continuations) else ()
    likely = [score.logprob for score in response.scores]
    return Record(
        task=_name(task), case=f"{int(sample['doc_id']):05d}", kind=kind, item_sha256=sha256_of([task, arguments]),
        prompt=prompt, continuations=continuations,
        gold=gold, targets=(str(continuations[gold[0]] if gold else target),), response=response,
        statistics=statistics, values={name: value for name, value in values.items() if math.isfinite(value)},
        choice=likely.index(max(likely)) if kind == "choice" and likely else None,
    )  # fmt: skip


def _arguments(sample: Mapping[str, Any]) -> Sequence[Any]:
    given = sample.get("arguments", ())
    if isinstance(given, Mapping):  # `gen_args_0: {arg_0: ..., arg_1: ...}`, as it is written to files
        return [list(one.values()) for one in given.values()]
    return list(given)


def _response(kind: TaskKind, filtered: Sequence[Any], raw: Sequence[Any]) -> Response:
    if kind == "generate":
        said = filtered[0] if filtered else ""
        return Response(text=str(said[0] if isinstance(said, list | tuple) and said else said), finish="stop")
    scores = []
    for one in filtered or raw:
        value, greedy = (one[0], bool(one[1])) if isinstance(one, list | tuple) and len(one) == 2 else (one, False)
        scores.append(Score(float(value[0] if isinstance(value, list | tuple) else value), 0, greedy))
    return Response(scores=tuple(scores))


def _statistics(metric: str, value: object) -> Statistics | None:
    if metric in _WEIGHTED:
        if isinstance(value, list | tuple) and len(value) == 2:
            return float(value[0]), float(value[1])
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value), 1.0
    return None


def _figure(metric: str, one: Statistics) -> float:
    if metric == "bits_per_byte":
        return -one[0] / one[1] / math.log(2)
    return math.exp(min(700.0, -one[0] / one[1])) if metric in _WEIGHTED else one[0] / one[1]
