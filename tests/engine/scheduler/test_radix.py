"""The radix tree and the ledger against a cache that is just a table of cells."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lathe.engine.scheduler.ledger import Hold, Ledger, Share
from lathe.engine.scheduler.radix import common_prefix
from support.naive_cache import NaiveCache

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=90)


@given(TEXTS, TEXTS, st.integers(0, 5), st.integers(0, 5))
def test_common_prefix_agrees_with_a_loop(left: list[int], right: list[int], left_from: int, right_from: int) -> None:
    expected = 0
    for one, other in zip(left[left_from:], right[right_from:], strict=False):
        if one != other:
            break
        expected += 1
    assert common_prefix(left, right, left_from, right_from) == expected


@given(st.integers(0, 3000), st.integers(1, 500))
def test_common_prefix_of_long_texts(same: int, more: int) -> None:
    left, right = list(range(same)) + [-1] * more, list(range(same)) + [-2] * more
    assert common_prefix(left, right) == same


class LedgerMachine(RuleBasedStateMachine):
    """Requests come, compute, publish, rewind and go; the naive cache must agree at every step."""

    CAPACITY, SEQUENCES = 60, 6

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.make()
        self.cache = NaiveCache(self.CAPACITY)
        self.holds: list[tuple[Hold, list[int]]] = []

    def make(self) -> Ledger:
        return Ledger(self.CAPACITY, self.SEQUENCES, evict_at_least=3)

    def carry_out(self) -> None:
        effects, self.ledger.effects = self.ledger.effects, []
        self.cache.apply(effects)

    @precondition(lambda self: len(self.holds) < self.SEQUENCES)
    @rule(realm=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 2), min_size=1, max_size=20))
    def open(self, realm: str, tokens: list[int]) -> None:
        known = self.ledger.known(realm, tokens, len(tokens) - 1)
        hold = self.ledger.open(realm, tokens, len(tokens) - 1)
        self.carry_out()
        assert hold.computed == known or self.ledger._spill.takes(2)
        self.holds.append((hold, tokens))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), count=st.integers(1, 12), more=st.lists(st.integers(0, 2), max_size=4))
    def compute(self, data: st.DataObject, count: int, more: list[int]) -> None:
        hold, tokens = data.draw(st.sampled_from(self.holds))
        tokens += more
        count = min(count, len(tokens) - hold.computed)
        if count and self.ledger.reserve(count):
            self.carry_out()
            self.cache.compute(hold.sequence, tokens, hold.computed, count)
            self.ledger.compute(hold, count)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        hold, tokens = data.draw(st.sampled_from(self.holds))
        self.ledger.publish(hold, tokens)
        self.carry_out()

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        hold, tokens = data.draw(st.sampled_from(self.holds))
        computed = data.draw(st.integers(hold.published, hold.computed))
        self.ledger.rewind(hold, computed)
        del tokens[max(computed, 1) :]
        self.carry_out()

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holds) - 1))
        hold, tokens = self.holds.pop(index)
        self.ledger.close(hold, tokens)
        self.carry_out()

    @rule(cells=st.integers(1, CAPACITY))
    def evict(self, cells: int) -> None:
        fits = self.ledger.reserve(cells)
        self.carry_out()
        assert not fits or self.CAPACITY - len(self.cache.cells) >= cells

    @rule(realm=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 2), min_size=1, max_size=20))
    def promise(self, realm: str, tokens: list[int]) -> None:
        """What admission is told can really be had."""
        if len(self.holds) == self.SEQUENCES:
            return
        known, available = self.ledger.room_for(realm, tokens, len(tokens) - 1)
        free_sequences = len(self.ledger._free)
        hold = self.ledger.open(realm, tokens, len(tokens) - 1)
        recalled = hold.computed - known
        assert recalled == 0 or self.ledger._spill.takes(2)
        assert self.ledger.reserve(available - recalled)
        if free_sequences:
            assert not self.ledger.reserve(available - recalled + 1)
        self.ledger.close(hold, tokens)
        self.carry_out()

    @invariant()
    def books_agree(self) -> None:
        assert self.ledger.used == len(self.cache.cells)
        for tree in self.ledger._trees.values():
            tree.audit()
        for hold, tokens in self.holds:
            assert self.cache.sees(hold.sequence, tokens, hold.computed)


class SpillingMachine(LedgerMachine):
    """The same with a main memory for what is evicted, and few cells that may wait."""

    def make(self) -> Ledger:
        return Ledger(self.CAPACITY, self.SEQUENCES, evict_at_least=3, idle_tokens=25, spill_tokens=70)

    @rule()
    def cool(self) -> None:
        self.ledger.cool()
        assert self.ledger._idle() <= 25
        self.carry_out()


class WholeStateMachine(LedgerMachine):
    """A recurrent model: nothing is shared, whole states come back."""

    def make(self) -> Ledger:
        return Ledger(self.CAPACITY, self.SEQUENCES, share=False, spill_tokens=70)


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
SpillingMachine.TestCase.settings = WholeStateMachine.TestCase.settings = LedgerMachine.TestCase.settings
TestLedger, TestSpill = LedgerMachine.TestCase, SpillingMachine.TestCase
TestWholeStates = WholeStateMachine.TestCase


@pytest.fixture(autouse=True)
def small_prefixes_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let texts of a few tokens spill, so that small examples cover it."""
    monkeypatch.setattr("lathe.engine.scheduler.spill.WORTH", 2)
    monkeypatch.setattr("lathe.engine.scheduler.ledger.WORTH", 2)


def test_a_second_request_borrows_what_the_first_published_while_it_runs() -> None:
    ledger = Ledger(100, 4)
    prompt = list(range(50))
    first = ledger.open("me", prompt, 49)
    ledger.compute(first, 40)
    ledger.publish(first, prompt)
    second = ledger.open("me", [*range(45), 99], 45)
    assert second.computed == 40
    assert ledger.effects == [Share(first.sequence, second.sequence, 0, 40)]
    assert ledger.used == 40


def test_nothing_is_borrowed_across_realms() -> None:
    ledger = Ledger(100, 4)
    prompt = list(range(50))
    first = ledger.open("alice", prompt, 49)
    ledger.compute(first, 50)
    ledger.close(first, prompt)
    assert ledger.known("bob", prompt, 49) == 0
    assert ledger.open("bob", prompt, 49).computed == 0


def test_without_sharing_cells_are_free_at_once() -> None:
    ledger = Ledger(100, 4, share=False)
    prompt = list(range(50))
    hold = ledger.open("me", prompt, 49)
    ledger.compute(hold, 50)
    ledger.publish(hold, prompt)
    ledger.close(hold, prompt)
    assert ledger.used == 0
    assert ledger.open("me", prompt, 49).computed == 0


def test_the_least_recently_used_prefix_goes_first() -> None:
    ledger = Ledger(300, 8)
    for start in (0, 1000, 2000):
        prompt = list(range(start, start + 100))
        hold = ledger.open("me", prompt, 99)
        ledger.compute(hold, 100)
        ledger.close(hold, prompt)
    again = ledger.open("me", list(range(100)), 99)  # the first is used again
    ledger.close(again, list(range(100)))
    assert ledger.reserve(80)
    known = [ledger.known("me", list(range(start, start + 100)), 99) for start in (0, 1000, 2000)]
    assert known == [99, 20, 99]


def test_a_forgotten_realm_leaves_nothing() -> None:
    ledger = Ledger(100, 4)
    hold = ledger.open("once", list(range(20)), 19)
    ledger.compute(hold, 20)
    ledger.close(hold, list(range(20)))
    ledger.forget("once")
    assert (ledger.used, ledger.cached, ledger.nodes) == (0, 0, 0)
