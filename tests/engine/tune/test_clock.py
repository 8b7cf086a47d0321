"""The time of a search: shares, costs, what is left out; on a clock that the test turns."""

from __future__ import annotations

import pytest
from lathe.engine.tune.clock import Clock


class Hand:
    """Turned by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_what_a_part_does_not_need_goes_to_those_after_it(hand: Hand) -> None:
    clock = Clock(100, {"first": 1, "second": 1, "third": 2}, hand)
    with clock.part("first"):
        assert clock.left == pytest.approx(25)
        hand.at += 10
        assert clock.left == pytest.approx(15)
    with clock.part("second"):
        assert clock.left == pytest.approx(30)
        hand.at += 50
        assert clock.left == 0
        assert not clock.fits("anything")
    with clock.part("third"):
        assert clock.left == pytest.approx(40)
    assert clock.spent == {"first": 10, "second": 50, "third": 0}
    assert clock.seconds == 60


def test_a_part_that_does_not_come_leaves_its_share(hand: Hand) -> None:
    clock = Clock(100, {"first": 1, "second": 3}, hand)
    clock.drop("first")
    with clock.part("second"):
        assert clock.left == pytest.approx(100)


def test_the_last_of_its_kind_tells_whether_another_fits(hand: Hand) -> None:
    clock = Clock(100, {"only": 1}, hand)
    with clock.part("only"):
        assert clock.fits("reading"), "nobody knows yet what one takes"
        with clock.cost("reading"):
            hand.at += 30
        assert clock.fits("reading")
        assert clock.fits("reading", 2)
        assert not clock.fits("reading", 3)
        with clock.cost("reading"):
            hand.at += 60
        assert not clock.fits("reading")


def test_outside_of_parts_all_of_it_counts_and_notes_are_kept_once(hand: Hand) -> None:
    clock = Clock(100, {"only": 1}, hand)
    with clock.part("only"):
        pass
    assert clock.left == pytest.approx(100)
    clock.leave_out("a")
    clock.leave_out("a")
    assert clock.left_out == ["a"]
