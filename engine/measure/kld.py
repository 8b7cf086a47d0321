"""How far one model's predictions are from another's: Kullback-Leibler divergence and its company.

Both models step through the text together, so no file of logits is needed; a base file of llama-perplexity can stand
in for the base model. The statistics are llama-perplexity's. Invariant: everything reported is a pure function of one
row per scored token (`Rows`), which is also what a checkpoint holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.base_file import BaseFile, BaseWriter
from lathe.engine.measure.chunks import Block, Chunks
from lathe.engine.measure.logprobs import Doubles, Floats, Slicer, log_normalizer
from lathe.engine.native.llama import LlamaContext, physical_cores

Rows = npt.NDArray[np.float32]
"""tokens x 4: nll of the model, nll of the base, divergence, whether the top tokens agree."""
Progress = Callable[[int, int, Rows], None]
"""(chunks done, chunks in all, every row so far)."""

_NLL, _BASE, _KLD, _SAME = range(4)
_STORED_FLOOR = -16.0
"""Log-probabilities in files are not looked at below this, as in llama-perplexity."""
_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its standard error."""

    value: float
    error: float


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """What llama-perplexity --kl-divergence reports."""

    tokens: int
    perplexity: Estimate
    base_perplexity: Estimate
    correlation: float
    """Of the two models' log-probabilities of the text, -1..1."""
    log_ratio: Estimate
    """ln(perplexity / base)."""
    ratio: Estimate
    difference: Estimate
    kld: Estimate
    """Mean divergence, in nats."""
    kld_maximum: float
    kld_minimum: float
    kld_percentiles: dict[float, float]
    delta_p: Estimate
    """Mean change of the probability of the token that came."""
    delta_p_rms: Estimate
    delta_p_percentiles: dict[float, float]
    same_top: Estimate
    """Share of positions where both models find the same token most probable."""


def measure(
    base: LlamaContext | BaseFile,
    context: LlamaContext,
    chunks: Chunks,
    *,
    earlier: Rows | None = None,
    save: BaseWriter | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Walk the text with both; `earlier` are the rows of a stopped run, whole chunks of them.

    Args:
        base: the reference, its context made by `chunks.options` as `context` is.
        save: gets the base's logits.
    """
    if context.model.n_vocab != chunks.n_vocab:
        raise DataError(
            f"{context.model.path.name} has {context.model.n_vocab} tokens and the base {chunks.n_vocab}",
            hint="only models with the same vocabulary can be compared",
        )
    parts = [earlier] if earlier is not None else []
    start = 0 if earlier is None else len(earlier) // chunks.rows
    with Slicer(context.options.n_threads or physical_cores()) as slicer:
        floor = _STORED_FLOOR if isinstance(base, BaseFile) else -math.inf
        for block, reference, logits in _together(base, context, chunks, start):
            rows = np.empty((len(block.targets), 4), np.float32)
            slicer.each(len(rows), chunks.n_vocab, partial(_compare, block, reference, floor, rows))
            if not np.isfinite(rows).all():
                raise chunked.broken()
            parts.append(rows)
            if save is not None and logits is not None:
                save.write(logits)
            if progress is not None and block.chunks_done > block.chunk:
                progress(block.chunks_done, chunks.n_chunks, np.concatenate(parts))
    return np.concatenate(parts)


Reference = Callable[[slice], tuple[Floats, Doubles]]
"""From a slice of rows to the base's logits, and what to subtract from each row for log-probabilities."""


def _together(
    base: LlamaContext | BaseFile, context: LlamaContext, chunks: Chunks, start: int
) -> Iterator[tuple[Block, Reference, Floats | None]]:
    """Blocks of the model, the base's side of them, and its logits where it is there itself."""
    blocks = chunked.run(context, chunks, start)
    if isinstance(base, LlamaContext):
        for block, other in zip(blocks, chunked.run(base, chunks, start), strict=True):
            yield block, partial(_live, other.logits), other.logits
        return
    done = start * chunks.rows
    for block in blocks:
        yield block, partial(_stored, base, done), None
        done += len(block.targets)


def _live(logits: Floats, piece: slice) -> tuple[Floats, Doubles]:
    part = logits[piece]
    return part, log_normalizer(part, np.empty_like(part))


def _stored(base: BaseFile, done: int, piece: slice) -> tuple[Floats, Doubles]:
    log_probabilities = base.log_probabilities(done + piece.start, done + piece.stop)
    return log_probabilities, np.zeros(len(log_probabilities))


def _compare(block: Block, reference: Reference, floor: float, rows: Rows, piece: slice) -> None:
    """Fill the rows of one slice; base tokens of a log-probability up to `floor` count as impossible."""
    logits = block.logits[piece]
    scratch = np.empty_like(logits)
    normalizer = log_normalizer(logits, scratch)
    base, base_normalizer = reference(piece)
    at = np.arange(len(logits)), block.targets[piece]
    rows[piece, _NLL] = normalizer - logits[at]
    rows[piece, _BASE] = base_normalizer - base[at]
    rows[piece, _SAME] = logits.argmax(axis=1) == base.argmax(axis=1)
    probabilities = np.subtract(base, base_normalizer[:, None].astype(np.float32))
    impossible = probabilities <= floor
    np.exp(probabilities, out=probabilities)
    probabilities[impossible] = 0
    # sum p (log p - log q): the difference of logits first, so that nothing large cancels in single precision
    spread = np.einsum("ij,ij->i", probabilities, np.subtract(base, logits, out=scratch))
    whole = 1.0 if floor == -math.inf else probabilities.sum(axis=1)
    rows[piece, _KLD] = spread - (base_normalizer - normalizer) * whole


def statistics(rows: Rows) -> Divergence:
    """Sum up the rows."""
    count = len(rows)
    wide = rows.astype(np.float64)
    nll, base, kld = wide[:, _NLL], wide[:, _BASE], wide[:, _KLD]
    delta = np.exp(-nll) - np.exp(-base)
    log_ppl, log_base = mean(nll), mean(base)
    covariance = float(((nll * base).mean() - nll.mean() * base.mean()) / (count - 1)) if count >= 10 else 0.0
    ppl = Estimate(math.exp(log_ppl.value), math.exp(log_ppl.value) * log_ppl.error)
    base_ppl = Estimate(math.exp(log_base.value), math.exp(log_base.value) * log_base.error)
    log_ratio = Estimate(log_ppl.value - log_base.value, _difference_error(log_ppl, log_base, covariance))
    both = log_ppl.error * log_base.error
    square = mean(delta**2)
    rms = math.sqrt(square.value)
    top = float(rows[:, _SAME].mean())
    return Divergence(
        tokens=count,
        perplexity=ppl,
        base_perplexity=base_ppl,
        correlation=covariance / both if both > 0 else 1.0,
        log_ratio=log_ratio,
        ratio=Estimate(math.exp(log_ratio.value), math.exp(log_ratio.value) * log_ratio.error),
        difference=Estimate(
            ppl.value - base_ppl.value, _difference_error(ppl, base_ppl, ppl.value * base_ppl.value * covariance)
        ),
        kld=mean(kld),
        kld_maximum=float(kld.max()),
        kld_minimum=float(kld.min()),
        kld_percentiles=_percentiles(kld),
        delta_p=mean(delta),
        delta_p_rms=Estimate(rms, 0.5 / rms * square.error if rms > 0 else 0.0),
        delta_p_percentiles=_percentiles(delta),
        same_top=Estimate(top, math.sqrt(top * (1 - top) / (count - 1)) if count > 1 else 0.0),
    )


def mean(values: npt.NDArray[np.float64], *, least: int = 11) -> Estimate:
    """Mean with its standard error, which llama-perplexity gives from eleven values on."""
    count, centre = len(values), float(values.mean())
    variance = float(np.square(values).mean()) - centre * centre
    return Estimate(centre, math.sqrt(variance / (count - 1)) if variance > 0 and count >= least else 0.0)


def _difference_error(one: Estimate, other: Estimate, covariance: float) -> float:
    return math.sqrt(max(0.0, one.error**2 + other.error**2 - 2 * covariance))


def _percentiles(values: npt.NDArray[np.float64]) -> dict[float, float]:
    return dict(zip(_PERCENTILES, map(float, np.percentile(values, _PERCENTILES)), strict=True))
