"""How sure is a figure, and is a difference more than noise?

Wilson intervals for shares, percentile bootstrap over cases for everything else, McNemar's exact test and the paired
bootstrap for two runs of the same cases, Holm's correction for several comparisons at once. Own implementations on
NumPy and the standard library, compared with SciPy in the tests. Invariant: cases are resampled, not answers: repeats
and variants of a case are one draw, for they are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.evals.results import CONFIDENCE, Difference, Interval

Floats = npt.NDArray[np.float64]
Combine = Callable[[Floats], Floats]

RESAMPLES = 2000
ALPHA = 0.05
POWER = 0.8
_NORMAL = NormalDist()
_CHUNK = 8_000_000
"""Numbers in memory at once while resampling."""


def wilson(successes: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share; sound for few cases and for shares near 0 and 1."""
    if n <= 0:
        return Interval(math.nan, 0.0, 1.0, 0, "Wilson")
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula is exact up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n, "Wilson")


def bootstrap(
    statistics: Floats, combine: Combine, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of a figure over resampled cases; `statistics` has one row per case."""
    n = len(statistics)
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, "bootstrap")
    value = float(combine(statistics.sum(axis=0, keepdims=True))[0])
    figures = combine(_resampled_sums(statistics, resamples, seed))
    low, high = _percentiles(figures, confidence)
    return Interval(value, low, high, n, "bootstrap")


def mcnemar(broken: int, fixed: int) -> float:
    """McNemar's exact test: the probability of a split at least this uneven, were both directions equally likely."""
    n = broken + fixed
    if n == 0:
        return 1.0
    tail = _binomial_tail(min(broken, fixed), n)
    return min(1.0, 2 * tail)


def compare_shares(before: Floats, after: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """Compare right-or-wrong cases: McNemar's test, with a bootstrap interval of the difference.

    Args:
        before, after: 0 or 1 per case, in the same order.
        seed, resamples: of the bootstrap.
    """
    broken = int(((before > 0.5) & (after < 0.5)).sum())
    fixed = int(((before < 0.5) & (after > 0.5)).sum())
    ones = np.ones(len(before))
    paired = compare_figures(
        np.stack([before, ones], axis=1), np.stack([after, ones], axis=1), _mean, seed=seed, resamples=resamples
    )
    return msgspec.structs.replace(paired, p=mcnemar(broken, fixed), test="McNemar")


def compare_figures(
    before: Floats, after: Floats, combine: Combine, *, confidence: float = CONFIDENCE, seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:  # fmt: skip
    """Paired bootstrap: both runs are resampled with the same cases.

    The p-value is twice the smaller share of resampled differences on either side of zero (ties halved), never below
    1 / (resamples + 1), for a finite number of draws proves no less, nor below that of a sign test of so many cases:
    of few cases the bootstrap is too sure, and of one it knows nothing at all.
    """
    n = len(before)
    if n == 0:
        return Difference(value=math.nan, low=-math.inf, high=math.inf, p=1.0, n=0, detectable=None, test="none")
    sums = combine(before.sum(axis=0, keepdims=True)), combine(after.sum(axis=0, keepdims=True))
    value = float(sums[1][0] - sums[0][0])
    drawn_before = combine(_resampled_sums(before, resamples, seed))
    drawn = combine(_resampled_sums(after, resamples, seed)) - drawn_before
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Difference(
            value=value, low=-math.inf, high=math.inf, p=1.0, n=n, detectable=None, test="paired bootstrap"
        )
    low, high = _percentiles(drawn, confidence)
    below = ((drawn < 0).sum() + 0.5 * (drawn == 0).sum()) / len(drawn)
    p = float(max(min(1.0, 2 * min(below, 1 - below)), 1 / (len(drawn) + 1), 2.0 ** (1 - n)))
    # The spread of the resampled differences is the standard error of the difference.
    error = float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
    return Difference(
        value=value, low=low, high=high, p=p, n=n, detectable=detectable(error), test="paired bootstrap"
    )  # fmt: skip


def detectable(standard_error: float, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest true difference that a two-sided test finds with the given power.

    None for no spread at all: then nothing is known about how large differences would vary.
    """
    if not math.isfinite(standard_error) or standard_error <= 0:
        return None
    return (_NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that hold for all comparisons together."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Cohen's kappa: agreement of two raters beyond chance; None where chance alone explains everything."""
    n = len(first)
    if n == 0 or n != len(second):
        return None
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = {*first, *second}
    chance = sum((sum(a == x for a in first) / n) * (sum(b == x for b in second) / n) for x in labels)
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def percentile(values: Sequence[float], share: float) -> float | None:
    """A percentile by linear interpolation; None of nothing."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share)) if values else None


def _mean(sums: Floats) -> Floats:
    result: Floats = sums[..., 0] / sums[..., 1]
    return result


def _resampled_sums(statistics: Floats, resamples: int, seed: int) -> Floats:
    """Sums over as many cases drawn with replacement, one row per resample."""
    n = len(statistics)
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, min(resamples, _CHUNK // max(1, n)))
    parts = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = generator.integers(0, n, size=(rows, n))
        offsets = draws + n * np.arange(rows)[:, None]
        counts = np.bincount(offsets.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(counts @ statistics)
    return np.concatenate(parts)


def _percentiles(figures: Floats, confidence: float) -> tuple[float, float]:
    figures = figures[np.isfinite(figures)]
    if not len(figures):
        return -math.inf, math.inf
    low, high = np.quantile(figures, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _binomial_tail(successes: int, n: int) -> float:
    """P(X <= successes) for n fair coins, summed in logarithms."""
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(successes + 1)]
    highest = max(logs)
    return math.exp(highest + math.log(math.fsum(math.exp(value - highest) for value in logs)) - n * math.log(2))
