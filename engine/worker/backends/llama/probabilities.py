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
Reals = npt.NDArray[np.float64]
_BLOCK = 2**16
"""Logits handled at a time: what fits the cache of a core."""


class Judged:
    """Rows of logits with what makes probabilities of them, computed once for all who ask about them."""

    __slots__ = ("highest", "log_sums", "rows")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.highest = np.empty(len(rows), np.float32)
        self.log_sums = np.empty(len(rows))
        """log(sum(exp(row))); exponentials of 32 bits, which moves a log-probability by less than 1e-5."""
        step = max(1, _BLOCK // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            highest = part.max(axis=1)
            shifted = part - highest[:, None]
            sums = np.exp(shifted, out=shifted).sum(axis=1)
            self.highest[start : start + step] = highest
            self.log_sums[start : start + step] = np.log(sums, dtype=np.float64) + highest

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Judged:
        """Some of the rows, with what is known of them."""
        one = Judged.__new__(Judged)
        one.rows, one.highest, one.log_sums = self.rows[part], self.highest[part], self.log_sums[part]
        return one

    def of(self, tokens: Sequence[int]) -> tuple[Reals, bool]:
        """The log-probability of `tokens[i]` under row `i`, and whether each is the most probable one."""
        chosen = self.rows[np.arange(len(tokens)), tokens]
        return chosen - self.log_sums, bool((chosen == self.highest).all())


def token_logprobs(rows: Rows, tokens: Sequence[int]) -> Reals:
    """The log-probability of `tokens[i]` under `rows[i]`."""
    return Judged(rows).of(tokens)[0]


def described(lexicon: Vocabulary, row: Rows, token: int, alternatives: int) -> TokenLogprob:
    """A token with its log-probability and the best alternatives."""
    wide = row.astype(np.float64)
    highest = wide.max()
    total = float(np.log(np.exp(wide - highest).sum()) + highest)
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


def _text(lexicon: Vocabulary, token: int) -> str:
    return lexicon.name(token).decode("utf-8", "replace")
