"""Metrics by name: `name -> "module:function"`, imported on first use, with near names on a miss.

Invariant: naming a metric imports nothing but its own module, so that sacrebleu or scipy are needed only by suites that
use them.
"""

from __future__ import annotations

from importlib import import_module

from lathe.engine.batch.document import near
from lathe.engine.errors import ConfigError
from lathe.engine.evals.metrics.metric import Factory, Metric
from lathe.engine.evals.values import MetricSpec, Task, TaskKind

_CHOICE: dict[str, str] = {
    "acc": "choice:accuracy", "acc_norm": "choice:accuracy_by_characters", "acc_bytes": "choice:accuracy_by_bytes",
    "brier": "choice:brier", "margin": "choice:margin",
}  # fmt: skip
_PERPLEXITY: dict[str, str] = {
    "perplexity": "perplexity:per_token", "word_perplexity": "perplexity:per_word",
    "byte_perplexity": "perplexity:per_byte", "bits_per_byte": "perplexity:bits_per_byte",
}  # fmt: skip
_GENERATE: dict[str, str] = {
    "exact_match": "text:exact_match", "contains": "text:contains", "excludes": "text:excludes",
    "regex": "text:regex", "numeric": "text:numeric", "f1": "text:f1", "length": "text:length",
    "json": "structured:json_valid", "json_schema": "structured:json_schema", "tool_call": "structured:tool_call",
    "bleu": "overlap:bleu", "chrf": "overlap:chrf", "ter": "overlap:ter",
    "rouge1": "overlap:rouge1", "rouge2": "overlap:rouge2", "rougeL": "overlap:rouge_l",
    "refusal": "behaviour:refusal", "stopped": "behaviour:stopped", "wordlist": "behaviour:wordlist",
    "no_template_tokens": "behaviour:no_template_tokens",
    "code": "code:passes", "judge": "judged:rubric",
    "pii": "safety:personal", "toxicity": "safety:toxicity", "injection": "safety:injection",
    "ttft_s": "latency:ttft", "total_s": "latency:total", "tokens_per_s": "latency:decode_speed",
}  # fmt: skip
_SIMILARITY: dict[str, str] = {"cosine": "similarity:cosine"}
_RETRIEVAL: dict[str, str] = {
    "context_precision": "retrieval:context_precision", "context_recall": "retrieval:context_recall",
    "hit": "retrieval:hit", "mrr": "retrieval:reciprocal_rank", "ndcg": "retrieval:ndcg",
}  # fmt: skip
_RAG: dict[str, str] = {
    "faithfulness": "retrieval:faithfulness", "citation_support": "retrieval:citation_support",
    "answered": "retrieval:answered", "answer_relevance": "retrieval:answer_relevance",
}  # fmt: skip
_FOREIGN: dict[str, str] = {"mean": "foreign:mean"}
_TABLE: dict[TaskKind, dict[str, str]] = {
    "choice": _CHOICE, "perplexity": _PERPLEXITY, "generate": _GENERATE, "similarity": _SIMILARITY,
    "retrieval": _RETRIEVAL, "rag": _GENERATE | _RETRIEVAL | _RAG,
}  # fmt: skip
_DEFAULTS: dict[TaskKind, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm", "acc_bytes"),
    "perplexity": ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate": ("exact_match",),
    "similarity": ("cosine",),
    "retrieval": ("context_recall", "context_precision"),
    "rag": ("faithfulness", "citation_support", "context_recall", "context_precision"),
}


def names(kind: TaskKind) -> tuple[str, ...]:
    """Every metric of a kind of task."""
    return tuple(_TABLE[kind])


def specs(task: Task) -> list[MetricSpec]:
    """A task's metrics with their options, or its kind's own."""
    found: list[MetricSpec] = []
    for entry in task.metrics or _DEFAULTS[task.kind]:
        if isinstance(entry, str):
            found.append(MetricSpec(entry))
        elif len(entry) == 1:
            found.append(MetricSpec(*next(iter(entry.items()))))
        else:
            raise ConfigError(f"a metric is a name, or one name with options, not {len(entry)} names")
    return found


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The task's metrics, ready to judge.

    Raises:
        ConfigError: one has no such name or no such options; with the nearest right name.
    """
    made = tuple(_make(task, spec) for spec in specs(task))
    twice = {metric.name for metric in made if sum(other.name == metric.name for other in made) > 1}
    if twice:
        raise ConfigError(f"metric {min(twice)!r} is given twice", hint="tell them apart with `{name: {as: ...}}`")
    return made


def _make(task: Task, spec: MetricSpec) -> Metric:
    table = _TABLE[task.kind] | _FOREIGN
    if spec.name not in table:
        known = ", ".join(_TABLE[task.kind])
        raise ConfigError(f"no metric {spec.name!r} of kind {task.kind}{near(spec.name, table)} (known: {known})")
    module, _, function = table[spec.name].partition(":")
    factory: Factory = getattr(import_module(f"lathe.engine.evals.metrics.{module}"), function)
    options = dict(spec.options)
    return factory(str(options.pop("as", spec.name)), task, options)
