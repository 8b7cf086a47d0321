"""How many threads compute: a machine is played, and the number must settle where it is fastest."""

from __future__ import annotations

import pytest
from lathe.engine.worker.backends.llama.threads import SAMPLES, Threads, waited_s


class Machine:
    """Some processors of which others take a part; a batch waits for the slowest of its threads."""

    def __init__(self, processors: int, others: int = 0) -> None:
        self.processors = processors
        self.others = others
        self.now = 0.0
        self.waited = 0.0
        self.batches: list[int] = []

    def compute(self, threads: int, tokens: int) -> float:
        crowd = threads + self.others
        crowded = crowd > self.processors
        # Threads that share a processor are waited for at every meeting, which costs more than it shares out.
        slower = crowd / self.processors * (2 if threads > 1 else 1) if crowded else 1
        seconds = 0.02 * tokens * slower / threads
        self.now += seconds
        self.waited += seconds * max(0, crowd - self.processors) / crowd * threads
        self.batches.append(threads)
        return seconds

    def run(self, threads: Threads, batches: int, *, streams: int = 1, prompt: int = 0) -> None:
        for _ in range(batches):
            threads.note(streams, prompt, streams, self.compute(threads.count, streams + prompt))


def governed(machine: Machine, most: int) -> Threads:
    return Threads(most, waited=lambda: machine.waited, clock=lambda: machine.now)


def test_a_machine_of_ones_own_keeps_all_threads() -> None:
    machine = Machine(4)
    threads = governed(machine, 4)
    machine.run(threads, 500)
    assert set(machine.batches) == {4}


@pytest.mark.parametrize("others", [1, 2])
def test_threads_without_a_processor_are_taken_away_and_come_back(others: int) -> None:
    machine = Machine(2, others)
    threads = governed(machine, 2)
    machine.run(threads, 100)
    assert threads.count == 1
    machine.others = 0
    machine.run(threads, 3000)
    assert threads.count == 2
    machine.batches.clear()
    machine.run(threads, 200)
    assert set(machine.batches) == {2}


def test_trials_that_fail_become_rare() -> None:
    machine = Machine(2, 1)
    threads = governed(machine, 2)
    machine.run(threads, 4000)
    tail = machine.batches[-2000:]
    assert tail.count(2) < 0.1 * len(tail)
    assert tail.count(1) > 0


def test_batches_of_other_shapes_end_a_trial_and_are_not_compared() -> None:
    machine = Machine(2, 1)
    threads = governed(machine, 2)
    machine.run(threads, SAMPLES)
    assert threads.count == 1, "a trial is under way"
    machine.run(threads, 1, streams=3)
    assert threads.count == 2, "its batches cannot be compared"


def test_prompts_count_by_their_size() -> None:
    machine = Machine(2, 1)
    threads = governed(machine, 2)
    machine.run(threads, 200, streams=0, prompt=512)
    assert machine.batches[-150:].count(1) > 100


@pytest.mark.parametrize("most", [1, 3])
def test_nothing_is_decided_where_nothing_is_known(most: int) -> None:
    machine = Machine(1, 3)
    threads = Threads(most, waited=lambda: None, clock=lambda: machine.now)
    machine.run(threads, 200)
    assert threads.count == most


def test_the_kernel_tells_how_long_threads_waited() -> None:
    first = waited_s()
    if first is None:
        pytest.skip("this kernel keeps no schedstat")
    second = waited_s()
    assert second is not None
    assert 0 <= first <= second + 1e-9
