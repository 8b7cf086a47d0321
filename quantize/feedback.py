"""Rounding that looks at what comes in: each weight's error is made good by the weights that are still to be rounded.

llama.cpp rounds every weight to its nearest level. What a layer puts out errs by (W - Q) x, so with the second moments
H = E[x x'] of its input the error of a row is (w - q) H (w - q)'. After the method of GPTQ (Frantar et al., 2022),
columns are rounded in order of their input's power, each error spread over the columns left; then coordinate descent
settles single weights. Scales and block layout stay llama.cpp's, so the bytes are as many and any reader reads them.
Pure numpy. Invariant: the error under H is never larger than before.
"""

from __future__ import annotations

from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize.blocks import LAYOUTS, Bytes, Floats, Grid, numbers_of, store

Columns = npt.NDArray[np.float32]
"""Weights with the input channel first: columns x rows, so that one channel of all rows is contiguous."""

_DAMPING = 0.01
"""Share of the mean diagonal added to H, for channels that the text hardly used."""
_STRIDE = 64
"""Columns between updates of all that follow."""
_SWEEPS = 3
_SLAB_BYTES = 48 * 1024 * 1024


class Feedback(msgspec.Struct, frozen=True):
    """Second moments of an input, prepared for rounding; shared by all weights that read it."""

    order: npt.NDArray[np.intp]
    """Channels by falling power."""
    moments: Floats
    """H in that order, damped."""
    factor: Floats
    """Upper Cholesky factor of the inverse of `moments`."""

    @classmethod
    def prepare(cls, moments: npt.NDArray[np.floating]) -> Self | None:
        """Prepare; None where the moments are too poor to invert."""
        diagonal = np.diag(moments)
        if not np.isfinite(moments).all() or diagonal.mean() <= 0:
            return None
        order = np.argsort(-diagonal)
        damped = moments[np.ix_(order, order)].astype(np.float64)
        damped[np.diag_indices_from(damped)] += _DAMPING * diagonal.mean()
        try:
            factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            return None
        return cls(order, damped.astype(np.float32), np.ascontiguousarray(factor, np.float32))

    def error(self, difference: Floats) -> float:
        """Expected squared error of the output for rows of weight errors, summed over rows."""
        ordered = difference[:, self.order]
        return float(np.einsum("ij,ij->", ordered @ self.moments, ordered, dtype=np.float64))


def refinable(kind: str) -> bool:
    """Whether weights of this type are rounded one by one."""
    return kind in LAYOUTS


def refine(kind: str, rows: Bytes, weights: Floats, feedback: Feedback) -> Bytes:
    """Round again.

    Args:
        rows: quantized rows as llama.cpp made them, rows x bytes.
        weights: what they stand for, rows x columns.
    """
    step = max(1, _SLAB_BYTES // (4 * weights.shape[1]))
    parts = [_refine(kind, rows[at : at + step], weights[at : at + step], feedback) for at in range(0, len(rows), step)]
    return np.concatenate(parts)


def _refine(kind: str, rows: Bytes, weights: Floats, feedback: Feedback) -> Bytes:
    numbers, grid = numbers_of(kind, rows)
    before = values(grid, numbers)
    wanted = np.ascontiguousarray(weights[:, feedback.order].T)
    levels = _Levels(grid, feedback.order)
    found = _settle(wanted, _spread_errors(wanted, levels, feedback), levels, feedback)
    better = _row_errors(wanted - levels.values(found), feedback) < _row_errors(
        wanted - np.ascontiguousarray(before[:, feedback.order].T), feedback
    )
    result = numbers.copy()
    result[:, feedback.order] = np.where(better[:, None], found.T, numbers[:, feedback.order])
    return store(kind, rows, result)


def values(grid: Grid, numbers: npt.NDArray[np.int16]) -> Floats:
    """What the numbers of a grid stand for."""
    level = numbers.astype(np.float32) if grid.levels is None else grid.levels[numbers]
    product: Floats = grid.scale * level
    return product if grid.offset is None else product + grid.offset


class _Levels:
    """A grid with channels first and in order."""

    def __init__(self, grid: Grid, order: npt.NDArray[np.intp]) -> None:
        self._scale = np.ascontiguousarray(grid.scale[:, order].T)
        self._offset = None if grid.offset is None else np.ascontiguousarray(grid.offset[:, order].T)
        with np.errstate(divide="ignore"):
            self._inverse = np.where(self._scale == 0, np.float32(0), 1 / self._scale)
        self._low, self._high, self._levels = grid.low, grid.high, grid.levels
        self._middles = None if grid.levels is None else (grid.levels[1:] + grid.levels[:-1]) / 2

    def nearest(self, channel: int, wanted: Floats) -> tuple[npt.NDArray[np.int16], Floats]:
        """Numbers nearest to the wanted values of a channel, and their values."""
        centred = wanted if self._offset is None else wanted - self._offset[channel]
        place = centred * self._inverse[channel]
        if self._middles is None:
            numbers = np.clip(np.rint(place), self._low, self._high).astype(np.int16)
        else:
            numbers = np.searchsorted(self._middles, place).astype(np.int16)
        return numbers, self._value(channel, numbers)

    def _value(self, channel: int, numbers: npt.NDArray[np.int16]) -> Floats:
        level = numbers.astype(np.float32) if self._levels is None else self._levels[numbers]
        product: Floats = self._scale[channel] * level
        return product if self._offset is None else product + self._offset[channel]

    def values(self, numbers: npt.NDArray[np.int16]) -> Columns:
        """Values of all channels."""
        return np.stack([self._value(channel, row) for channel, row in enumerate(numbers)])


def _spread_errors(wanted: Columns, levels: _Levels, feedback: Feedback) -> npt.NDArray[np.int16]:
    """Round channel by channel; each error moves what is wanted of the channels that follow."""
    left = wanted.copy()
    numbers = np.empty(left.shape, np.int16)
    factor = feedback.factor
    for start in range(0, len(left), _STRIDE):
        stop = min(start + _STRIDE, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for channel in range(start, stop):
            numbers[channel], reached = levels.nearest(channel, left[channel])
            error = (left[channel] - reached) / factor[channel, channel]
            errors[channel - start] = error
            left[channel + 1 : stop] -= factor[channel, channel + 1 : stop, None] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return numbers


def _settle(
    wanted: Columns, numbers: npt.NDArray[np.int16], levels: _Levels, feedback: Feedback
) -> npt.NDArray[np.int16]:
    """Coordinate descent: each weight to its best level while the others stay."""
    moments = feedback.moments
    reached = levels.values(numbers)
    slope = moments @ (wanted - reached)
    for _ in range(_SWEEPS):
        moved = False
        for start in range(0, len(wanted), _STRIDE):
            stop = min(start + _STRIDE, len(wanted))
            near = slope[start:stop].copy()
            changes = np.zeros_like(near)
            for channel in range(start, stop):
                row = channel - start
                best = reached[channel] + near[row] / moments[channel, channel]
                numbers[channel], value = levels.nearest(channel, best)
                np.subtract(value, reached[channel], out=changes[row])
                near -= moments[start:stop, channel, None] * changes[row]
                reached[channel] = value
            if changes.any():
                moved = True
                slope -= moments[:, start:stop] @ changes
        if not moved:
            break
    return numbers


def _row_errors(difference: Columns, feedback: Feedback) -> npt.NDArray[np.float64]:
    errors: npt.NDArray[np.float64] = np.einsum("cr,cr->r", feedback.moments @ difference, difference, dtype=np.float64)
    return errors
