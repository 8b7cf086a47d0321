"""Rates and ETAs: smooth, never going back, absent while they would be guesses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.jobs.pace import Pace
from lathe.engine.jobs.values import Progress


def test_a_steady_job_has_the_rate_it_has() -> None:
    pace = Pace(started=0.0)
    shown = Progress()
    for second in range(31):
        shown = pace.update(Progress(done=second * 4, total=200, unit="chunk"), float(second))
    assert shown.rate is not None and abs(shown.rate - 4) < 1e-6
    assert shown.eta_s is not None and abs(shown.eta_s - 20) < 1e-6
    assert shown.fraction == 120 / 200


def test_no_eta_before_five_percent_or_twenty_seconds() -> None:
    pace = Pace(started=0.0)
    assert pace.update(Progress(done=0, total=1000), 0.0).eta_s is None
    assert pace.update(Progress(done=10, total=1000), 1.0).eta_s is None
    assert pace.update(Progress(done=60, total=1000), 2.0).eta_s is not None
    slow = Pace(started=0.0)
    slow.update(Progress(done=0, total=1000), 0.0)
    assert slow.update(Progress(done=10, total=1000), 25.0).eta_s is not None


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), min_size=1, max_size=40))
def test_done_never_goes_back_within_a_stage(reports: list[tuple[float, float]]) -> None:
    pace, now, last = Pace(started=0.0), 0.0, 0.0
    for done, wait in reports:
        now += wait
        shown = pace.update(Progress(done=done, total=100), now)
        assert shown.done >= last
        assert shown.rate is None or shown.rate >= 0
        last = shown.done


def test_a_new_stage_begins_anew() -> None:
    pace = Pace(started=0.0)
    pace.update(Progress(stage=1, stages=2, done=90, total=100), 1.0)
    shown = pace.update(Progress(stage=2, stages=2, done=10, total=100), 2.0)
    assert shown.done == 10
    assert shown.fraction == 0.55


def test_an_eta_is_the_job_s_so_only_its_last_stage_has_one() -> None:
    pace = Pace(started=0.0)
    for stage in (1, 2):
        for second in range(1, 60):
            shown = pace.update(Progress(stage=stage, stages=2, done=second, total=60), stage * 100.0 + second)
        assert shown.rate is not None
        assert (shown.eta_s is not None) == (stage == 2)
