"""Quotas per key and the cap on what is under way, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.generation import GenerationRequest, Message
from lathe.engine.http.access import Principal
from lathe.engine.http.problems import Problem
from lathe.engine.http.quota import Admission, Quotas, estimated_prompt


def test_requests_per_minute_refill_evenly() -> None:
    quotas, key = Quotas(), Principal("a", requests_per_minute=60)
    for _ in range(60):
        quotas.admit(key, 0)
    with pytest.raises(Problem) as caught:
        quotas.admit(key, 0.5)
    assert (caught.value.status, caught.value.retry_after_s) == (429, pytest.approx(0.5))
    quotas.admit(key, 1.0)
    with pytest.raises(Problem):
        quotas.admit(key, 1.0)


def test_tokens_are_charged_after_the_work_and_delay_what_follows() -> None:
    quotas, key = Quotas(), Principal("a", tokens_per_minute=600)
    quotas.admit(key, 0)
    quotas.charge(key, 1200, 0)
    with pytest.raises(Problem) as caught:
        quotas.admit(key, 0)
    assert caught.value.retry_after_s == pytest.approx(60.1)
    quotas.admit(key, 60.2)


def test_headers_tell_what_is_left() -> None:
    quotas, key = Quotas(), Principal("a", requests_per_minute=2, tokens_per_minute=100)
    headers = dict(quotas.admit(key, 0))
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"] == "30.000s"
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    assert quotas.admit(Principal("free"), 0) == []


def test_keys_do_not_share_quotas_and_a_changed_quota_counts_at_once() -> None:
    quotas = Quotas()
    quotas.admit(Principal("a", requests_per_minute=1), 0)
    quotas.admit(Principal("b", requests_per_minute=1), 0)
    quotas.admit(Principal("a", requests_per_minute=5), 0)


def test_a_clock_that_steps_back_takes_nothing_away() -> None:
    quotas, key = Quotas(), Principal("a", requests_per_minute=2)
    quotas.admit(key, 100)
    quotas.admit(key, 50)


def test_one_key_leaves_room_for_the_others() -> None:
    admission = Admission(8, 0.75)
    for _ in range(6):
        admission.enter("greedy")
    with pytest.raises(Problem) as caught:
        admission.enter("greedy")
    assert caught.value.status == 429
    admission.enter("b")
    admission.enter("c")
    with pytest.raises(Problem) as caught:
        admission.enter("d")
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert caught.value.retry_after_s is not None
    admission.leave("greedy", 0.1)
    admission.enter("d")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=200))
def test_what_enters_and_leaves_is_counted(moves: list[tuple[bool, str]]) -> None:
    admission, held = Admission(10, 0.5), {"a": 0, "b": 0, "c": 0}
    for enters, key in moves:
        if enters:
            try:
                admission.enter(key)
            except Problem:
                assert sum(held.values()) == 10 or held[key] == 5
            else:
                held[key] += 1
        elif held[key]:
            admission.leave(key, 1.0)
            held[key] -= 1
        assert admission.active == sum(held.values()) <= 10
        assert max(held.values()) <= 5


def test_an_uncounted_prompt_is_estimated_by_its_bytes_and_token_ids_are_counted() -> None:
    assert estimated_prompt(GenerationRequest(model="m", tokens=(1, 2, 3))) == 3
    assert estimated_prompt(GenerationRequest(model="m", prompt="12345")) == 2
    turns = (Message("system", "äöüß"), Message("user", "1234"))
    assert estimated_prompt(GenerationRequest(model="m", messages=turns, tools="[{}]")) == 2 + 1 + 1
