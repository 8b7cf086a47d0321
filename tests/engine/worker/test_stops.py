"""Stop strings and UTF-8 against a reference that looks at every character and is obviously right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.worker.stops import StopMatcher, TextStream

TEXT = st.text(alphabet="ab<|>é🌍\n", max_size=60)
STOPS = st.lists(st.text(alphabet="ab<|>é🌍\n", min_size=1, max_size=6), max_size=5)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first place where a stop string is complete, the longest of those."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@settings(max_examples=500)
@given(TEXT, STOPS, st.lists(st.integers(0, 7), max_size=30))
def test_matches_the_reference_however_the_bytes_are_cut(text: str, stops: list[str], sizes: list[int]) -> None:
    stream = TextStream(stops)
    released = ""
    for piece in cut(text.encode(), sizes):
        released += stream.feed(piece)
        # What is out is never taken back: it is part of the answer, whatever follows.
        assert reference(text, stops)[0].startswith(released)
        if stream.stopped_by is not None:
            break
    released += stream.finish()
    assert (released, stream.stopped_by) == reference(text, stops)


@settings(max_examples=300)
@given(st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_any_bytes_give_well_formed_text(data: bytes, sizes: list[int]) -> None:
    stream = TextStream()
    pieces = [stream.feed(piece) for piece in cut(data, sizes)] + [stream.finish()]
    for piece in pieces:
        piece.encode("utf-8")  # no lone surrogates
    assert "".join(pieces) == data.decode("utf-8", "replace")


@settings(max_examples=300)
@given(TEXT, STOPS)
def test_nothing_is_held_back_without_reason(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released = matcher.feed(text)
    if matcher.found is None:
        held = text[len(released) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["He", "llo ", "STO", "P now"], ["STOP"], "Hello ", "STOP"),
        (["a", "b", "c"], ["abd", "bc"], "a", "bc"),
        (["aaab"], ["aab"], "a", "aab"),
        (["xyz"], ["yz", "xyz"], "", "xyz"),
        (["abcabd"], ["abd"], "abc", "abd"),
        (["ab"], ["abc"], "ab", None),
        (["x"], ["x"], "", "x"),
    ],
)
def test_known_cases(pieces: list[str], stops: list[str], text: str, found: str | None) -> None:
    matcher = StopMatcher(stops)
    released = "".join(matcher.feed(piece) for piece in pieces)
    assert (released + matcher.flush() if found is None else released, matcher.found) == (text, found)


def test_a_character_is_released_when_it_is_whole() -> None:
    stream = TextStream()
    world = "🌍".encode()
    assert [stream.feed(world[index : index + 1]) for index in range(4)] == ["", "", "", "🌍"]


def test_a_stop_inside_a_split_character_is_found() -> None:
    stream = TextStream(["🌍"])
    data = "ab🌍c".encode()
    released = "".join(stream.feed(data[index : index + 1]) for index in range(len(data)))
    assert (released, stream.stopped_by) == ("ab", "🌍")
