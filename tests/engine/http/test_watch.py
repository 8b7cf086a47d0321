"""Deadlines of connections, judged on a clock of the test's own."""

from __future__ import annotations

import pytest
from lathe.engine.http.limits import Limits
from lathe.engine.http.watch import WRITE_STEP, Overdue, Progress, overdue

LIMITS = Limits(head_s=10, body_s=30, body_rate=512, rate_grace_s=5, write_s=30)


@pytest.mark.parametrize(
    ("stage", "age", "received", "verdict"),
    [
        ("head", 9.9, 0, None),
        ("head", 10, 0, "head"),
        ("body", 4.9, 0, None),
        ("body", 5, 0, "rate"),
        ("body", 5, 2560, None),
        ("body", 10, 5119, "rate"),
        ("body", 29.9, 10**6, None),
        ("body", 30, 10**6, "body"),
        ("answer", 10**6, 0, None),
        ("idle", 10**6, 0, None),
    ],
)
def test_each_stage_has_its_deadline(stage: str, age: float, received: int, verdict: Overdue | None) -> None:
    progress = Progress(0)
    progress.enter(stage, 100)  # type: ignore[arg-type]
    progress.body_bytes = received
    assert overdue(progress, 100 + age, LIMITS) == verdict


def test_a_new_body_starts_with_no_bytes() -> None:
    progress = Progress(0)
    progress.body_bytes = 10**6
    progress.enter("body", 50)
    assert overdue(progress, 56, LIMITS) == "rate"


def answering() -> Progress:
    progress = Progress(0)
    progress.enter("answer", 0)
    return progress


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    progress = answering()
    progress.written = 50_000
    for now in range(30):
        progress.look(50_000, now)
        assert overdue(progress, now, LIMITS) is None
    assert overdue(progress, 30, LIMITS) == "write"


def test_a_byte_a_second_is_not_progress_but_a_slow_line_is() -> None:
    dripping, slow = answering(), answering()
    verdicts: list[Overdue | None] = []
    for now in range(120):
        for progress, rate in ((dripping, 1), (slow, WRITE_STEP // 20)):
            progress.written = 50_000 + now * rate
            progress.look(50_000, now)
        verdicts.append(overdue(dripping, now, LIMITS))
        assert overdue(slow, now, LIMITS) is None
    assert verdicts[30] == "write"


def test_an_empty_buffer_clears_the_suspicion() -> None:
    progress = answering()
    progress.look(10, 0)
    progress.look(0, 29)
    progress.look(10, 31)
    assert overdue(progress, 60, LIMITS) is None
    assert overdue(progress, 61, LIMITS) == "write"
