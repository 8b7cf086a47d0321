"""How far an embedder's vectors are from a base model's, and what that does to search.

Divergence of next tokens means nothing for a model that looks both ways; what its users see is whether a text still
finds the same neighbours. Both models read the same passages, each with its own tokenizer. Invariant: only directions
are compared, for search normalises lengths away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError
from lathe.engine.measure.chunks import check_length
from lathe.engine.measure.kld import Estimate, mean
from lathe.engine.native.llama import LlamaModel
from lathe.engine.native.vectors import BATCH_TEXTS, BATCH_TOKENS, pooling_context, ranks, together, vectors

PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0)
NEIGHBOURS = 10
_CHARACTERS = 3
"""Per token of a passage: few enough that most texts fit."""
_WORD = re.compile(rb"\s*\S+")
Rows = npt.NDArray[np.float32]


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the vectors."""

    passages: int
    distance: Estimate
    """1 - cosine of a passage's two vectors, the mean."""
    distance_maximum: float
    distance_percentiles: dict[float, float]
    same_nearest: Estimate
    """Share of passages whose nearest other passage is the same."""
    neighbours: Estimate
    """Share of the base's ten nearest that are among the other's ten."""


def passages(text: bytes, tokens: int, limit: int = -1) -> list[bytes]:
    """A text in pieces of whole words, of about `tokens` tokens; `limit` is the most that are taken, -1 takes all.

    Raises:
        DataError: there are fewer than two.
    """
    found: list[bytes] = []
    start = end = 0
    for word in _WORD.finditer(text):
        if end > start and word.end() - start > _CHARACTERS * tokens:
            found.append(text[start:end].strip())
            start = end
        end = word.end()
    if end > start:
        found.append(text[start:end].strip())
    found = found if limit < 0 else found[:limit]
    if len(found) < 2:
        raise DataError("the text has fewer than two passages", hint="use a longer text or a smaller context")
    return found


def embed(
    model: LlamaModel,
    texts: Sequence[bytes],
    tokens: int,
    *,
    threads: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> Rows:
    """Unit vectors, texts x width; what goes beyond `tokens` of a text is left out.

    Raises:
        DataError: the model scores pairs of texts, or cannot read so many tokens at once.
    """
    if ranks(model):
        raise DataError(f"{model.path.name} scores pairs of texts and has no vectors to compare")
    check_length(model, tokens)
    cut = [_tokens(model, text, tokens) for text in texts]
    rows: list[Rows] = []
    with pooling_context(model, tokens=max(tokens, BATCH_TOKENS), sequences=BATCH_TEXTS, threads=threads) as context:
        while len(rows) < len(cut):
            count = together(cut, len(rows), tokens=BATCH_TOKENS, sequences=BATCH_TEXTS)
            rows += vectors(context, cut[len(rows) : len(rows) + count])
            progress(len(rows))
    found: Rows = np.stack(rows)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found


def compare(base: Rows, other: Rows) -> Likeness:
    """Compare unit vectors of the same passages.

    Raises:
        DataError: the vectors have different widths.
    """
    if base.shape != other.shape:
        raise DataError(
            f"the base's vectors have {base.shape[1]} values and the model's {other.shape[1]}",
            hint="compare models that were converted from the same checkpoint",
        )
    apart = base.astype(np.float64) - other.astype(np.float64)
    # Of unit vectors, 1 - cosine; written so, it is exact to many digits where they are almost the same.
    distances = np.einsum("ij,ij->i", apart, apart) / 2
    count = min(NEIGHBOURS, len(base) - 1)
    ours, theirs = _nearest(base, count), _nearest(other, count)
    common = np.array([len(np.intersect1d(a, b)) / count for a, b in zip(ours, theirs, strict=True)])
    return Likeness(
        passages=len(base),
        distance=mean(distances, least=2),
        distance_maximum=float(distances.max()),
        distance_percentiles={at: float(np.percentile(distances, at)) for at in PERCENTILES},
        same_nearest=mean((ours[:, 0] == theirs[:, 0]).astype(float), least=2),
        neighbours=mean(common, least=2),
    )


def _nearest(rows: Rows, count: int) -> npt.NDArray[np.int64]:
    """The `count` nearest others of each row, nearest first."""
    found = np.empty((len(rows), count), np.int64)
    for start in range(0, len(rows), 512):  # a block of similarities at a time: the text may be large
        block = rows[start : start + 512] @ rows.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        found[start : start + len(block)] = np.argsort(-block, axis=1, kind="stable")[:, :count]
    return found


def _tokens(model: LlamaModel, text: bytes, most: int) -> list[int]:
    """A text with the tokens that the model wants around it; a long one loses its end, not its mark of the end."""
    tokens = [int(token) for token in model.tokenize(text, add_special=True)]
    return tokens if len(tokens) <= most else [*tokens[: most - 1], tokens[-1]]
