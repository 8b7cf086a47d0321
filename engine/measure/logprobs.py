"""Softmax over big blocks of logits in little memory and on all cores.

Rows are worked in slices that stay in the cache, on a few threads: numpy lets go of the interpreter while it computes.
Invariant: no array of rows x vocabulary is ever allocated here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_SLICE_BYTES = 512 * 1024
"""Of one slice's scratch: fits the second-level cache together with its input."""


class Slicer:
    """Runs a function over slices of rows on several threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def each(self, rows: int, width: int, work: Callable[[slice], None]) -> None:
        """Call `work` for slices that cover `rows` rows of `width` floats."""
        step = max(1, min(_SLICE_BYTES // (4 * width), -(-rows // self._threads)))
        slices = [slice(at, min(at + step, rows)) for at in range(0, rows, step)]
        if self._pool is None:
            for piece in slices:
                work(piece)
        else:
            for _ in self._pool.map(work, slices):
                pass


def log_normalizer(logits: Floats, scratch: Floats) -> Doubles:
    """The log of the summed exponentials of each row, with the exponentials less the maximum left in `scratch`."""
    highest = logits.max(axis=1, keepdims=True)
    np.subtract(logits, highest, out=scratch)
    np.exp(scratch, out=scratch)
    normalizer: Doubles = np.log(scratch.sum(axis=1, dtype=np.float32).astype(np.float64)) + highest[:, 0]
    return normalizer


def negative_log_likelihood(logits: Floats, targets: npt.NDArray[np.int32], slicer: Slicer) -> Doubles:
    """Minus the natural-log probability of each row's target."""
    rows, width = logits.shape
    result = np.empty(rows)

    def work(piece: slice) -> None:
        part = logits[piece]
        chosen = part[np.arange(len(part)), targets[piece]]
        result[piece] = log_normalizer(part, np.empty_like(part)) - chosen

    slicer.each(rows, width, work)
    return result
