"""The two ends of the private socket: the same calls, errors and streams as in process."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine import rpc
from lathe.engine.errors import DoesNotFit, EngineStopped, MissingError, UnavailableError
from lathe.engine.events import Event, LogLine
from lathe.engine.generation import Delta, GenerationRequest, Message
from lathe.engine.host import Host
from lathe.engine.paths import Home
from lathe.engine.remote import RemoteWorkbench
from lathe.engine.steps import ConvertStep, QuantizeStep
from lathe.engine.wire import frame, receive
from lathe.engine.workbench import Workbench
from support.scripted_workbench import ScriptedWorkbench


class Pair:
    """An engine and a front, joined by a real socket."""

    def __init__(self, engine: ScriptedWorkbench, host: Host, home: Home) -> None:
        self.engine, self.host, self.home = engine, host, home

    async def front(self) -> RemoteWorkbench:
        return await RemoteWorkbench.open(self.home.socket)


@pytest.fixture
async def pair(home: Path) -> AsyncIterator[Pair]:
    place = Home(home).create()
    engine = ScriptedWorkbench()
    host = Host(engine, place, "test")
    await host.start()
    yield Pair(engine, host, place)
    await host.stop()


def test_every_method_of_the_protocol_travels() -> None:
    public = {name for name in vars(Workbench) if not name.startswith("_")}
    assert set(rpc.methods()) == public
    assert {name for name, method in rpc.methods().items() if method.stream} == {
        "events", "generate", "ask_store", "watch_store",
    }  # fmt: skip


async def test_values_arrive_as_they_were_sent(pair: Pair) -> None:
    front = await pair.front()
    workbench = front.as_workbench()
    assert await workbench.snapshot() == await pair.engine.snapshot()
    assert msgspec.json.encode(await workbench.models()) == msgspec.json.encode(await pair.engine.models())
    assert await workbench.settings() == await pair.engine.settings()
    step = QuantizeStep(model=(await workbench.models())[0].name, tensor_types={"blk": "q8_0"})
    assert (await workbench.submit(step, run="r-1")).step == step
    await front.close()


async def test_errors_keep_their_kind_code_and_hint(pair: Pair) -> None:
    front = await pair.front()
    pair.engine.fail["load"] = DoesNotFit("m does not fit: short by 1 GiB", hint="smaller context")
    with pytest.raises(DoesNotFit, match="short by 1 GiB") as caught:
        await front.as_workbench().load("m")
    assert caught.value.hint == "smaller context"
    with pytest.raises(MissingError):
        await front.as_workbench().model("no such model")
    await front.close()


async def test_a_stream_equals_the_local_one(pair: Pair) -> None:
    front = await pair.front()
    name = (await pair.engine.models())[0].name
    request = GenerationRequest(model=name, messages=(Message("user", "hello"),), max_tokens=200)
    local = [delta async for delta in pair.engine.generate(request)]
    remote = [delta async for delta in front.as_workbench().generate(request)]
    assert "".join(d.text for d in remote) == "".join(d.text for d in local)
    assert remote[-1].usage == local[-1].usage
    await front.close()


class Endless(ScriptedWorkbench):
    """Streams until its caller leaves, counting what it gave away."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        self.left = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        try:
            while True:
                self.given += 1
                yield Delta(text=str(self.given))
                await asyncio.sleep(0)
        finally:
            self.left.set()


async def _endless(home: Path) -> tuple[Endless, Host, RemoteWorkbench]:
    engine, place = Endless(), Home(home).create()
    host = Host(engine, place, "test")
    await host.start()
    return engine, host, await RemoteWorkbench.open(place.socket)


async def test_a_slow_reader_holds_the_stream_back_and_no_other_call(home: Path) -> None:
    engine, host, front = await _endless(home)
    async with aclosing(front.as_workbench().generate(GenerationRequest(model="m", prompt="x"))) as stream:
        await anext(stream)
        for _ in range(50):
            await front.as_workbench().models()
        assert engine.given <= rpc.WINDOW + 2
        for _ in range(rpc.WINDOW * 3):
            await anext(stream)
        assert engine.given > rpc.WINDOW * 2
    await asyncio.wait_for(engine.left.wait(), 5)
    await front.close()
    await host.stop()


async def test_a_front_that_dies_ends_its_streams(home: Path) -> None:
    engine, host, front = await _endless(home)
    stream = front.as_workbench().generate(GenerationRequest(model="m", prompt="x"))
    await anext(stream)
    front._writer.transport.abort()
    await asyncio.wait_for(engine.left.wait(), 5)
    with pytest.raises(UnavailableError):
        async for _ in stream:
            pass
    await host.stop()


async def test_when_the_engine_goes_every_call_ends(pair: Pair) -> None:
    front = await pair.front()
    job = await front.as_workbench().submit(ConvertStep(model=(await pair.engine.models())[0].name))
    waiting = asyncio.ensure_future(front.as_workbench().wait(job.id))
    listening = asyncio.ensure_future(_drain(front.as_workbench().events()))
    await front.as_workbench().models()
    await pair.host.stop()
    with pytest.raises(UnavailableError, match="the engine is gone"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(listening, 5)
    with pytest.raises(UnavailableError):
        await front.as_workbench().models()
    assert not front.alive


async def test_an_engine_that_is_told_to_end_says_goodbye_and_why(pair: Pair) -> None:
    front = await pair.front()
    listening = asyncio.ensure_future(_drain(front.as_workbench().events()))
    job = await front.as_workbench().submit(ConvertStep(model=(await pair.engine.models())[0].name))
    waiting = asyncio.ensure_future(front.as_workbench().wait(job.id))
    await front.as_workbench().models()
    pair.host.say_goodbye(EngineStopped("the engine was stopped"))
    # Streams end at once; what is under way is still answered; nothing new is begun, and nobody else comes in.
    with pytest.raises(EngineStopped, match="the engine was stopped"):
        await asyncio.wait_for(listening, 5)
    with pytest.raises(EngineStopped):
        await front.as_workbench().models()
    await pair.engine.cancel(job.id)
    assert (await asyncio.wait_for(waiting, 5)).state == "cancelled"
    with pytest.raises(EngineStopped):
        await pair.front()
    await pair.host.stop()
    with pytest.raises(EngineStopped):
        await front.as_workbench().models()


async def _drain(stream: AsyncGenerator[Event, None]) -> None:
    async for _ in stream:
        pass


async def test_two_fronts_hear_the_same_events(pair: Pair) -> None:
    fronts = [await pair.front(), await pair.front()]
    streams = [front.as_workbench().events() for front in fronts]
    heard = [asyncio.ensure_future(_first_log(stream)) for stream in streams]
    await asyncio.sleep(0.05)
    while not all(task.done() for task in heard):
        pair.engine.emit(LogLine(ts=0.0, level="info", source="engine", text="hello"))
        await asyncio.sleep(0.01)
    assert [task.result().text for task in heard] == ["hello", "hello"]
    assert pair.host.fronts == 2
    for front in fronts:
        await front.close()


async def _first_log(stream: AsyncGenerator[Event, None]) -> LogLine:
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, LogLine):
                return event
    raise AssertionError("the stream ended")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 2**31) + b"x",
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        frame(rpc.Hello()) + frame({"type": "Call", "id": 1}),
    ],
)
async def test_rubbish_ends_its_own_front_only(pair: Pair, rubbish: bytes) -> None:
    good = await pair.front()
    reader, writer = await asyncio.open_unix_connection(str(pair.home.socket))
    writer.write(rubbish)
    await writer.drain()
    while await asyncio.wait_for(reader.read(65536), 5):
        pass
    writer.close()
    assert await good.as_workbench().models()
    await good.close()


async def test_wrong_arguments_are_a_usage_error_not_a_crash(pair: Pair) -> None:
    reader, writer = await asyncio.open_unix_connection(str(pair.home.socket))
    writer.write(frame(rpc.Hello()))
    bad = msgspec.Raw(msgspec.msgpack.encode({"reference": 7}))
    writer.write(
        frame(rpc.Call(5, "model", bad)) + frame(rpc.Call(6, "no_such", bad)) + frame(rpc.Call(7, "close", bad))
    )
    errors: dict[int, Any] = {}
    async for message in receive(reader, rpc.ToFront):
        if isinstance(message, rpc.Error):
            errors[message.id] = message.failure
        if len(errors) == 3:
            break
    assert {failure.code for failure in errors.values()} == {"E_USAGE"}
    writer.close()


async def test_another_protocol_is_told_what_to_do(pair: Pair) -> None:
    reader, writer = await asyncio.open_unix_connection(str(pair.home.socket))
    writer.write(frame(rpc.Hello(version=99)))
    message = await anext(receive(reader, rpc.ToFront))
    assert isinstance(message, rpc.Error)
    assert "engine stop" in message.failure.hint
    writer.close()


async def test_the_socket_is_private_and_a_stale_one_is_replaced(home: Path) -> None:
    place = Home(home).create()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place.socket))
    stale.close()
    with pytest.raises(UnavailableError):
        await RemoteWorkbench.open(place.socket)
    host = Host(ScriptedWorkbench(), place, "test")
    await host.start()
    assert place.socket.stat().st_mode & 0o077 == 0
    assert place.socket.parent.stat().st_mode & 0o077 == 0
    front = await RemoteWorkbench.open(place.socket)
    assert front.engine.pid == os.getpid()
    await front.close()
    await host.stop()


async def test_an_engine_that_ends_leaves_the_socket_of_the_next_one(home: Path) -> None:
    place = Home(home).create()
    old, new = (Host(ScriptedWorkbench(), place, release) for release in ("old", "new"))
    await old.start()
    await new.start()
    await old.stop()
    front = await RemoteWorkbench.open(place.socket)
    await front.close()
    await new.stop()
    assert not place.socket.exists()


def test_a_long_workspace_path_still_has_a_socket(tmp_path: Path) -> None:
    deep = Home(tmp_path / ("x" * 60) / ("y" * 60))
    assert len(os.fsencode(deep.socket)) <= 100
    assert deep.socket != Home(tmp_path / ("x" * 60) / ("z" * 60)).socket
