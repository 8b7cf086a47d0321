"""Our statistics against SciPy's, and what they promise: coverage, power, and no difference where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lathe.engine.evals import statistics as stats
from lathe.engine.evals.metrics.metric import mean


def _rows(values: np.ndarray) -> np.ndarray:
    return np.stack([values.astype(float), np.ones(len(values))], axis=1)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (500, 1000), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = stats.wilson(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == successes / n


def test_wilson_of_nothing_knows_nothing() -> None:
    interval = stats.wilson(0, 0)
    assert (interval.low, interval.high) == (0, 1)
    assert math.isnan(interval.value)


@pytest.mark.parametrize(
    ("broken", "fixed"), [(0, 0), (1, 0), (0, 5), (5, 6), (10, 3), (40, 90), (0, 2000), (900, 1100)]
)
def test_mcnemar_is_the_exact_binomial_test(broken: int, fixed: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    wanted = scipy_stats.binomtest(broken, broken + fixed, 0.5).pvalue if broken + fixed else 1.0
    assert stats.mcnemar(broken, fixed) == pytest.approx(wanted, rel=1e-8, abs=1e-300)
    assert stats.mcnemar(broken, fixed) == stats.mcnemar(fixed, broken)


def test_the_bootstrap_is_scipys_percentile_bootstrap() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    sample = np.random.default_rng(3).gamma(2.0, size=200)
    ours = stats.bootstrap(_rows(sample), mean, resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.value == pytest.approx(sample.mean())


def test_holm_is_the_textbooks() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    chance = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        sample = chance.normal(1.0, 2.0, size=80)
        interval = stats.bootstrap(_rows(sample), mean, resamples=400, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_no_difference_is_called_so_about_as_often_as_promised() -> None:
    chance = np.random.default_rng(6)
    alarms = bootstrapped = 0
    for trial in range(300):
        right = chance.random(150) < 0.6
        flips = chance.random(150) < 0.2
        other = np.where(flips, chance.random(150) < 0.6, right)
        alarms += stats.compare_shares(right.astype(float), other.astype(float), resamples=200, seed=trial).p < 0.05
        before = chance.normal(size=150)
        after = before + chance.normal(scale=0.5, size=150)
        bootstrapped += stats.compare_figures(_rows(before), _rows(after), mean, resamples=400, seed=trial).p < 0.05
    assert alarms / 300 <= 0.05
    assert bootstrapped / 300 <= 0.09


def test_the_detectable_difference_is_detected_with_the_promised_power() -> None:
    chance = np.random.default_rng(7)
    noise = chance.normal(scale=1.0, size=(300, 100))
    before = np.zeros(100)
    planned = stats.compare_figures(_rows(before), _rows(noise[0]), mean).detectable
    assert planned == pytest.approx((1.96 + 0.8416) / 10, rel=0.25)
    true = (1.959964 + 0.841621) * 1.0 / math.sqrt(100)
    found = sum(
        stats.compare_figures(_rows(before), _rows(row + true), mean, resamples=400, seed=i).p < 0.05
        for i, row in enumerate(noise)
    )
    assert 0.72 <= found / 300 <= 0.9


def test_identical_runs_have_no_difference_and_nothing_is_claimed_about_its_spread() -> None:
    same = np.array([0.0, 1, 1, 0, 1])
    difference = stats.compare_shares(same, same)
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
    assert difference.detectable is None


def test_pairing_finds_what_unpaired_intervals_hide() -> None:
    chance = np.random.default_rng(8)
    before = chance.normal(scale=10, size=200)
    after = before + 0.2 + chance.normal(scale=0.1, size=200)
    first, second = stats.bootstrap(_rows(before), mean), stats.bootstrap(_rows(after), mean)
    assert first.high > second.low
    assert stats.compare_figures(_rows(before), _rows(after), mean).p < 0.01


def test_kappa() -> None:
    assert stats.kappa("aabb", "aabb") == 1
    assert stats.kappa("aabb", "abab") == 0
    assert stats.kappa("aabbb", "aabba") == pytest.approx(0.6154, abs=1e-4)
    assert stats.kappa("aaaa", "aaaa") is None
    assert stats.kappa("", "") is None


def test_many_resamples_of_many_cases_stay_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(np.random.default_rng(9).random(1000))
    whole = stats.bootstrap(rows, mean, resamples=200)
    monkeypatch.setattr(stats, "_CHUNK", 5000)
    parts = stats.bootstrap(rows, mean, resamples=200)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))
