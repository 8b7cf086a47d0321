"""Framing: any split of the bytes gives the same messages, and a broken peer is noticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine import wire
from lathe.engine.worker.messages import Cancel, Detokenize, Tokenize, ToWorker

MESSAGES = st.lists(
    st.one_of(
        st.builds(Cancel, id=st.integers(0, 2**31)),
        st.builds(Tokenize, id=st.integers(0, 9), text=st.text(), special=st.booleans(), bos=st.booleans()),
        st.builds(Detokenize, id=st.integers(0, 9), tokens=st.lists(st.integers(0, 99)).map(tuple)),
    ),
    max_size=8,
)


@given(MESSAGES, st.integers(1, 40))
def test_messages_survive_any_split(messages: list[ToWorker], size: int) -> None:
    stream = b"".join(wire.frame(message) for message in messages)
    decoder: wire.Decoder[ToWorker] = wire.Decoder(ToWorker)
    received = [m for start in range(0, len(stream), size) for m in decoder.feed(stream[start : start + size])]
    assert received == messages


def test_an_announced_flood_is_refused_before_it_arrives() -> None:
    decoder: wire.Decoder[ToWorker] = wire.Decoder(ToWorker)
    with pytest.raises(wire.WireError, match="announced"):
        list(decoder.feed(struct.pack(">I", wire.MAX_FRAME + 1)))


@pytest.mark.parametrize("body", [b"\xc1", b"\x80", b"hello", b"\x82\xa4type\xa6Cancel\xa2id\xa1x"])
def test_junk_is_an_error_not_a_guess(body: bytes) -> None:
    decoder: wire.Decoder[ToWorker] = wire.Decoder(ToWorker)
    with pytest.raises(wire.WireError, match="no message"):
        list(decoder.feed(struct.pack(">I", len(body)) + body))


def test_a_frame_that_is_nested_without_end_is_junk() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    body = b"\x82\xa4type\xa6Cancel\xa7unknown" + deep
    decoder: wire.Decoder[ToWorker] = wire.Decoder(ToWorker)
    with pytest.raises(wire.WireError, match="no message"):
        list(decoder.feed(struct.pack(">I", len(body)) + body))


@pytest.mark.parametrize("message", [Tokenize(1, "half a character: \ud83d"), Detokenize(1, (2**70,))])
def test_what_cannot_travel_is_a_typed_error(message: ToWorker) -> None:
    with pytest.raises(wire.WireError, match="cannot be encoded"):
        wire.frame(message)
