"""What fronts and the engine say over the private socket: the `Workbench` protocol as messages.

Methods are read from the protocol's own type hints, so a new method of `Workbench` travels without another line.
Streams are flow-controlled: the engine sends at most `WINDOW` items beyond what the front has taken.
Invariant: both ends speak the same `VERSION`, checked in the first frame.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.workbench import Workbench

VERSION = 1
WINDOW = 64
"""Stream items in flight per stream."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First frame of both ends."""

    version: int = VERSION
    release: str = ""
    pid: int = 0


class Call(msgspec.Struct, frozen=True, tag=True):
    id: int
    method: str
    arguments: msgspec.Raw


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The caller of `id` is gone: stop the stream or the call."""

    id: int


class Taken(msgspec.Struct, frozen=True, tag=True):
    """The front consumed this many items of stream `id`."""

    id: int
    count: int


ToEngine = Hello | Call | Leave | Taken


class Result(msgspec.Struct, frozen=True, tag=True):
    id: int
    value: msgspec.Raw


class Item(msgspec.Struct, frozen=True, tag=True):
    id: int
    value: msgspec.Raw


class End(msgspec.Struct, frozen=True, tag=True):
    id: int


class Error(msgspec.Struct, frozen=True, tag=True):
    id: int
    failure: Failure


class Goodbye(msgspec.Struct, frozen=True, tag=True):
    """The engine ends on purpose, and why: streams end here, calls under way are still answered."""

    reason: Failure


ToFront = Hello | Result | Item | End | Error | Goodbye


class Method:
    """One method of the protocol: how its arguments and results are coded."""

    def __init__(self, name: str, function: Any) -> None:
        hints = get_type_hints(function)
        result = hints.pop("return")
        self.name = name
        self.stream = get_origin(result) is AsyncGenerator
        self.result: Any = get_args(result)[0] if self.stream else result
        self.signature = inspect.signature(function)
        parameters = [p for p in self.signature.parameters.values() if p.name != "self"]
        fields = [
            (p.name, hints[p.name]) if p.default is p.empty else (p.name, hints[p.name], p.default) for p in parameters
        ]
        self.arguments: Any = msgspec.defstruct(f"{name}_arguments", fields, kw_only=True)
        self._result_decoder = msgspec.msgpack.Decoder(self.result)
        self._arguments_decoder = msgspec.msgpack.Decoder(self.arguments)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> msgspec.Raw:
        """Encode a call's arguments."""
        bound = self.signature.bind(None, *args, **kwargs).arguments
        bound.pop("self")
        return msgspec.Raw(msgspec.msgpack.encode(self.arguments(**bound)))

    def unpack(self, raw: msgspec.Raw) -> dict[str, Any]:
        """Decode a call's arguments."""
        value = self._arguments_decoder.decode(raw)
        return {name: getattr(value, name) for name in self.arguments.__struct_fields__}

    def decode(self, raw: msgspec.Raw) -> Any:
        """Decode a result or a stream's item."""
        return self._result_decoder.decode(raw)


@cache
def methods() -> dict[str, Method]:
    """Every method of `Workbench` by name."""
    found = inspect.getmembers(Workbench, inspect.isfunction)
    return {name: Method(name, function) for name, function in found if not name.startswith("_")}
