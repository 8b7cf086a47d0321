"""The meter: exact percentiles, honest rates, rows without text, bounded memory."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.errors import BusyError, CrashedError
from lathe.engine.generation import Delta, Timing, Usage
from lathe.engine.states import WorkerState
from lathe.engine.telemetry.traffic import FINISHED_ROWS, TrafficMeter
from lathe.engine.telemetry.window import WINDOW_MAX, Seconds, Window
from lathe.engine.worker.messages import LoadOptions, RequestState, WorkerStats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> TrafficMeter:
    return TrafficMeter(clock)


def worker(stats: WorkerStats, phase: str = "ready", pid: int = 1) -> WorkerState:
    return WorkerState(
        name="toy",
        model_id="x",
        path="p",
        phase=phase,
        options=LoadOptions(),
        stats=stats,
        pid=pid,  # type: ignore[arg-type]
    )


def last_delta(prompt: int = 10, generated: int = 3, cached: int = 4) -> Delta:
    timing = Timing(0.5, 1.0, 3.0, 0.5, 2.0)
    return Delta(finish="stop", usage=Usage(prompt, generated, cached), timing=timing)


def test_one_request_from_start_to_end(meter: TrafficMeter, clock: Clock) -> None:
    seen = meter.observe("r-1", "toy", "playground A")
    (row,) = meter.snapshot().requests
    assert (row.stage, row.finished, row.ttft_s) == ("waiting", False, None)
    clock.now += 1.0
    seen.on_delta(Delta(text="a", tokens=(1,)))
    clock.now += 0.5
    seen.on_delta(Delta(text="bcd", tokens=(2, 3)))  # two tokens in half a second: two intervals of 0.25 s
    traffic = meter.snapshot()
    assert (traffic.running, traffic.waiting) == (1, 0)
    assert (traffic.itl.count, traffic.itl.p50, traffic.ttft.p50) == (2, 0.25, 1.0)
    seen.on_delta(last_delta())
    clock.now += 0.5
    seen.finish()
    traffic = meter.snapshot()
    (row,) = traffic.requests
    assert (row.stage, row.finished, row.generated, row.prompt_tokens) == ("stop", True, 3, 10)
    assert row.ttft_s == 1.0 and row.age_s == 2.0 and row.tokens_per_s == 1.0  # the worker's own timing: 2 in 2 s
    assert traffic.e2e.p50 == 2.0 and traffic.queue.p50 == 0.5
    assert (traffic.requests_total, traffic.generated_tokens_total) == (1, 3)
    assert (traffic.prompt_tokens_total, traffic.cached_tokens_total) == (10, 4)


def test_no_text_is_kept(meter: TrafficMeter) -> None:
    seen = meter.observe("r-1", "toy", "http 127.0.0.1")
    seen.on_delta(Delta(text="SECRET", tokens=(1,)))
    assert "SECRET" not in repr(meter.snapshot()) and "SECRET" not in repr(vars(seen))


@pytest.mark.parametrize(
    ("error", "stage", "rejected", "errors"),
    [
        (BusyError("queue full"), "rejected", 1, 0),
        (CrashedError("gone"), "error", 0, 1),
        (ValueError("bug"), "error", 0, 1),
        (GeneratorExit(), "cancelled", 0, 0),
        (asyncio.CancelledError(), "cancelled", 0, 0),
    ],
)
def test_every_end_is_counted_for_what_it_is(
    meter: TrafficMeter, error: BaseException, stage: str, rejected: int, errors: int
) -> None:
    seen = meter.observe("r-1", "toy", "")
    seen.fail(error)
    seen.finish()  # a second end changes nothing
    traffic = meter.snapshot()
    assert (traffic.requests[0].stage, traffic.rejected, traffic.errors) == (stage, rejected, errors)
    assert traffic.running == traffic.waiting == traffic.e2e.count == 0


def test_finished_rows_are_the_newest_and_few(meter: TrafficMeter) -> None:
    for number in range(FINISHED_ROWS + 10):
        meter.observe(f"r-{number}", "toy", "").finish()
    rows = meter.snapshot().requests
    assert len(rows) == FINISHED_ROWS and rows[0].id == f"r-{FINISHED_ROWS + 9}"


def test_rates_are_of_whole_seconds(meter: TrafficMeter, clock: Clock) -> None:
    seen = meter.observe("r-1", "toy", "")
    for _ in range(4):
        clock.now += 0.25
        seen.on_delta(Delta(tokens=(1, 2)))  # at .25, .5, .75 and in the next second
    clock.now = 102.0
    assert meter.snapshot().decode_history[-2:] == (6.0, 2.0)
    assert meter.snapshot().decode_tps == 2.0
    clock.now = 103.5
    assert meter.snapshot().decode_tps == 0.0


def test_prefill_and_cache_come_from_the_workers_counters(meter: TrafficMeter, clock: Clock) -> None:
    meter.on_worker(worker(WorkerStats(prompt_tokens=100, kv_used=50, kv_tokens=400, waiting=3)))
    meter.on_worker(worker(WorkerStats(prompt_tokens=160, kv_used=60, kv_tokens=400, waiting=1)))
    clock.now += 1
    traffic = meter.snapshot()
    assert traffic.prefill_tps == 160 and traffic.queue_history[-1] == 3
    assert (traffic.kv_used, traffic.kv_tokens) == (60, 400)
    meter.on_worker(worker(WorkerStats(prompt_tokens=5), pid=2))  # restarted: its counters began again
    clock.now += 1
    assert meter.snapshot().prefill_tps == 5
    meter.on_worker(worker(WorkerStats(), phase="stopped"))
    assert meter.snapshot().kv_tokens == 0


def test_the_stage_of_a_live_request_is_the_workers_word(meter: TrafficMeter) -> None:
    seen = meter.observe("r-1", "toy", "")
    seen.placed(7)
    live = RequestState(7, "prefill", "", "local", 900, 512, 0, 1.0)
    meter.on_worker(worker(WorkerStats(requests=(live,))))
    (row,) = meter.snapshot().requests
    assert (row.stage, row.prompt_tokens) == ("prefill", 900)


def test_old_values_leave_the_window(meter: TrafficMeter, clock: Clock) -> None:
    meter.observe("r-1", "toy", "").on_delta(Delta(tokens=(1,)))
    assert meter.snapshot().ttft.count == 1
    clock.now += 301
    assert meter.snapshot().ttft.count == 0 and meter.snapshot().ttft.p50 is None


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), min_size=1, max_size=600))
def test_quantiles_are_exact(entries: list[tuple[float, int]]) -> None:
    window = Window(300)
    for place, (value, weight) in enumerate(entries):
        window.add(place * 0.001, value, weight)
    plain = sorted(value for value, weight in entries for _ in range(weight))
    count, quantiles = window.quantiles(1.0, (0.5, 0.95, 0.99))
    assert count == len(plain)
    assert quantiles == [plain[math.ceil(share * len(plain)) - 1] for share in (0.5, 0.95, 0.99)]


def test_the_window_keeps_the_newest_when_it_is_full() -> None:
    window = Window(1e9)
    for number in range(WINDOW_MAX + 1000):
        window.add(number, float(number))
    count, (low, high) = window.quantiles(WINDOW_MAX, (0.0, 1.0))
    assert (count, low, high) == (WINDOW_MAX, 1000.0, WINDOW_MAX + 999.0)


def test_a_level_stays_until_it_changes() -> None:
    seconds = Seconds(5, 10.0)
    seconds.level(10.5, 2)
    seconds.level(13.2, 0)
    assert seconds.values(14.0) == (2, 2, 2, 2)
    assert seconds.values(1e9) == (0, 0, 0, 0, 0)  # a suspended machine costs no memory
