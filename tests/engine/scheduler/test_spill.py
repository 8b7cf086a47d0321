"""Prefixes in main memory: what is found, what makes way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.scheduler.ledger import Discard, Ledger, Save
from lathe.engine.scheduler.spill import OWN, WORTH, Spill

PREFIX = list(range(800))


def test_an_ending_of_its_own_does_not_keep_a_prefix_twice() -> None:
    spill = Spill(10_000, whole=False)
    first, _ = spill.add("a", PREFIX + [1] * 60)
    second, gone = spill.add("a", PREFIX + [2] * 60)
    assert gone == [first]
    assert spill.find("a", PREFIX + [2] * 90, 2000)[1] == 860
    assert spill.find("a", PREFIX + [1] * 90, 2000)[1] == 800, "the ending alone is computed again"
    assert second is not None


def test_a_long_ending_of_its_own_keeps_its_entry() -> None:
    spill = Spill(10_000, whole=False)
    spill.add("a", PREFIX + [1] * 300)
    assert spill.add("a", PREFIX + [2] * 60)[1] == []
    assert spill.find("a", PREFIX + [1] * 300, 2000)[1] == 1100


@pytest.mark.parametrize("whole", [True, False])
def test_another_realm_and_recurrent_states_never_make_way_for_alike(whole: bool) -> None:
    spill = Spill(10_000, whole=whole)
    spill.add("a", [*PREFIX, 1])
    assert spill.add("b" if not whole else "a", [*PREFIX, 2])[1] == []


_RUNS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2 * WORTH)), min_size=1, max_size=4)
_TEXTS = _RUNS.map(lambda runs: [token for token, count in runs for _ in range(count)][: 4 * WORTH])


@given(st.lists(_TEXTS.filter(lambda tokens: len(tokens) >= WORTH), max_size=12))
def test_what_was_added_last_is_there_and_the_books_balance(texts: list[list[int]]) -> None:
    spill = Spill(6 * WORTH, whole=False)
    there: dict[int, list[int]] = {}
    for tokens in texts:
        number, gone = spill.add("a", tokens)
        for one in gone:
            del there[one]
        if number is not None:
            there[number] = tokens
        assert spill.find("a", tokens, len(tokens))[1] == len(tokens)
        assert sum(map(len, there.values())) <= 6 * WORTH
    kept = list(there.values())
    for number, older in enumerate(kept):
        for newer in kept[number + 1 :]:
            same = next((n for n, (a, b) in enumerate(zip(older, newer, strict=False)) if a != b), len(newer))
            assert len(older) - same > len(older) // OWN


@pytest.mark.parametrize(("own", "first"), [(300, 1100), (70, 800)])
def test_a_conversation_behind_a_shared_beginning_is_kept_where_enough_is_its_own(own: int, first: int) -> None:
    ledger = Ledger(8192, 8, idle_tokens=0, spill_tokens=8192)
    texts = [[*PREFIX, *range(start, start + own)] for start in (1000, 2000)]
    for text in texts:
        hold = ledger.open("a", text, len(text) - 1)
        ledger.compute(hold, len(text) - hold.computed)
        ledger.close(hold, text)
    other = list(range(5000, 5100))
    ledger.compute(ledger.open("b", other, 99), 100)
    ledger.cool()
    assert ledger.cached == 0, "all that waited left"
    assert [ledger.known("a", text, 2000) for text in texts] == [first, len(PREFIX) + own]


def test_idle_cells_wait_longer_while_a_first_token_is_due() -> None:
    ledger = Ledger(4096, 8, idle_tokens=100, spill_tokens=4096)
    for start in (0, 1000):
        text = list(range(start, start + 90))
        hold = ledger.open("a", text, 89)
        ledger.compute(hold, 90)
        ledger.close(hold, text)
    ledger.effects.clear()
    ledger.cool(hurry=True)
    assert not ledger.effects
    ledger.cool()
    assert [type(effect) for effect in ledger.effects if isinstance(effect, Save | Discard)] == [Save]
