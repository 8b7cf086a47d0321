"""Parameter extremes (S05, F42): each is refused with its name or served; the worker lives through all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.engine.generation import GenerationRequest, Message, Sampling
from lathe.engine.wire import frame
from lathe.engine.worker.messages import Generate
from support.worker_child import Exchange, WorkerChild, worker_child

pytestmark = pytest.mark.native

NUMBERS = (math.nan, math.inf, -math.inf, -1, -0.5, 0, 1e-45, 0.5, 1, 2, 2**31 - 1, 2**31, 2**62, 1e30, 1e308)
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "dry_multiplier",
    "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat_tau", "mirostat_eta", "repeat_penalty",
    "repeat_last_n", "frequency_penalty", "presence_penalty",
)  # fmt: skip
WHOLE = {"top_k", "dry_allowed_length", "dry_penalty_last_n", "repeat_last_n"}


@pytest.fixture(scope="module")
def worker(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    log = tmp_path_factory.mktemp("worker") / "log"
    with worker_child(embedded_gguf, log, slots=4, context=256, threads=1) as child:
        child.ready()
        yield child
        assert child.process.poll() is None, "the worker died"


def served_or_refused(answer: Exchange, name: str = "") -> bool:
    """Whether it was served; a refusal must be the caller's fault and say so."""
    if answer.failed is None:
        assert answer.finish() in ("length", "stop")
        return True
    failure = answer.failed.failure
    assert failure.exit == 2, failure
    assert name in failure.message
    return False


@pytest.mark.parametrize("name", SAMPLING)
def test_every_sampling_number_at_its_extremes(worker: WorkerChild, name: str) -> None:
    served = 0
    for value in NUMBERS:
        if name in WHOLE:
            if not math.isfinite(value) or value != int(value) or value > 2**63:
                continue
            value = int(value)
        # What a parameter acts on must be on, or nothing is tried.
        active: dict[str, Any] = {"dry_multiplier": 0.8, "xtc_probability": 0.5, "repeat_penalty": 1.1, "seed": 1}
        if name.startswith("mirostat"):
            active["mirostat"] = 2
        sampling = Sampling(**{**active, name: value})
        served += served_or_refused(
            worker.answer(worker.generate(prompt="a b a b", max_tokens=6, sampling=sampling)), name
        )
    assert served >= 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional={
    "temperature": st.sampled_from([0.0, 1e-45, 0.1, 1.0, 100.0]), "top_k": st.sampled_from([0, 1, 40, 1_000_000]),
    "top_p": st.sampled_from([0.0, 1e-9, 0.9, 1.0]), "min_p": st.sampled_from([0.0, 0.5, 1.0]),
    "typical_p": st.sampled_from([0.0, 0.5, 1.0]), "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.sampled_from([0.0, 0.1, 1.0]), "dry_multiplier": st.sampled_from([0.0, 0.8, 100.0]),
    "dry_base": st.sampled_from([1.0, 1.75, 100.0]), "dry_allowed_length": st.sampled_from([0, 2, 10_000]),
    "dry_penalty_last_n": st.sampled_from([-1, 0, 1, 1_000_000]), "mirostat": st.sampled_from([0, 1, 2]),
    "repeat_penalty": st.sampled_from([0.01, 1.0, 1.1, 100.0]), "repeat_last_n": st.sampled_from([-1, 0, 64, 10**6]),
    "frequency_penalty": st.sampled_from([-100.0, 0.0, 100.0]), "presence_penalty": st.sampled_from([-100.0, 2.0]),
    "logit_bias": st.dictionaries(st.integers(0, 4095), st.sampled_from([-1e9, -100.0, 5.0, 1e9]), max_size=5),
    "ignore_eos": st.booleans(), "seed": st.sampled_from([0, 1, 2**32 - 1]),
    "grammar": st.sampled_from([None, "root ::= [a-z ]*", 'root ::= "yes" | "no"']),
}))  # fmt: skip
def test_every_legal_combination_is_served(worker: WorkerChild, fields: dict[str, Any]) -> None:
    answer = worker.answer(worker.generate(prompt="a b a b", max_tokens=6, sampling=Sampling(**fields)))
    assert served_or_refused(answer)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"n": 0}, "n:"),
        ({"n": 1_000_000}, "n:"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 1_000_000}, "logprobs"),
        ({"priority": 101}, "priority"),
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x" * 257,)}, "stop"),
        ({"stop": tuple(str(number) for number in range(10_000))}, "stop"),
        ({"stop": ("x" * 1_000_000,)}, "stop"),
        ({"prompt": ""}, ""),
        ({"prompt": None}, "exactly one"),
        ({"messages": (Message("user", "x"),)}, "exactly one"),
        ({"sampling": Sampling(logit_bias={4096: 1.0})}, "4096"),
        ({"sampling": Sampling(logit_bias=dict.fromkeys(range(2000), 1.0))}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={1: math.nan})}, "logit_bias"),
        ({"sampling": Sampling(seed=-1)}, "seed"),
        ({"sampling": Sampling(seed=2**32)}, "seed"),
        ({"sampling": Sampling(grammar="root ::= ")}, ""),
        ({"sampling": Sampling(grammar="root ::= root", json_schema="{}")}, "not both"),
        ({"adapters": {"x": math.nan}}, "x"),
    ],
)
def test_out_of_range_is_refused_by_name(worker: WorkerChild, fields: dict[str, Any], name: str) -> None:
    answer = worker.answer(worker.generate(**{"prompt": "a", "max_tokens": 2, **fields}))
    assert not served_or_refused(answer, name) or fields["sampling"].grammar == "root ::= "


@pytest.mark.parametrize(
    "prompt",
    ["\0", "a\0b", "<|im_end|>", "\U0010ffff", "é" * 100, " " * 200, "\n\r\t", "\u202eabc", "a" + "\u0301" * 100],
)
def test_strange_prompts_are_served(worker: WorkerChild, prompt: str) -> None:
    assert served_or_refused(worker.answer(worker.generate(prompt=prompt, max_tokens=3)))


def test_wrong_types_break_the_channel_and_nothing_else(embedded_gguf: Path, tmp_path: Path) -> None:
    with worker_child(embedded_gguf, tmp_path / "log", slots=1, context=256, threads=1) as child:
        child.ready()
        good = frame(Generate(1, GenerationRequest(model="m", prompt="a", max_tokens=77)))
        child.channel.sendall(good.replace(b"\xaamax_tokens\x4d", b"\xaamax_tokens\xc3"))
        assert child.wait() == 70
