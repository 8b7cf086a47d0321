"""Framing for every private channel: 4-byte big-endian length, then one msgpack value.

Used between fronts and engine, engine and model workers, engine and job children. Invariant: a peer that announces
more than `MAX_FRAME` bytes or sends what does not decode is a broken peer, and the channel closes; nothing is guessed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

import msgspec
from lathe.engine.errors import InternalError

MAX_FRAME = 64 * 1024 * 1024
"""Bytes; embeddings of a large batch are the biggest honest frame."""
_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()

Incoming = TypeVar("Incoming")


class WireError(InternalError):
    """The other side broke the framing."""

    code = "E_WIRE"


def frame(message: object) -> bytes:
    """Encode one message with its length prefix.

    Raises:
        WireError: it is longer than a frame may be, or holds a text or a number that cannot travel.
    """
    try:
        body = _ENCODER.encode(message)
    except (UnicodeEncodeError, OverflowError) as error:
        raise WireError(f"a message cannot be encoded: {error}") from error
    if len(body) > MAX_FRAME:
        raise WireError(f"a message of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Decoder(Generic[Incoming]):
    """Splits a byte stream into messages of one declared type."""

    def __init__(self, kind: type[Incoming] | object) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield every message completed by `data`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, start)
                if size > MAX_FRAME:
                    raise WireError(f"the peer announced a frame of {size} bytes (limit {MAX_FRAME})")
                end = start + _LENGTH.size + size
                if end > len(self._buffer):
                    break
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield self._decoded(body)
        finally:
            del self._buffer[:start]

    def _decoded(self, body: bytes) -> Incoming:
        try:
            message: Incoming = self._decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"the peer sent something that is no message: {error}") from error
        return message


async def receive(reader: asyncio.StreamReader, kind: type[Incoming] | object) -> AsyncIterator[Incoming]:
    """Yield messages until the peer closes."""
    decoder: Decoder[Incoming] = Decoder(kind)
    while data := await reader.read(65536):
        for message in decoder.feed(data):
            yield message


def receive_blocking(channel: socket.socket, kind: type[Incoming] | object) -> Iterator[Incoming]:
    """Yield messages from a blocking socket until the peer closes; for child processes."""
    decoder: Decoder[Incoming] = Decoder(kind)
    while data := channel.recv(65536):
        yield from decoder.feed(data)
