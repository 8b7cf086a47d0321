"""An encoder graph: vectors of texts and scores of pairs, a batch at a time.

What the graph gives decides what it can: hidden states are pooled here, a ready sentence vector is taken as it is, one
logit per text is a reranker's score. Invariant: padding has no influence: it is masked in the graph and left out of
every pooling.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError, InternalError, UsageError
from lathe.engine.generation import EmbedRequest
from lathe.engine.worker.backends.llama.embedding import Embedding
from lathe.engine.worker.backends.onnx.runtime import Session
from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary
from lathe.quantize.checkpoint import read_json
from lathe.quantize.errors import FormatError, InputMissing

_BATCH_TOKENS = 2048
_SEQUENCES = 32
_KNOWN = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_HIDDEN = ("last_hidden_state", "token_embeddings", "hidden_states")
_READY = "sentence_embedding"
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
"""Architectures whose positions begin at 2, so that two of the configured ones do not exist."""

Vector = npt.NDArray[np.float32]


class Encoder:
    """A session that gives vectors, and the requests that wait for it."""

    def __init__(self, session: Session, folder: Path, config: dict[str, Any], context: int | None) -> None:
        """Recognise the graph.

        Raises:
            DataError: it is no encoder, or wants what we do not have.
        """
        self._session = session
        self.vocabulary: JsonVocabulary
        """Set by who made it, before the first request."""
        name = session.file.path.name
        if unknown := sorted(session.inputs.keys() - _KNOWN):
            raise DataError(f"{name} wants {', '.join(unknown[:4])}, which Lathe does not know", code="E_ONNX")
        self._hidden = next((one for one in _HIDDEN if one in session.outputs), None)
        self.ranks: bool = self._hidden is None and _READY not in session.outputs and "logits" in session.outputs
        if not (self._hidden or self.ranks or _READY in session.outputs):
            raise DataError(f"{name} gives neither hidden states nor scores", code="E_ONNX")
        self._pooling = _pooling(folder)
        self.longest: int = _longest(folder, config, context)
        """Tokens that a text may have."""
        self.waiting: deque[Embedding] = deque()
        self.busy_since = 0.0

    def check(self, request: EmbedRequest) -> None:
        """Refuse what this graph cannot give.

        Raises:
            UsageError: a score is wanted from an embedder, or a vector from a reranker.
        """
        if (request.pooling == "rank") != self.ranks:
            message = (
                "this model is a cross-encoder: it scores pairs" if self.ranks else "this model is no cross-encoder"
            )
            raise UsageError(message, hint="rank needs a reranker model, vectors an embedder", code="E_CAPABILITY")
        if self._hidden is None and request.pooling not in ("model", "rank"):
            raise UsageError(f"this model pools by itself, not by {request.pooling}", code="E_CAPABILITY")

    def step(self) -> Embedding | None:
        """Compute one batch of the first waiting request; return the request if that completed it."""
        work = self.waiting[0]
        self.check(work.request)
        first = len(work.rows)
        count, longest = 0, 0
        for text in work.texts[first : first + _SEQUENCES]:
            longest = max(longest, len(text))
            if count and (count + 1) * longest > _BATCH_TOKENS:
                break
            count += 1
        work.rows += list(self._compute(work.texts[first : first + count], work.request.pooling))
        if len(work.rows) < len(work.texts):
            return None
        self.waiting.popleft()
        return work

    def _compute(self, texts: list[list[int]], pooling: str) -> Vector:
        width = max(map(len, texts))
        ids = np.zeros((len(texts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": self._segments(ids, mask),
                 "position_ids": np.broadcast_to(np.arange(width), ids.shape)}  # fmt: skip
        wanted = "logits" if self.ranks else self._hidden
        if pooling == "model" and _READY in self._session.outputs:
            wanted = _READY
        self.busy_since = time.monotonic()
        try:
            inputs = {name: np.ascontiguousarray(given[name]) for name in self._session.inputs}
            output: npt.NDArray[Any] = self._session.native.run([wanted], inputs)[0]
        finally:
            self.busy_since = 0.0
        output = output.astype(np.float32, copy=False)
        rows: Vector = output if wanted in (_READY, "logits") else self._pooled(output, mask, pooling)
        if self.ranks and rows.shape[1] != 1:
            raise UsageError(f"this model has {rows.shape[1]} classes: it is no reranker", code="E_CAPABILITY")
        if not np.isfinite(rows).all():
            raise InternalError("the model gave an embedding that is not finite")
        return rows

    def _pooled(self, hidden: npt.NDArray[np.float32], mask: npt.NDArray[np.int64], pooling: str) -> Vector:
        kind = self._pooling if pooling == "model" else pooling
        weights = mask[:, :, None].astype(np.float32)
        pooled: Vector
        if kind == "cls":
            pooled = hidden[:, 0]
        elif kind == "last":
            pooled = hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1]
        else:
            pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled

    def _segments(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """0 for the first text of a pair, 1 for the second; texts that are no pair are all 0."""
        separator = self.vocabulary.separator
        if not self.ranks or separator < 0:
            return np.zeros_like(ids)
        after = np.cumsum(ids == separator, axis=1) - (ids == separator)
        segments: npt.NDArray[np.int64] = ((after > 0) & (mask > 0)).astype(np.int64)
        return segments


def _pooling(folder: Path) -> str:
    """How sentence-transformers' files say that tokens are pooled; mean where they say nothing."""
    for place in (folder, folder.parent):
        try:
            config = read_json(place / "1_Pooling" / "config.json")
        except (InputMissing, FormatError):
            continue
        for field, name in (("pooling_mode_cls_token", "cls"), ("pooling_mode_lasttoken", "last")):
            if config.get(field) is True:
                return name
        break
    return "mean"


def _longest(folder: Path, config: dict[str, Any], context: int | None) -> int:
    limits = [context] if context else []
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        limits.append(positions - 2 if config.get("model_type") in _OFFSET_POSITIONS else positions)
    for place in (folder, folder.parent):
        try:
            stated = read_json(place / "tokenizer_config.json").get("model_max_length")
        except (InputMissing, FormatError):
            continue
        if isinstance(stated, int) and 0 < stated < 1 << 24:
            limits.append(stated)
        break
    return min(limits, default=512)
