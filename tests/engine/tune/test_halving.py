"""Ways to run a file: the search by halves, its answers to failures, and one real trial in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.errors import CrashedError, LatheError
from lathe.engine.tune.halving import halve, ways
from lathe.engine.tune.trial import Timing, Trial, Way, run


def speeds(way: Way) -> float:
    """A machine that likes threads, and batches a little."""
    return 10.0 * way.threads + way.batch / 1000 - (5 if way.kv_type == "q8_0" else 0)


def timing(speed: float) -> Timing:
    return Timing(prompt_tokens_per_s=10 * speed, tokens_per_s=speed, load_s=0.1, peak_bytes=1)


def test_the_better_half_gets_longer_trials() -> None:
    tried: list[tuple[Way, int, int]] = []

    def attempt(way: Way, prompt: int, generate: int) -> Timing:
        tried.append((way, prompt, generate))
        return timing(speeds(way))

    candidates = ways(("f16", "q8_0"), (1, 2, 3, 4), (512,), (0,))
    found = halve("file", candidates, attempt, in_time=lambda trials: True)
    assert len(found) == 8
    assert (found[0].threads, found[0].kv_type) == (4, "f16")
    assert [one.rounds for one in found] == [4, 4, 2, 2, 1, 1, 1, 1]
    assert [sum(1 for _, prompt, _ in tried if prompt == size) for size in (64, 128, 256, 512)] == [8, 4, 2, 2]


def test_a_way_that_crashes_is_last_and_says_why() -> None:
    def attempt(way: Way, prompt: int, generate: int) -> Timing:
        if way.gpu_layers:
            raise CrashedError("no such device")
        return timing(1.0)

    found = halve("file", ways(("f16",), (1,), (128,), (-1, 0)), attempt, in_time=lambda trials: True)
    assert [(one.gpu_layers, one.problem) for one in found] == [(0, ""), (-1, "no such device")]
    assert found[0].rounds == 1, "a way without rivals needs no second trial"


def test_without_time_one_way_is_tried() -> None:
    found = halve("file", ways(("f16",), (1, 2, 4), (128,), (0,)), lambda way, *_: timing(speeds(way)),
                  in_time=lambda trials: False)  # fmt: skip
    assert [(one.threads, one.rounds) for one in found] == [(1, 1)], "one way is always tried"


def test_what_generates_nothing_is_judged_by_its_reading() -> None:
    tried: list[tuple[int, int]] = []

    def attempt(way: Way, prompt: int, generate: int) -> Timing:
        tried.append((prompt, generate))
        return Timing(prompt_tokens_per_s=speeds(way), tokens_per_s=None, load_s=0.1, peak_bytes=1)

    found = halve("file", ways(("",), (1, 2, 3), (512,), (0,)), attempt, shortest=(2048, 0))
    assert [one.threads for one in found] == [3, 2, 1]
    assert tried[:4] == [(2048, 0)] * 3 + [(4096, 0)]


def test_ways_that_there_is_no_time_for_are_not_listed() -> None:
    allowed = iter([True, False, False, False])
    found = halve("file", ways(("f16",), (1, 2, 3, 4), (128,), (0,)), lambda way, *_: timing(speeds(way)),
                  in_time=lambda trials: next(allowed))  # fmt: skip
    assert [one.threads for one in found] == [2, 1]


@pytest.mark.native
def test_a_trial_measures_in_its_own_process(embedded_gguf: Path, tmp_path: Path) -> None:
    trial = Trial(files=(str(embedded_gguf),), way=Way(threads=1), prompt_tokens=8, generate_tokens=2, repetitions=1)
    measured = run(trial)
    assert measured.tokens_per_s > 0
    assert measured.prompt_tokens_per_s > 0
    assert measured.peak_bytes > 8 << 20
    texts = Trial(files=(str(embedded_gguf),), way=Way(kv_type="", threads=1, batch=16), prompt_tokens=32,
                  generate_tokens=0, text_tokens=16, repetitions=1)  # fmt: skip
    assert run(texts).tokens_per_s is None
    broken = Trial(files=(str(tmp_path / "none"),), way=Way(threads=1), prompt_tokens=8, generate_tokens=2)
    with pytest.raises(LatheError, match="none"):
        run(broken)
