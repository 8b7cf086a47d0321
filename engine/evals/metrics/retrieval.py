"""Retrieval and answers from stores: was the right context found, does the answer rest on it, does it answer?

What is right stands in the case: `contexts` (texts that must be found) or `documents` (paths). Context precision and
recall are Ragas' definitions over such references; support comes from likelihoods (see `lathe.engine.rag.support`), so
no judge is asked. Invariant: a case without references has no retrieval figures, rather than perfect ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from lathe.engine.errors import DataError, MissingError
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Consultation, Metric, Options, Statistics, verdict
from lathe.engine.evals.values import Item, Passage, Response, Task
from lathe.engine.generation import EmbedRequest
from lathe.engine.rag.fencing import NOT_THERE, citations
from lathe.engine.rag.support import SUPPORTED

Score = Callable[[list[bool], list[bool]], float]
"""Of: is each passage relevant; is each reference found."""


class RelevanceOptions(msgspec.Struct, frozen=True):
    embedder: str | None = None
    """None: the store's own."""


class AnsweredOptions(msgspec.Struct, frozen=True):
    expected: bool = True
    """False: the documents do not hold the answer, and saying so is right."""


def context_precision(name: str, task: Task, options: Options) -> Metric:
    """Mean precision at the ranks where something relevant stands: are the right passages on top?"""

    def score(relevant: list[bool], found: list[bool]) -> float:
        ranks = [rank for rank, hit in enumerate(relevant, 1) if hit]
        return math.fsum(number / rank for number, rank in enumerate(ranks, 1)) / len(ranks) if ranks else 0.0

    return _ranked(name, options, score)


def context_recall(name: str, task: Task, options: Options) -> Metric:
    """Share of the references that were found."""
    return _ranked(name, options, lambda relevant, found: sum(found) / len(found))


def hit(name: str, task: Task, options: Options) -> Metric:
    """Whether anything relevant was found."""
    metric = _ranked(name, options, lambda relevant, found: float(any(relevant)))
    return msgspec.structs.replace(metric, share=True)


def reciprocal_rank(name: str, task: Task, options: Options) -> Metric:
    """One over the rank of the first relevant passage."""
    return _ranked(name, options, lambda relevant, found: 1 / (relevant.index(True) + 1) if any(relevant) else 0.0)


def ndcg(name: str, task: Task, options: Options) -> Metric:
    """Discounted gain of the ranking over that of the best one: as many references as there are, or fit into it."""

    def score(relevant: list[bool], found: list[bool]) -> float:
        gain = math.fsum(1 / math.log2(rank + 1) for rank, hit in enumerate(relevant, 1) if hit)
        most = min(len(relevant), max(len(found), sum(relevant)))
        best = math.fsum(1 / math.log2(rank + 1) for rank in range(1, most + 1))
        return gain / best if best else 0.0

    return _ranked(name, options, score)


def faithfulness(name: str, task: Task, options: Options) -> Metric:
    """Share of the answer's sentences that become less likely without the passages."""
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics | None:
        if not response.support:
            return None
        return sum(sentence.supported for sentence in response.support) / len(response.support), 1.0

    return Metric(name=name, judge=judge)


def citation_support(name: str, task: Task, options: Options) -> Metric:
    """Share of citations whose sentence becomes less likely without just the passage it cites."""
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics | None:
        held = [
            sentence.passages[number - 1] >= SUPPORTED
            for sentence in response.support
            for number in citations(sentence.text, len(sentence.passages))
        ]
        return (sum(held) / len(held), 1.0) if held else None

    return Metric(name=name, judge=judge)


def answered(name: str, task: Task, options: Options) -> Metric:
    """Whether the question is answered, or rightly said not to be in the documents."""
    expected = given.read(AnsweredOptions, name, options).expected

    def judge(item: Item, response: Response) -> bool:
        return (NOT_THERE.rstrip(".").casefold() not in response.text.casefold()) is expected

    return verdict(name, judge, needs_target=False)


def answer_relevance(name: str, task: Task, options: Options) -> Metric:
    """Cosine of question and answer in the store's embedding space: is it an answer to that question?"""
    chosen = given.read(RelevanceOptions, name, options)

    async def consult(consultation: Consultation, item: Item, response: Response) -> Statistics | None:
        if not response.text.strip():
            return 0.0, 1.0
        embedder = chosen.embedder or await _embedder(consultation, item.store)
        request = EmbedRequest(model=embedder, texts=(item.context, response.text), client="eval answer_relevance")
        found = await consultation.workbench.embed(request)
        rows = np.frombuffer(found.vectors, dtype="<f4").reshape(found.rows, found.dimensions).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)
        cosine = float(rows[0] @ rows[1] / (lengths[0] * lengths[1])) if lengths.all() else 0.0
        if not math.isfinite(cosine):
            raise DataError(f"{embedder} gave vectors that are not finite")
        return cosine, 1.0

    return Metric(name=name, consult=consult)


async def _embedder(consultation: Consultation, store: str) -> str:
    column = (await consultation.workbench.store(store)).stats.active
    if column is None:
        raise MissingError(
            f"store {store!r} has no vectors", hint="name an embedder: `{answer_relevance: {embedder: NAME}}`"
        )
    return column.embedder.name


def _ranked(name: str, options: Options, score: Score) -> Metric:
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics | None:
        wanted = [(str(text), False) for text in _listed(item, "contexts")]
        wanted += [(str(path), True) for path in _listed(item, "documents")]
        if not wanted:
            return None
        relevant = [any(_is(passage, *reference) for reference in wanted) for passage in response.passages]
        found = [any(_is(passage, *reference) for passage in response.passages) for reference in wanted]
        return score(relevant, found), 1.0

    return Metric(name=name, judge=judge)


def _listed(item: Item, field: str) -> list[object]:
    value = item.fields.get(field, ())
    return list(value) if isinstance(value, list | tuple) else [value]


def _is(passage: Passage, reference: str, is_path: bool) -> bool:
    """Whether a passage is of a document, or holds a text (or is part of it)."""
    if is_path:
        return f"/{passage.path}".endswith(f"/{reference.strip('/')}")
    text, wanted = (" ".join(part.casefold().split()) for part in (passage.text, reference))
    return bool(wanted) and (wanted in text or (len(text) > 40 and text in wanted))
