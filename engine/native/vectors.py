"""Vectors of texts: a context that pools, and the rows it gives.

Pooling belongs to a context in llama.cpp. Invariant: each sequence of a batch is one whole text, and has one row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import InternalError
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel, bindings

Pooling = Literal[-1, 0, 1, 2, 3, 4]
"""llama_pooling_type: the model's own, none, mean, cls, last, rank."""
MODELS_OWN: Pooling = -1
NONE: Pooling = 0
MEAN: Pooling = 1
RANK: Pooling = 4
Vector = npt.NDArray[np.float32]

BATCH_TOKENS, BATCH_TEXTS = 512, 32
"""Of a batch of texts: attention is over all of one, so larger ones are slower on a CPU."""


def ranks(model: LlamaModel) -> bool:
    """Whether a model is a cross-encoder, which gives a score for a pair of texts."""
    architecture = model.metadata("general.architecture") or ""
    return model.metadata(f"{architecture}.pooling_type") == str(RANK)


def pooling_context(
    model: LlamaModel,
    *,
    tokens: int,
    sequences: int,
    pooling: Pooling = MODELS_OWN,
    threads: int = 0,
    flash_attention: bool | None = None,
) -> LlamaContext:
    """A context for batches of `tokens` in up to `sequences` texts; a model that names no pooling gets the mean."""

    def new(pooling: Pooling) -> LlamaContext:
        return LlamaContext(
            model,
            ContextOptions(
                n_ctx=tokens, n_batch=tokens, n_ubatch=tokens, n_seq_max=sequences, kv_unified=True, embeddings=True,
                n_threads=threads, pooling=pooling, flash_attention=flash_attention,
            ),
        )  # fmt: skip

    context = new(pooling)
    if pooling == MODELS_OWN and bindings().llama_pooling_type(context.handle) == NONE:
        context.close()
        return new(MEAN)
    return context


def together(texts: Sequence[Sequence[int]], start: int, *, tokens: int, sequences: int) -> int:
    """How many of the texts from `start` on one batch takes: at least one, whatever its length."""
    count = size = 0
    for text in texts[start : start + sequences]:
        size += len(text)
        if count and size > tokens:
            break
        count += 1
    return count


def vectors(context: LlamaContext, texts: Sequence[Sequence[int]]) -> list[Vector]:
    """A row for each text, in one batch; of a cross-encoder, its score."""
    batch = Batch(sum(map(len, texts)))
    for sequence, text in enumerate(texts):
        batch.extend(text, 0, sequence, output=True)
    context.clear(data=False)
    context.decode(batch)
    lib = bindings()
    scores = lib.llama_pooling_type(context.handle) == RANK
    width: int = 1 if scores else lib.llama_model_n_embd_out(context.model.handle)
    return [_row(context, sequence, width) for sequence in range(len(texts))]


def _row(context: LlamaContext, sequence: int, width: int) -> Vector:
    pointer = bindings().llama_get_embeddings_seq(context.handle, sequence)
    if not pointer:
        raise InternalError(f"llama.cpp gave no embedding for text {sequence} of a batch")
    row = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (width,)).copy()
    if not np.isfinite(row).all():
        raise InternalError("the model gave an embedding that is not finite")
    return row
