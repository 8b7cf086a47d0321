"""Prompt tokens beside running streams: a machine is played, and the times of the streams must keep the promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lathe.engine.scheduler.pacing import ALLOWANCE, FEW, Pacer

BATCH = 512
Cost = Callable[[int, int], float]
"""Seconds of an iteration with so many prompt tokens, so deep in the prompt."""


def calm(pacer: Pacer, streams: int, seconds: float, iterations: int = 60) -> None:
    for _ in range(iterations):
        assert pacer.allow(streams, 0, 0) == (0, 0)
        pacer.observe(streams, 0, 0, seconds)


def long_prompt(pacer: Pacer, streams: int, tokens: int, cost: Cost) -> list[float]:
    times = []
    depth = 0
    while depth < tokens:
        short, taken = pacer.allow(streams, 0, tokens - depth)
        assert short == 0
        assert 0 <= taken <= BATCH - streams
        times.append(cost(taken, depth))
        pacer.observe(streams, 0, taken, times[-1])
        depth += taken
        assert len(times) < 10_000, "the prompt stands still"
    return times


def cheap(tokens: int, _depth: int) -> float:
    return 0.010 + 0.0004 * tokens


def deep(tokens: int, depth: int) -> float:
    """A row of its own passes over the whole prompt, as on a CPU; whole batches share the way."""
    own = min(tokens, 64) * depth * 1e-6
    return 0.003 + depth * 3e-7 + own + 0.0003 * tokens


@pytest.mark.parametrize(("cost", "alone"), [(cheap, 0.010), (deep, 0.003)])
def test_nineteen_of_twenty_iterations_stay_within_twice_a_calm_one(cost: Cost, alone: float) -> None:
    pacer = Pacer(BATCH)
    for _ in range(2):  # the second time it knows what a token costs
        calm(pacer, 4, alone)
        times = sorted(long_prompt(pacer, 4, 4000, cost))
    assert times[int(0.95 * len(times))] <= 2 * alone


def test_where_few_tokens_cost_much_whole_batches_alone_bring_the_prompt_on() -> None:
    pacer = Pacer(BATCH)
    calm(pacer, 4, 0.003)
    taken = []
    depth = 3000
    for _ in range(6 * ALLOWANCE):
        _, count = pacer.allow(4, 0, 8000 - depth)
        pacer.observe(4, 0, count, deep(count, depth))
        taken.append(count)
        depth += count
    last = taken[2 * ALLOWANCE :]
    assert set(last) == {0, BATCH - 4}
    assert last.count(BATCH - 4) >= 3
    assert all(count == 0 or count >= FEW for count in taken)


def test_an_iteration_that_lost_its_processor_moves_the_target_little() -> None:
    pacer, other = Pacer(BATCH), Pacer(BATCH)
    for one in (pacer, other):
        calm(one, 4, 0.003)
    pacer.observe(4, 0, 0, 0.012)
    ours, theirs = (sorted(long_prompt(one, 4, 2000, deep)) for one in (pacer, other))
    assert ours[len(ours) // 2] <= 1.3 * theirs[len(theirs) // 2]
