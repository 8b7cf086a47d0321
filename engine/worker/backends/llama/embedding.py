"""Vectors of texts, and relevance scores: batches on contexts of their own.

Pooling belongs to a context in llama.cpp, so each kind of pooling that is asked for gets one, made on first use; the
serving context is not touched. Texts are packed into batches, one sequence each. Invariant: a text is never cut: one
that the model cannot take is refused with its count.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from lathe.engine.errors import UsageError
from lathe.engine.generation import Embeddings, EmbedRequest
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.native.vectors import (
    BATCH_TEXTS,
    BATCH_TOKENS,
    MEAN,
    MODELS_OWN,
    RANK,
    Pooling,
    Vector,
    pooling_context,
    ranks,
    together,
    vectors,
)
from lathe.engine.worker.fitting import overflow
from lathe.engine.worker.messages import LoadOptions, RequestState
from lathe.engine.worker.vocabulary import Vocabulary

MAX_TEXTS = 4096
_KINDS: dict[str, Pooling] = {"model": MODELS_OWN, "mean": MEAN, "cls": 2, "last": 3, "rank": RANK}


class Embedding:
    """An embed request at work."""

    def __init__(
        self, request_id: int, request: EmbedRequest, vocabulary: Vocabulary, longest: int, queued_at: float
    ) -> None:
        """Tokenise.

        Raises:
            UsageError: no texts, too many, an empty one, or one that the model cannot take.
        """
        if not 0 < len(request.texts) <= MAX_TEXTS:
            raise UsageError(f"embed: {len(request.texts)} texts given, 1 to {MAX_TEXTS} are allowed")
        if (request.pooling == "rank") != (request.query is not None):
            raise UsageError("embed: a query belongs to pooling `rank`, and to no other")
        self.id = request_id
        self.request = request
        self.queued_at = queued_at
        self.texts = [_tokens(request, text, vocabulary) for text in request.texts]
        for index, tokens in enumerate(self.texts):
            if not tokens:
                raise UsageError(f"embed: text {index} is empty: it has no tokens")
            if len(tokens) > longest:
                raise overflow(len(tokens), None, longest)
        self.rows: list[Vector] = []
        """Vectors so far, in order."""

    def result(self) -> Embeddings:
        """All vectors; call it when every text has one."""
        matrix = np.stack(self.rows).astype("<f4")
        if self.request.normalize and self.request.pooling != "rank":
            norms = np.linalg.norm(matrix, axis=1, keepdims=True)
            matrix = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
        return Embeddings(matrix.tobytes(), len(matrix), matrix.shape[1], sum(map(len, self.texts)))

    def state(self, now: float) -> RequestState:
        """The row of a panel."""
        return RequestState(
            id=self.id,
            stage="prefill" if self.rows else "waiting",
            client=self.request.client,
            principal=self.request.principal,
            prompt_tokens=sum(map(len, self.texts)),
            prefilled=sum(map(len, self.texts[: len(self.rows)])),
            generated=0,
            age_s=now - self.queued_at,
        )


class Embedder:
    """The contexts for embeddings, and the requests that wait for them."""

    def __init__(self, model: LlamaModel, options: LoadOptions) -> None:
        self._model = model
        self._options = options
        self._contexts: dict[Pooling, LlamaContext] = {}
        self.waiting: deque[Embedding] = deque()
        self.busy_since = 0.0
        """When the running decode began; 0 when none runs."""
        self.longest: int = min(model.n_ctx_train, options.context or model.n_ctx_train)
        """Tokens that a text may have."""

    def step(self) -> Embedding | None:
        """Compute one batch of the first waiting request; return the request if that completed it."""
        work = self.waiting[0]
        first = len(work.rows)
        count = together(work.texts, first, tokens=BATCH_TOKENS, sequences=BATCH_TEXTS)
        work.rows += self._compute(work.texts[first : first + count], _KINDS[work.request.pooling])
        if len(work.rows) < len(work.texts):
            return None
        self.waiting.popleft()
        return work

    def _compute(self, texts: list[list[int]], pooling: Pooling) -> list[Vector]:
        context = self._context(pooling, sum(map(len, texts)))
        self.busy_since = time.monotonic()
        try:
            return vectors(context, texts)
        finally:
            self.busy_since = 0.0

    def _context(self, pooling: Pooling, tokens: int) -> LlamaContext:
        """The context of a kind of pooling, with room for a batch of `tokens`."""
        context = self._contexts.get(pooling)
        if context is not None and context.n_batch >= tokens:
            return context
        if context is not None:
            context.close()
        if pooling == RANK and not ranks(self._model):
            message = f"{self._model.path.name} is no cross-encoder"
            raise UsageError(message, hint="rank needs a reranker model", code="E_CAPABILITY")
        room = max(BATCH_TOKENS, -(-tokens // BATCH_TOKENS) * BATCH_TOKENS)
        self._contexts[pooling] = context = pooling_context(
            self._model, tokens=room, sequences=BATCH_TEXTS, pooling=pooling, threads=self._options.threads or 0,
            flash_attention=self._options.flash_attention,
        )  # fmt: skip
        return context


def _tokens(request: EmbedRequest, text: str, vocabulary: Vocabulary) -> list[int]:
    if request.query is None:
        return vocabulary.encode(text, ends=True)
    return vocabulary.pair(request.query, text)
