"""The knapsack against exhaustive search."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.errors import DataError
from lathe.engine.tune.knapsack import Option, choose, cost_of, hull, path, size_of

option_lists = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=5)
problems = st.lists(option_lists, min_size=1, max_size=5)


def choices_of(problem: list[list[tuple[int, float]]]) -> dict[str, list[Option]]:
    return {
        f"t{number}": [Option(f"k{index}", size, cost) for index, (size, cost) in enumerate(listed)]
        for number, listed in enumerate(problem)
    }


@given(option_lists)
def test_a_hull_is_falling_convex_and_below_everything(listed: list[tuple[int, float]]) -> None:
    options = choices_of([listed])["t0"]
    corners = hull(options)
    assert [corner.bytes for corner in corners] == sorted({corner.bytes for corner in corners})
    worths = [(one.cost - other.cost) / (other.bytes - one.bytes) for one, other in itertools.pairwise(corners)]
    assert all(worth > 0 for worth in worths)
    assert worths == sorted(worths, reverse=True)
    assert corners[0].bytes == min(option.bytes for option in options)
    assert corners[-1].cost == min(option.cost for option in options)


@given(problems, st.integers(0, 250))
def test_choices_fit_and_are_close_to_the_best(problem: list[list[tuple[int, float]]], budget: int) -> None:
    choices = choices_of(problem)
    feasible = [mix for mix in itertools.product(*choices.values()) if sum(option.bytes for option in mix) <= budget]
    if not feasible:
        with pytest.raises(DataError, match="smallest types take"):
            choose(choices, budget)
        return
    found = choose(choices, budget)
    assert found.keys() == choices.keys()
    assert size_of(found) <= budget
    best = min(sum(option.cost for option in mix) for mix in feasible)
    # the relaxation may lose what one step in the middle would have saved
    largest_step = max((step.saved for step in path(choices)[1]), default=0.0)
    assert cost_of(found) <= best + largest_step + 1e-9


@given(problems)
def test_every_mix_on_the_path_is_the_best_of_its_size(problem: list[list[tuple[int, float]]]) -> None:
    choices = choices_of(problem)
    mix, steps = path(choices)
    for step in [None, *steps]:
        if step is not None:
            assert mix[step.name].bytes + step.bytes == step.option.bytes, "steps of a tensor come in order"
            mix = mix | {step.name: step.option}
        best = min(
            sum(option.cost for option in every)
            for every in itertools.product(*choices.values())
            if sum(option.bytes for option in every) <= size_of(mix)
        )
        assert cost_of(mix) == pytest.approx(best, abs=1e-9)


def test_room_that_no_step_fills_is_spent_on_options_off_the_hull() -> None:
    choices = {"a": [Option("small", 10, 5.0), Option("odd", 14, 4.9), Option("large", 20, 0.0)]}
    assert choose(choices, 13)["a"].kind == "small"
    assert choose(choices, 15)["a"].kind == "odd"
    assert choose(choices, 20)["a"].kind == "large"
