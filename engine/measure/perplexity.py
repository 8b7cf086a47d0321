"""Perplexity of a text, as llama-perplexity computes it, with its standard error.

The figure is exp of the mean negative log-likelihood over the second half of every chunk. Bits per byte divide the
same sum by the bytes of the scored tokens, so that models with different tokenizers compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.chunks import Chunks
from lathe.engine.measure.logprobs import Doubles, Slicer, negative_log_likelihood
from lathe.engine.native.llama import LlamaContext, LlamaModel, physical_cores


class Perplexity(msgspec.Struct, frozen=True, kw_only=True):
    """The figure and what it was measured on."""

    perplexity: float
    error: float
    """Standard error of `perplexity`."""
    nll: float
    """Mean negative log-likelihood per token, in nats."""
    bits_per_byte: float | None
    """None where the scored tokens have no bytes."""
    tokens: int
    """Tokens scored."""
    chunks: int
    n_ctx: int
    seconds: float
    tokens_per_s: float
    """Tokens computed, not only scored."""
    warnings: tuple[str, ...] = ()


class Moments(msgspec.Struct):
    """Running sums of a quantity; enough for its mean and standard error, and to go on after a stop."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Doubles) -> None:
        """Take in values; raises `DataError` where they are no numbers."""
        if not np.isfinite(values).all():
            raise chunked.broken()
        self.count += values.size
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())

    @property
    def mean(self) -> float:
        """Of everything so far."""
        return self.total / self.count

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        variance = self.squares / self.count - self.mean**2
        return math.sqrt(variance / (self.count - 1)) if variance > 0 and self.count > 1 else 0.0


Progress = Callable[[int, int, float, Moments], None]
"""(chunks done, chunks in all, perplexity so far, the sums behind it)."""


def measure(
    path: Path,
    text: bytes,
    *,
    n_ctx: int = 512,
    limit: int = -1,
    threads: int = 0,
    gpu_layers: int = 0,
    kv_type: str = "f16",
    progress: Progress | None = None,
) -> Perplexity:
    """Load a model and measure it on a text."""
    with LlamaModel(path, gpu_layers=gpu_layers) as model:
        chunks = chunked.cut(model, text, n_ctx, limit)
        with LlamaContext(model, chunks.options(threads=threads, kv_type=kv_type)) as context:
            return perplexity(context, chunks, progress=progress)


def perplexity(
    context: LlamaContext,
    chunks: Chunks,
    *,
    progress: Progress | None = None,
    sums: Moments | None = None,
    start: int = 0,
) -> Perplexity:
    """Measure with a context made by `chunks.options`; `sums` and `start` continue a stopped run."""
    sums = sums or Moments()
    started = time.monotonic()
    with Slicer(context.options.n_threads or physical_cores()) as slicer:
        for block in chunked.run(context, chunks, start):
            sums.add(negative_log_likelihood(block.logits, block.targets, slicer))
            if progress is not None and block.chunks_done > block.chunk:
                # The sums hold whole chunks here: a run can go on from them.
                progress(block.chunks_done, chunks.n_chunks, math.exp(sums.mean), sums)
    seconds = time.monotonic() - started
    value = math.exp(sums.mean)
    return Perplexity(
        perplexity=value,
        error=value * sums.error,
        nll=sums.mean,
        bits_per_byte=_bits_per_byte(context.model, chunks, sums.total),
        tokens=sums.count,
        chunks=chunks.n_chunks,
        n_ctx=chunks.n_ctx,
        seconds=seconds,
        tokens_per_s=(chunks.n_chunks - start) * chunks.n_ctx / seconds,
        warnings=_warnings(context.model, chunks),
    )


def _bits_per_byte(model: LlamaModel, chunks: Chunks, nats: float) -> float | None:
    ids, counts = np.unique(chunks.scored(), return_counts=True)
    size = sum(len(model.piece(int(token))) * int(count) for token, count in zip(ids, counts, strict=True))
    return nats / math.log(2) / size if size else None


def _warnings(model: LlamaModel, chunks: Chunks) -> tuple[str, ...]:
    if 0 < model.n_ctx_train < chunks.n_ctx:
        return (f"chunks of {chunks.n_ctx} tokens are longer than the {model.n_ctx_train} the model was trained on",)
    return ()
