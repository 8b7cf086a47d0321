"""A slow reader: deltas are joined, memory is bounded, and nothing is lost, reordered or invented."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.errors import BusyError, CrashedError
from lathe.engine.generation import Delta, TokenLogprob, Usage
from lathe.engine.worker.exchange import MAX_BYTES, Exchange, join
from lathe.engine.worker.messages import Done, Piece

plain = st.builds(
    lambda index, text, token: Delta(
        index=index, text=text, tokens=(token,), logprobs=(TokenLogprob(token, text, -1),)
    ),
    st.integers(0, 2),
    st.text(max_size=3),
    st.integers(0, 9),
)


def choice(deltas: list[Delta], index: int) -> tuple:
    mine = [delta for delta in deltas if delta.index == index]
    return (
        "".join(delta.text for delta in mine),
        [token for delta in mine for token in delta.tokens],
        [entry for delta in mine for entry in delta.logprobs],
        [delta.finish for delta in mine if delta.finish],
    )


@given(st.lists(plain, max_size=40), st.permutations(range(3)))
def test_joining_keeps_every_choice_as_it_was(body: list[Delta], order: list[int]) -> None:
    ends = [Delta(index=index, text="!", finish="stop") for index in order]
    ends[-1] = Delta(index=order[-1], text="!", finish="stop", usage=Usage(1, len(body)))
    deltas = body + ends
    joined = join(deltas)
    assert len(joined) <= 6
    for index in range(3):
        assert choice(joined, index) == choice(deltas, index)
    assert joined[-1].usage == Usage(1, len(body))


async def test_who_falls_behind_gets_fewer_deltas_and_an_echoed_prompt_stays_apart() -> None:
    exchange = Exchange(1)
    exchange.put(Piece(1, (Delta(text="prompt"),)))
    for number in range(5):
        exchange.put(Piece(1, (Delta(text=str(number), tokens=(number,)),)))
    assert await exchange.deltas() == [Delta(text="prompt"), Delta(text="01234", tokens=(0, 1, 2, 3, 4))]


async def test_a_reader_that_never_comes_costs_bounded_memory_and_then_an_error() -> None:
    exchange = Exchange(1)
    tracemalloc.start()
    accepted = 0
    while exchange.put(Piece(1, (Delta(text="x" * 100, tokens=(accepted,)),))):
        accepted += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert accepted * 100 > MAX_BYTES / 4  # patient
    assert peak < 3 * MAX_BYTES  # but bounded
    with pytest.raises(BusyError, match="not read fast enough"):
        await exchange.deltas()
    assert exchange.put(Piece(1, (Delta(text="late"),)))  # what is still on the way is dropped in silence


async def test_what_arrived_before_a_crash_is_delivered_first() -> None:
    exchange = Exchange(1)
    exchange.put(Piece(1, (Delta(text="a"), Delta(text="b"))))
    exchange.end(CrashedError("gone"))
    assert [delta.text for delta in await exchange.deltas()] == ["a", "b"]
    with pytest.raises(CrashedError):
        await exchange.deltas()


async def test_the_end_wakes_a_waiting_reader() -> None:
    exchange = Exchange(1)
    reading = asyncio.create_task(exchange.deltas())
    await asyncio.sleep(0)
    exchange.put(Done(1))
    exchange.end()
    assert await reading == []
