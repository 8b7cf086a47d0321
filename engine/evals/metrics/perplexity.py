"""Perplexity of texts: how surprised the model is per token, word and byte.

Sums of natural-log probabilities over all cases, divided by all tokens, words (runs between whitespace) or UTF-8 bytes
of the text, as lm-evaluation-harness counts. Invariant: a text whose log-probability is not finite is an error, not an
infinite figure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Combine, Metric, Options, Statistics, Sums
from lathe.engine.evals.values import Item, Response, Task


def _exp(sums: Sums) -> Sums:
    with np.errstate(over="ignore"):
        result: Sums = np.exp(-sums[..., 0] / sums[..., 1])
    return result


def _bits(sums: Sums) -> Sums:
    result: Sums = -sums[..., 0] / sums[..., 1] / math.log(2)
    return result


def per_token(name: str, task: Task, options: Options) -> Metric:
    """Perplexity per token; comparable between models of one vocabulary only."""
    return _metric(name, options, lambda _, response: sum(score.tokens for score in response.scores))


def per_word(name: str, task: Task, options: Options) -> Metric:
    """Perplexity per word."""
    return _metric(name, options, lambda item, _: len(re.split(r"\s+", item.context)))


def per_byte(name: str, task: Task, options: Options) -> Metric:
    """Perplexity per byte."""
    return _metric(name, options, lambda item, _: len(item.context.encode()))


def bits_per_byte(name: str, task: Task, options: Options) -> Metric:
    """Bits that the model needs per byte."""
    return _metric(name, options, lambda item, _: len(item.context.encode()), _bits)


def _metric(
    name: str, options: Options, weight: Callable[[Item, Response], int], combine: Combine = _exp
) -> Metric:  # fmt: skip
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics:
        total = math.fsum(score.logprob for score in response.scores)
        if not math.isfinite(total):
            raise DataError(f"the log-probability of the text is {total}")
        return total, float(weight(item, response))

    return Metric(name=name, judge=judge, combine=combine, better="lower")
