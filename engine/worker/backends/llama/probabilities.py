"""Logits to log-probabilities, for the tokens that someone asked about.

Natural logarithms of the model's own distribution, before any sampling parameter. Rows are handled a few at a time:
a row is as wide as the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from lathe.engine.generation import TokenLogprob
from lathe.engine.worker.vocabulary import Vocabulary

Rows = npt.NDArray[np.float32]
_ROWS_AT_ONCE = 16


def token_logprobs(rows: Rows, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """The log-probability of `tokens[i]` under `rows[i]`."""
    result = np.empty(len(tokens))
    for start in range(0, len(tokens), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
        chosen = part[np.arange(len(part)), tokens[start : start + _ROWS_AT_ONCE]]
        result[start : start + len(part)] = chosen - _log_sum(part)
    return result


def described(lexicon: Vocabulary, row: Rows, token: int, alternatives: int) -> TokenLogprob:
    """A token with its log-probability and the best alternatives."""
    wide = row.astype(np.float64)
    total = float(_log_sum(wide[None])[0])
    top: tuple[tuple[int, str, float], ...] = ()
    if alternatives:
        best = np.argpartition(row, -alternatives)[-alternatives:] if alternatives < len(row) else np.arange(len(row))
        order = best[np.lexsort((best, -row[best]))]
        top = tuple((one, _text(lexicon, one), float(wide[one]) - total) for one in order.tolist())
    raw = lexicon.name(token)
    return TokenLogprob(token, raw.decode("utf-8", "replace"), float(wide[token]) - total, raw, top)


def undescribed(lexicon: Vocabulary, token: int) -> TokenLogprob:
    """The first token of a prompt, which nothing predicts."""
    raw = lexicon.name(token)
    return TokenLogprob(token, raw.decode("utf-8", "replace"), None, raw)


def _log_sum(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(sum(exp(row))) of each row, without overflow."""
    highest = rows.max(axis=1)
    sums: npt.NDArray[np.float64] = np.log(np.exp(rows - highest[:, None]).sum(axis=1)) + highest
    return sums


def _text(lexicon: Vocabulary, token: int) -> str:
    return lexicon.name(token).decode("utf-8", "replace")
