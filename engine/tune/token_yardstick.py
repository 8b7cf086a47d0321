"""Distance of next tokens: Kullback-Leibler divergence on a text, the original's side computed once.

The original's logits are kept, all of them where they fit `KEPT_BYTES`, else of the `_TOP` most probable tokens with
the rest as one event, which can only make the divergence smaller; `exact` tells which. Invariant: the logits of both
models are of the same tokens, row by row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.chunks import Chunks
from lathe.engine.measure.logprobs import Floats, log_normalizer
from lathe.engine.native.llama import LlamaContext
from lathe.engine.tune.yardstick import Reading, Yardstick

KEPT_BYTES = 1 << 30
"""Of the original's logits."""
_TOP = 512
_ROWS = 32
"""Rows compared at a time."""


class _Reference(Protocol):
    def compare(self, start: int, logits: Floats) -> npt.NDArray[np.float64]:
        """Divergence of rows from `start` on."""


class TokenYardstick(Yardstick):
    """Chunks of a text, and the original's logits for them."""

    def __init__(self, original: Sequence[Path], chunks: Chunks, *, threads: int = 0, gpu_layers: int = 0) -> None:
        """Run the original over the text.

        Args:
            original: its files, in the order of its shards.
        """
        super().__init__(threads, gpu_layers)
        self.chunks = chunks
        self.exact = 4 * chunks.n_vocab * chunks.rows * chunks.n_chunks <= KEPT_BYTES
        parts: list[Floats] = []
        tops: list[npt.NDArray[np.int32]] = []
        started = time.monotonic()
        with self._model(original) as model, LlamaContext(model, chunks.options(threads=threads)) as context:
            for block in chunked.run(context, chunks):
                tops.append(block.logits.argmax(axis=1).astype(np.int32))
                parts.append(block.logits.copy() if self.exact else _condensed(block.logits))
        self.seconds = time.monotonic() - started
        self._top = np.concatenate(tops)
        self._reference: _Reference = _Whole(parts) if self.exact else _Condensed(parts)

    def read(self, files: Sequence[Path], *, kv_type: str = "f16") -> Reading:
        """Measure a model given as its files."""
        started = time.monotonic()
        divergences, losses, same, done = [], [], 0, 0
        options = self.chunks.options(threads=self._threads, kv_type=kv_type)
        with self._model(files) as model, LlamaContext(model, options) as context:
            for block in chunked.run(context, self.chunks):
                for at in range(0, len(block.targets), _ROWS):
                    logits = block.logits[at : at + _ROWS]
                    normalizer = log_normalizer(logits, np.empty_like(logits))
                    divergences.append(self._reference.compare(done, logits))
                    losses.append(normalizer - logits[np.arange(len(logits)), block.targets[at : at + _ROWS]])
                    same += int((logits.argmax(axis=1) == self._top[done : done + len(logits)]).sum())
                    done += len(logits)
        every = np.concatenate(divergences)
        return Reading(
            divergence=float(every.mean()),
            error=float(every.std() / max(1, len(every) - 1) ** 0.5),
            divergence_99_9=float(np.percentile(every, 99.9)),
            agreement=same / done,
            perplexity=float(np.exp(np.concatenate(losses).mean())),
            seconds=time.monotonic() - started,
        )


class _Whole:
    """Every logit of the original."""

    def __init__(self, parts: Sequence[Floats]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def compare(self, start: int, logits: Floats) -> npt.NDArray[np.float64]:
        """Sum of p (log p - log q) per row; rows of one call lie in one part."""
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start - int(self._starts[part])
        base = self._parts[part][at : at + len(logits)]
        scratch = np.empty_like(logits)
        normalizer = log_normalizer(logits, scratch)
        probabilities = np.empty_like(base)
        base_normalizer = log_normalizer(base, probabilities)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        spread = np.einsum("ij,ij->i", probabilities, np.subtract(base, logits, out=scratch))
        divergence: npt.NDArray[np.float64] = spread - (base_normalizer - normalizer)
        return divergence


def _condensed(logits: Floats) -> Floats:
    """Per row: the most probable tokens (as exact integers in float32), then their log-probabilities."""
    count = min(_TOP, logits.shape[1])
    best = np.argpartition(logits, -count, axis=1)[:, -count:]
    normalizer = log_normalizer(logits, np.empty_like(logits))
    chosen = np.take_along_axis(logits, best, axis=1) - normalizer[:, None]
    return np.concatenate([best.astype(np.float32), chosen.astype(np.float32)], axis=1)


class _Condensed:
    """The most probable tokens of the original, and the rest as one."""

    def __init__(self, parts: Sequence[Floats]) -> None:
        rows = np.concatenate(parts)
        count = rows.shape[1] // 2
        self._tokens = rows[:, :count].astype(np.int32)
        self._log_p = rows[:, count:].astype(np.float64)

    def compare(self, start: int, logits: Floats) -> npt.NDArray[np.float64]:
        tokens, log_p = self._tokens[start : start + len(logits)], self._log_p[start : start + len(logits)]
        normalizer = log_normalizer(logits, np.empty_like(logits))
        log_q = np.take_along_axis(logits, tokens, axis=1) - normalizer[:, None]
        p, q = np.exp(log_p), np.exp(log_q)
        rest_p = np.clip(1 - p.sum(axis=1), 1e-12, 1)
        rest_q = np.clip(1 - q.sum(axis=1), 1e-12, 1)
        divergence: npt.NDArray[np.float64] = (p * (log_p - log_q)).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
        return divergence
