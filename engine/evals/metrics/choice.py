"""Multiple choice by log-likelihood: which continuation does the model find most likely?

As lm-evaluation-harness counts: `acc` by the sum of log-probabilities, `acc_norm` per character and `acc_bytes` per
UTF-8 byte of the choice without its separator. Invariant: of equal likelihoods the first wins, as NumPy's argmax does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, Statistics, verdict
from lathe.engine.evals.values import Item, Response, Task

Length = Callable[[str], float]


def accuracy(name: str, task: Task, options: Options) -> Metric:
    """Share of cases where the right choice has the largest log-probability."""
    return _accuracy(name, task, options, lambda _: 1.0)


def accuracy_by_characters(name: str, task: Task, options: Options) -> Metric:
    """The same per character, so that long choices have no handicap."""
    return _accuracy(name, task, options, lambda text: float(len(text)))


def accuracy_by_bytes(name: str, task: Task, options: Options) -> Metric:
    """The same per byte."""
    return _accuracy(name, task, options, lambda text: float(len(text.encode())))


def brier(name: str, task: Task, options: Options) -> Metric:
    """Squared distance of the probabilities over the choices from certainty of the right one; 0 is perfect."""
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics:
        likelihoods = np.array([score.logprob for score in response.scores])
        shares = np.exp(likelihoods - likelihoods.max())
        shares /= shares.sum()
        truth = np.zeros(len(shares))
        truth[list(item.gold)] = 1 / len(item.gold)
        return float(((shares - truth) ** 2).sum()), 1.0

    return Metric(name=name, judge=judge, better="lower")


def margin(name: str, task: Task, options: Options) -> Metric:
    """Log-probability per character of the right choice above the best wrong one: moves before accuracy does."""
    given.none(name, options)
    bare = _bare(task)

    def judge(item: Item, response: Response) -> Statistics | None:
        values = [
            score.logprob / len(bare(text)) for score, text in zip(response.scores, item.continuations, strict=True)
        ]
        wrong = [value for index, value in enumerate(values) if index not in item.gold]
        if not wrong:
            return None
        return max(values[index] for index in item.gold) - max(wrong), 1.0

    return Metric(name=name, judge=judge)


def chosen(task: Task, item: Item, response: Response) -> int:
    """The model's choice by the sum of log-probabilities."""
    return int(np.argmax([score.logprob for score in response.scores]))


def _accuracy(name: str, task: Task, options: Options, length: Length) -> Metric:
    given.none(name, options)
    bare = _bare(task)

    def judge(item: Item, response: Response) -> bool:
        values = [
            score.logprob / length(bare(text)) for score, text in zip(response.scores, item.continuations, strict=True)
        ]
        return int(np.argmax(values)) in item.gold

    return verdict(name, judge, needs_target=False)


def _bare(task: Task) -> Callable[[str], str]:
    separator = "" if task.chat else task.separator
    return lambda text: text.removeprefix(separator)
