"""Perplexity of an ONNX decoder as llama-perplexity defines it, so that its figure stands beside a GGUF's.

The text is cut as for GGUF models (`lathe.engine.measure.chunks`), by the tokenizer in the model's folder. Invariant:
one chunk's logits are in memory at a time.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.measure.chunks import Chunks
from lathe.engine.measure.logprobs import Slicer, negative_log_likelihood
from lathe.engine.measure.perplexity import Moments, Perplexity, Progress
from lathe.engine.onnx.folder import graph_of
from lathe.engine.onnx.probe import open_session


class Scorer:
    """A decoder and its tokenizer."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Load; raises DataError where the graph is no decoder with a past."""
        from lathe.engine.worker.backends.onnx.decoder import Decoder
        from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary

        path = graph_of(folder)
        self._threads = threads
        session = open_session(path, threads)
        if "logits" not in session.outputs:
            raise DataError(f"{path.parent.name} is no text generator: its next-token probabilities mean nothing")
        self.decoder = Decoder(session)
        self.vocabulary = JsonVocabulary(path.parent, self.decoder.vocabulary, 1 << 31)

    def cut(self, text: bytes, n_ctx: int, limit: int = -1) -> Chunks:
        """Tokenize a text and cut it, as `chunks.cut` does for GGUF models."""
        tokens = np.asarray(self.vocabulary.encode(text.decode("utf-8", "replace"), ends=True), np.int32)
        if len(tokens) < 2 * n_ctx:
            raise DataError(
                f"the text has {len(tokens)} tokens, and chunks of {n_ctx} need at least {2 * n_ctx}",
                hint="use a longer text or a smaller context",
            )
        before, _ = self.vocabulary.affixes
        chunks = len(tokens) // n_ctx
        return Chunks(
            tokens=tokens, n_ctx=n_ctx, n_chunks=chunks if limit < 0 else min(limit, chunks),
            bos=before[0] if before else None, n_vocab=self.decoder.vocabulary,
        )  # fmt: skip

    def perplexity(
        self, chunks: Chunks, *, progress: Progress | None = None, sums: Moments | None = None, start: int = 0
    ) -> Perplexity:
        """Measure; `sums` and `start` continue a stopped run."""
        sums = sums or Moments()
        began = time.monotonic()
        with Slicer(self._threads) as slicer:
            for number in range(start, chunks.n_chunks):
                tokens = chunks.tokens[number * chunks.n_ctx : (number + 1) * chunks.n_ctx]
                given = tokens.copy()
                if chunks.bos is not None:
                    given[0] = chunks.bos
                _, logits = self.decoder.compute(self.decoder.start(), [given.tolist()])
                scored = logits.numpy()[0, chunks.first : chunks.n_ctx - 1].astype(np.float32, copy=False)
                sums.add(negative_log_likelihood(scored, tokens[chunks.first + 1 :], slicer))
                if progress is not None:
                    progress(number + 1, chunks.n_chunks, math.exp(sums.mean), sums)
        seconds = time.monotonic() - began
        value = math.exp(sums.mean)
        return Perplexity(
            perplexity=value, error=value * sums.error, nll=sums.mean,
            bits_per_byte=self._bits_per_byte(chunks, sums.total), tokens=sums.count, chunks=chunks.n_chunks,
            n_ctx=chunks.n_ctx, seconds=seconds,
            tokens_per_s=(chunks.n_chunks - start) * chunks.n_ctx / max(seconds, 1e-9),
        )  # fmt: skip

    def _bits_per_byte(self, chunks: Chunks, nats: float) -> float | None:
        ids, counts = np.unique(chunks.scored(), return_counts=True)
        size = sum(
            len(self.vocabulary.piece(int(token))) * int(count) for token, count in zip(ids, counts, strict=True)
        )
        return nats / math.log(2) / size if size else None
