"""How fast an embedder reads: whole texts, as many at once as a batch takes; what a prompt is to a model that answers.

Invariant: inside the clock, texts become vectors, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.measure.chunks import check_length
from lathe.engine.native.devices import Threadpool
from lathe.engine.native.llama import LlamaModel
from lathe.engine.native.vectors import pooling_context, vectors


def reading_times(
    model: LlamaModel, tokens: int, *, text: int = 0, batch: int, threads: int, repetitions: int
) -> Iterator[int]:
    """Read random texts, after a warm-up; yields nanoseconds.

    Args:
        tokens: of all texts together, each time.
        text: tokens of each text; 0: as many as the model and the batch take.
        batch: tokens computed together.

    Raises:
        DataError: a batch holds no text, or the model cannot read one so long.
    """
    length = text or min(model.n_ctx_train, batch)
    if length > batch:
        raise DataError(
            f"a batch of {batch} tokens holds no text of {length}", hint="use a larger batch or a smaller context"
        )
    check_length(model, length)
    drawn = np.random.default_rng(1).integers(0, model.n_vocab, tokens).tolist()
    texts = [drawn[start : start + length] for start in range(0, tokens, length)]
    together = batch // length
    batches = [texts[start : start + together] for start in range(0, len(texts), together)]
    with (
        Threadpool(threads) as pool,
        pooling_context(model, tokens=batch, sequences=together, threads=threads) as context,
    ):
        pool.attach(context)
        for repetition in range(1 + repetitions):
            started = time.perf_counter_ns()
            for each in batches:
                vectors(context, each)
            if repetition:
                yield time.perf_counter_ns() - started
