"""The scheduler against a simulated engine: nothing lost, nothing starved, memory never exceeded."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.errors import BusyError
from lathe.engine.scheduler.sequence import Plan
from support.simulated_engine import SimulatedEngine


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "prefix": st.integers(0, 60),
            "own": st.integers(1, 80),
            "family": st.integers(0, 2),
            "answer": st.integers(0, 40),
            "realm": st.sampled_from("ab"),
            "lane": st.sampled_from([None, None, "lora"]),
            "priority": st.integers(-2, 2),
            "at": st.integers(0, 30),
            "all_outputs": st.booleans(),
            "cancel_at": st.none() | st.integers(0, 60),
            "deadline": st.none() | st.floats(0.001, 2.0),
        }
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(1, 5), st.integers(8, 48), st.integers(190, 400), st.integers(0, 7), st.booleans())
def test_everything_ends_and_every_wanted_row_comes_once(
    requests: list[dict[str, Any]], slots: int, batch: int, capacity: int, aborts: int, share: bool
) -> None:
    engine = SimulatedEngine(
        slots=slots, batch_tokens=batch, capacity=capacity, sequences=slots + 3, max_outputs=slots + 2, share=share
    )
    sequences = {}
    wanted = {}
    for step in range(5000):
        for number, request in enumerate(requests):
            if request["at"] == step:
                tokens = numbers(request["family"] * 1000, request["prefix"]) + numbers(number * 7919, request["own"])
                realm = (request["realm"], request["lane"])
                start = 0 if request["all_outputs"] else len(tokens) - 1
                deadline = None if request["deadline"] is None else engine.now + request["deadline"]
                sequences[number] = engine.add(
                    number, tokens, request["answer"], realm=realm, lane=request["lane"], outputs_from=start,
                    priority=request["priority"], deadline=deadline, principal=request["realm"],
                )  # fmt: skip
                wanted[number] = range(start, len(tokens) + request["answer"] - (1 if request["answer"] else 0))
            if request["cancel_at"] == step and number in sequences:
                engine.cancel(sequences[number])
        if step > 60 and engine.scheduler.idle:
            break
        if not engine.scheduler.idle:
            plan = engine.step(abort=bool(aborts) and step % 11 == aborts)
            assert plan.chunks or plan.expired
    assert engine.scheduler.idle
    engine.cache.apply(engine.ledger.effects)
    for number, request in enumerate(requests):
        assert number in engine.gone
        if number in engine.finished:
            assert engine.outputs[number] == list(wanted[number])
        elif request["cancel_at"] is None:
            assert number in engine.expired
    assert engine.ledger.used == len(engine.cache.cells) == engine.ledger.cached


def test_decoding_sequences_come_first_and_all_of_them() -> None:
    engine = SimulatedEngine(slots=4, batch_tokens=32)
    for request in range(3):
        engine.add(request, numbers(request * 100, 5), 20)
    engine.step()
    engine.add(3, numbers(900, 100), 5)
    for _ in range(5):
        plan = engine.step()
        assert plan.streams == 3
        assert [chunk.count for chunk in plan.chunks[:3]] == [1, 1, 1]


def test_a_shared_prefix_is_computed_once_even_by_requests_that_come_together() -> None:
    engine = SimulatedEngine(slots=8, batch_tokens=64, capacity=4000, sequences=32)
    prefix = numbers(0, 1000)
    for request in range(8):
        engine.add(request, prefix + numbers(5000 + request * 50, 30), 4)
    engine.run()
    assert sorted(engine.computed.values())[:7] == [30 + 3] * 7
    assert max(engine.computed.values()) == 1030 + 3


def test_followers_go_on_where_a_cancelled_leader_stopped() -> None:
    engine = SimulatedEngine(slots=3, batch_tokens=64, capacity=4000)
    prefix = numbers(0, 1000)
    leader = engine.add(0, [*prefix, 1], 4)
    engine.add(1, [*prefix, 2], 4)
    engine.add(2, [*prefix, 3], 4)
    for _ in range(5):
        engine.step()
    engine.cancel(leader)
    engine.run()
    assert sorted(engine.finished) == [1, 2]
    assert engine.computed[0] == 5 * 64
    assert engine.computed[1] + engine.computed[2] == (1001 - 5 * 64) + 1 + 3 + 3


def test_requests_of_different_realms_do_not_wait_for_each_other() -> None:
    engine = SimulatedEngine(slots=2, batch_tokens=64, capacity=4000)
    engine.add(0, numbers(0, 500), 2, realm="alice", principal="alice")
    engine.add(1, numbers(0, 500), 2, realm="bob", principal="bob")
    engine.run()
    assert engine.computed == {0: 501, 1: 501}


def test_choices_of_one_request_share_its_prompt() -> None:
    engine = SimulatedEngine(slots=4, batch_tokens=128, capacity=4000)
    for choice in range(4):
        engine.add(choice, numbers(0, 100), 3, realm=("once", 17))
    engine.run()
    assert sorted(engine.computed.values()) == [1 + 2, 1 + 2, 1 + 2, 100 + 2]


def test_preemption_frees_cells_and_the_victim_still_gets_every_token() -> None:
    engine = SimulatedEngine(slots=4, capacity=200, batch_tokens=64)
    for request in range(4):
        engine.add(request, numbers(request * 100, 30), 100)
    engine.run()
    assert engine.scheduler.preemptions > 0
    assert sorted(engine.finished) == [0, 1, 2, 3]
    assert engine.finished[0] == 0, "the first is never preempted"
    assert all(engine.outputs[request] == numbers(29, 100) for request in range(4))


def test_a_long_answer_alone_may_fill_the_whole_cache() -> None:
    engine = SimulatedEngine(slots=4, capacity=200, batch_tokens=64)
    engine.add(0, numbers(0, 100), 100)
    engine.run()
    assert engine.finished == [0]


def test_what_waits_makes_room_for_speed_only_when_others_compute() -> None:
    engine = SimulatedEngine(slots=2, batch_tokens=64, capacity=4000, idle_tokens=50)
    turn = tuple(numbers(0, 300))
    engine.add(0, list(turn), 4)
    engine.run()
    assert engine.ledger.cached == 303  # alone: the next turn finds it
    engine.add(1, [*turn, 1], 4)
    engine.step()
    assert engine.ledger.used >= 300
    assert engine.computed[1] == 1
    engine.run()
    engine.add(2, numbers(5000, 20), 4)
    engine.step()
    assert engine.ledger.used > 300, "the first token is not kept waiting for it"
    engine.step()
    assert engine.ledger.used <= 50 + 20 + 1
    engine.run()


def test_the_queue_is_bounded() -> None:
    engine = SimulatedEngine(max_waiting=3)
    for request in range(3):
        engine.add(request, [1], 1)
    with pytest.raises(BusyError):
        engine.add(3, [1], 1)


def test_cancel_during_prefill_takes_effect_in_the_next_plan() -> None:
    engine = SimulatedEngine(batch_tokens=16)
    long = engine.add(0, numbers(0, 300), 5)
    engine.step()
    engine.cancel(long)
    assert engine.scheduler.idle
    assert engine.ledger.cached == 16  # what was computed stays for others


def test_an_aborted_batch_is_planned_again() -> None:
    engine = SimulatedEngine()
    engine.add(0, numbers(0, 20), 3)
    first = engine.step(abort=True)
    second = engine.step()
    assert [(chunk.start, chunk.count) for chunk in first.chunks] == [
        (chunk.start, chunk.count) for chunk in second.chunks
    ]
    engine.run()
    assert engine.finished == [0]


# -- fairness ---------------------------------------------------------------------------------------------------------
def test_a_busy_principal_does_not_push_out_a_quiet_one() -> None:
    engine = SimulatedEngine(slots=1)
    for request in range(20):
        engine.add(request, numbers(request * 100, 10), 10, principal="greedy", realm="greedy")
    engine.step()
    engine.add(100, numbers(9000, 10), 10, principal="quiet", realm="quiet")
    engine.run()
    assert engine.finished.index(100) == 1


def test_absence_earns_no_credit() -> None:
    engine = SimulatedEngine(slots=1)
    for request in range(10):
        engine.add(request, numbers(request * 100, 10), 10, principal="a", realm="a")
    for _ in range(40):
        engine.step()
    for request in range(100, 110):
        engine.add(request, numbers(request * 100, 10), 10, principal="b", realm="b")
    engine.run()
    order = ["b" if request >= 100 else "a" for request in engine.finished]
    tail = order[order.index("b") :]
    assert tail[:10].count("b") <= 6, "the newcomer takes turns instead of catching up"


def test_priority_goes_first_and_waiting_raises_it() -> None:
    engine = SimulatedEngine(slots=1, cost=lambda plan: 1.0)
    engine.add(0, [1, 2], 2)
    engine.step()
    engine.add(1, [3, 4], 2, priority=0)
    for request in range(2, 80):
        engine.add(request, [5, request], 2, priority=1)
        engine.step()
        engine.step()
    assert engine.finished[1] == 2
    assert 10 < engine.finished.index(1) < 40, "newcomers of higher priority overtook it only for a while"


# -- pacing -----------------------------------------------------------------------------------------------------------
def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def gaps(times: list[float], start: float, end: float) -> list[float]:
    return [late - early for early, late in itertools.pairwise(times) if start <= early and late <= end]


def memory_bound(plan: Plan) -> float:
    """A processor that is short of bandwidth: rows are almost free until arithmetic takes over."""
    return max(0.010 + 0.0001 * plan.rows, 0.0009 * plan.rows)


def gpu(plan: Plan) -> float:
    return 0.008 + 0.00005 * plan.rows


def compute_bound(plan: Plan) -> float:
    return 0.002 + 0.0015 * plan.rows


@pytest.mark.parametrize("cost", [memory_bound, gpu, compute_bound])
@pytest.mark.parametrize("streams", [1, 4, 7])
def test_a_long_prompt_does_not_double_the_inter_token_time(cost: Any, streams: int) -> None:
    engine = SimulatedEngine(
        slots=8, batch_tokens=512, capacity=40_000, sequences=64, max_outputs=64, cost=cost, check_cells=False
    )
    for request in range(streams):
        engine.add(request, numbers(request * 1000, 20), 3000)
    while engine.now < 40 * cost(Plan([], [], [], streams)):
        engine.step()
    start = engine.now
    long = engine.add(100, numbers(50_000, 4000), 2)
    while not engine.token_times[100] and long.generated == 0:
        engine.step()
    during = [gap for request in range(streams) for gap in gaps(engine.token_times[request], start, engine.now)]
    before = [gap for request in range(streams) for gap in gaps(engine.token_times[request], 0, start)]
    assert len(during) > 20
    assert percentile(during, 0.95) <= 2.0 * percentile(before, 0.95)
    assert engine.now - start < 4 * cost(Plan([], [], [], 0, 4000)) + 2.0, "nor does the prompt take for ever"


def test_short_prompts_are_taken_whole() -> None:
    engine = SimulatedEngine(
        slots=8, batch_tokens=512, capacity=40_000, sequences=64, max_outputs=64, check_cells=False
    )
    for request in range(4):
        engine.add(request, numbers(request * 1000, 20), 500)
    for _ in range(20):
        engine.step()
    engine.add(100, numbers(50_000, 300), 2)
    assert engine.step().short == 300


def test_without_streams_a_long_prompt_has_the_whole_batch() -> None:
    engine = SimulatedEngine(slots=8, batch_tokens=512, capacity=40_000, check_cells=False)
    engine.add(100, numbers(50_000, 4000), 2)
    assert [engine.step().long for _ in range(3)] == [512, 512, 512]


def test_short_prompts_do_not_stop_a_long_one() -> None:
    engine = SimulatedEngine(slots=8, batch_tokens=64, capacity=40_000, check_cells=False)
    engine.add(0, numbers(50_000, 500), 2)
    for request in range(1, 60):
        engine.add(request, numbers(request * 100, 64), 1)
        engine.step()
    assert engine.computed[0] >= 59 * 4
