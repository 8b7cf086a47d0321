"""What no client library would send: smuggling, floods, dripping, half-closing, never reading (S08-S10, F46-F49)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import msgspec
import pytest
from lathe.engine.errors import CrashedError
from lathe.engine.generation import Delta, GenerationRequest
from lathe.engine.http.limits import Limits
from lathe.engine.http.protocol import Connections
from support.http_kit import FAST, MODEL, HeldWorkbench, Served, raw_connection, request, serving
from support.waiting import until

CHAT = msgspec.json.encode({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True})


def status(answer: bytes) -> int:
    """The status of the first response in some bytes; 0 where there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def chat_request(*headers: str, body: bytes = CHAT) -> bytes:
    return request(
        "POST", "/v1/chat/completions", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers,
        body=body,
    )  # fmt: skip


async def healthy(served: Served) -> bool:
    return (await served.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/tokenize", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /x"),
        request("POST", "/tokenize", "Content-Length: 5", "Content-Length: 5", body=b"12345"),
        request("POST", "/tokenize", "Content-Length: 5", "Content-Length: 50", body=b"12345"),
        request("POST", "/tokenize", "Content-Length: 5, 5", "Content-Length: 6", body=b"12345"),
        request("POST", "/tokenize", "Content-Length: -5"),
        request("POST", "/tokenize", "Content-Length: 0x5"),
        request("POST", "/tokenize", "Content-Length: +5"),
        request("POST", "/tokenize", "Content-Length: 5 5"),
        request("POST", "/tokenize", "Content-Length: " + "9" * 30),
        request("POST", "/tokenize", "Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
        request("POST", "/tokenize", "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
        request("POST", "/tokenize", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        request("POST", "/tokenize", "Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
        request("POST", "/tokenize", "Transfer-Encoding: chunked", body=b"-1\r\n\r\n"),
        request("POST", "/tokenize", "Transfer-Encoding: chunked", body=b"5\r\nabcdeXX0\r\n\r\n"),
        request("GET", "/health", "X: a", " folded: b"),
        request("GET", "/health").replace(b"\r\n", b"\n"),
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/0.9\r\n\r\n",
        b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"G\x00T /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"(GET) /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\x00" * 64 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    ],
    ids=lambda data: repr(data[:50]),
)
async def test_what_is_not_plain_http_is_refused_and_closed(data: bytes) -> None:
    async with serving(limits=FAST) as served:
        answer = await served.raw(data)
        assert status(answer) in (400, 408, 413), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "invalid_request_error"
        assert await healthy(served)


async def test_head_floods_are_cut_off() -> None:
    async with serving(limits=FAST) as served:
        assert status(await served.raw(request("GET", "/" + "a" * 1_000_000))) in (414, 431)
        assert status(await served.raw(request("GET", "/health", *(f"X{i}: y" for i in range(101))))) == 431
        assert status(await served.raw(request("GET", "/health", "X: " + "y" * 70_000))) == 431
        assert status(await served.raw(b"X" * 200_000)) in (400, 431)
        assert await healthy(served)


async def test_a_second_request_before_the_answer_is_not_served() -> None:
    async with serving() as served:
        answer = await served.raw(request("GET", "/health") * 3)
        assert answer.count(b"HTTP/1.1 200") == 1


async def test_keep_alive_serves_one_request_after_another() -> None:
    async with serving() as served, raw_connection(served.port) as (reader, writer):
        for _ in range(3):
            writer.write(request("GET", "/health"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(15) == b'{"status":"ok"}'


@pytest.mark.parametrize("sent", [b"GET /health HTT", request("GET", "/health")[:-2], b"G"])
async def test_a_head_that_does_not_end_is_timed_out(sent: bytes) -> None:
    async with serving(limits=FAST) as served:
        assert status(await served.raw(sent)) == 408


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serving(limits=FAST) as served:
        assert await served.raw(b"") == b""


async def test_a_head_that_drips_is_timed_out_all_the_same() -> None:
    async with serving(limits=FAST) as served, raw_connection(served.port) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        for letter in request("GET", "/health", "X: " + "y" * 1000):
            if answer.done():
                break
            writer.write(bytes([letter]))
            await asyncio.sleep(0.01)
        assert status(await answer) == 408


@pytest.mark.parametrize("start", [b"X", b"GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_refusal_reaches_a_client_that_goes_on_sending(start: bytes) -> None:
    """Closed with bytes unread, the connection would be reset, and `read` would raise."""
    limits = msgspec.structs.replace(FAST, linger_s=10)
    async with serving(limits=limits) as served, raw_connection(served.port) as (reader, writer):
        writer.write(start + b"X" * 5_000_000)
        assert status(await reader.read()) in (400, 431)
        await writer.drain()
        writer.close()
        await until(lambda: not served.connections)


async def test_a_refused_client_that_never_stops_is_cut_off() -> None:
    async with serving(limits=FAST) as served, raw_connection(served.port) as (reader, writer):
        writer.write(b"X" * (FAST.head_bytes + 1))
        assert status(await reader.read()) == 431
        async with asyncio.timeout(10):
            while served.connections:
                writer.write(b"X")
                await asyncio.sleep(0.01)


async def test_a_body_that_stops_is_timed_out() -> None:
    async with serving(limits=FAST) as served:
        for held_back in (1, len(CHAT)):
            answer = await served.raw(chat_request()[:-held_back])
            assert status(answer) == 408
        assert served.workbench.open == 0


async def test_a_body_that_drips_is_timed_out_by_its_rate() -> None:
    limits = msgspec.structs.replace(FAST, body_s=30)
    async with serving(limits=limits) as served, raw_connection(served.port) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        writer.write(request("POST", "/tokenize", "Content-Length: 5000", "Content-Type: application/json"))
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.01)
        assert b"too slowly" in await answer


async def test_slow_senders_do_not_keep_good_clients_waiting() -> None:
    async with serving(limits=FAST) as served:
        slow = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(200)]
        for _, writer in slow:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        for _ in range(20):
            assert await healthy(served)
        answers = await asyncio.gather(*(reader.read() for reader, _ in slow))
        assert {status(answer) for answer in answers} == {408}
        for _, writer in slow:
            writer.close()


async def test_a_declared_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    async with serving(limits=FAST) as served:
        answer = await served.raw(request("POST", "/tokenize", f"Content-Length: {FAST.body_bytes + 1}"))
        assert status(answer) == 413
        assert b"connection: close" in answer.lower()


async def test_a_chunked_body_is_cut_at_the_cap_and_the_client_reads_why() -> None:
    limits = msgspec.structs.replace(FAST, body_bytes=100_000)
    async with serving(limits=limits) as served, raw_connection(served.port) as (reader, writer):
        writer.write(request("POST", "/tokenize", "Transfer-Encoding: chunked", "Content-Type: application/json"))
        chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
        for _ in range(30):
            writer.write(chunk)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        answer = await reader.read()
        assert status(answer) == 413
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"


async def test_bodies_together_have_a_budget() -> None:
    limits = Limits(bodies_bytes=300_000, linger_s=0.1)
    async with serving(limits=limits) as served:
        body = b'{"prompt": "' + b"x" * 200_000 + b'"}'
        head = request("POST", "/tokenize", f"Content-Length: {len(body)}", "Content-Type: application/json")
        async with raw_connection(served.port) as (_, first):
            first.write(head + body[:-1])
            await first.drain()
            await asyncio.sleep(0.1)
            async with raw_connection(served.port) as (reader, second):
                second.write(head + body)
                assert status(await reader.read(65536)) == 503
        # What the first one held is free again once it is gone.
        answer = await served.post("/tokenize", {"model": MODEL, "prompt": "x" * 200_000})
        assert answer.status_code == 200


async def test_an_unread_body_of_a_refused_request_ends_the_connection() -> None:
    async with serving(limits=FAST) as served:
        data = chat_request().replace(b"Bearer lathe", b"Bearer wrong")
        answer = await served.raw(data + request("GET", "/health"))
        assert status(answer) == 401
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_expect_continue_is_answered_only_when_the_body_is_wanted() -> None:
    async with serving(limits=FAST) as served, raw_connection(served.port) as (reader, writer):
        body = msgspec.json.encode({"model": MODEL, "prompt": "hello"})
        head = request(
            "POST",
            "/tokenize",
            f"Content-Length: {len(body)}",
            "Expect: 100-continue",
            "Content-Type: application/json",
        )
        writer.write(head)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        refused = await served.raw(head.replace(b"Bearer lathe", b"Bearer wrong"))
        assert status(refused) == 401


@pytest.mark.parametrize("headers", [(), ("Connection: close",), ("Connection: keep-alive",)])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_deadlines_of_receiving_do_not_end_a_long_answer(headers: tuple[str, ...], version: bytes) -> None:
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 2
    async with serving(workbench, limits=FAST) as served, raw_connection(served.port) as (reader, writer):
        writer.write(chat_request(*headers).replace(b"HTTP/1.1", version, 1))
        await reader.readuntil(b'"content":" *"')
        await asyncio.sleep(FAST.body_s + 3 * FAST.sweep_s)
        workbench.held.set()
        async with asyncio.timeout(5):
            await reader.readuntil(b"[DONE]")


@pytest.mark.parametrize("way", ["close", "reset", "half-close", "pipelined"])
@pytest.mark.parametrize("stage", ["first token", "mid-stream"])
async def test_a_client_that_leaves_frees_its_stream(way: str, stage: str) -> None:
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 0 if stage == "first token" else 2
    async with serving(workbench) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(chat_request() + (request("GET", "/health") if way == "pipelined" else b""))
        await until(lambda: workbench.open == 1)
        if stage == "mid-stream":
            await reader.readuntil(b'"content":" *"')
        if way == "half-close":
            writer.write_eof()
        elif way == "reset":
            writer.transport.abort()
        else:
            writer.close()
        await until(lambda: workbench.open == 0)
        writer.close()
        await until(lambda: served.server.state.requests_active == 0)
        assert " 499 " in served.log[-1]


async def test_a_client_that_leaves_before_a_whole_answer_frees_its_stream() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    async with serving(workbench) as served:
        body = CHAT.replace(b"true", b"false")
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(chat_request(body=body))
        await until(lambda: workbench.open == 1)
        writer.close()
        await until(lambda: workbench.open == 0)


@pytest.mark.parametrize("sent", [1, 30, -1, -len(CHAT)])
async def test_a_client_that_leaves_while_sending_starts_nothing(sent: int) -> None:
    async with serving() as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(chat_request()[:sent])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: served.server.state.requests_active == 0)
        assert served.workbench.most == 0
        assert await healthy(served)


async def test_only_the_stream_of_the_one_who_left_ends() -> None:
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 2
    async with serving(workbench) as served:
        staying = asyncio.create_task(served.stream("/v1/chat/completions", msgspec.json.decode(CHAT)))
        await until(lambda: workbench.open == 1)
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(chat_request())
        await until(lambda: workbench.open == 2)
        writer.close()
        await until(lambda: workbench.open == 1)
        workbench.held.set()
        assert (await staying)[-1] == "data: [DONE]"


class Breaking(HeldWorkbench):
    """Its worker dies after the first piece."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        yield Delta(text="The ", tokens=(1,))
        raise CrashedError("worker qwen was killed")


async def test_a_stream_that_breaks_is_logged_and_counted_as_what_it_is() -> None:
    async with serving(Breaking()) as served:
        lines = await served.stream("/v1/chat/completions", msgspec.json.decode(CHAT))
        assert "engine_crash" in lines[-1] or "engine_crash" in lines[-2]
        await until(lambda: served.server.state.requests_active == 0)
        assert served.server.state.errors_total == 1
        assert "error=engine_crash" in served.log[-1]


async def test_requests_without_a_key_are_counted_as_refused() -> None:
    async with serving() as served:
        for _ in range(2):
            assert (await served.client.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 401
        await until(lambda: served.server.state.rejected_total == 2)


class Torrent(HeldWorkbench):
    """Writes a kilobyte at a time, for ever."""

    produced = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        while True:
            self.produced += 1
            yield Delta(text="x" * 1000)
            await asyncio.sleep(0)


async def test_a_client_that_never_reads_is_given_up_and_costs_little_memory() -> None:
    workbench = Torrent()
    async with serving(workbench, limits=FAST) as served, raw_connection(served.port) as (_, writer):
        writer.write(chat_request())
        await until(lambda: workbench.produced > 0)
        await until(lambda: served.server.state.requests_active == 0)
        # The kernel's socket buffers and our 32 KiB took it all; the rest was never asked of the model.
        assert workbench.produced < 20_000
        assert await healthy(served)


async def test_an_address_may_hold_so_many_connections_and_all_together_so_many() -> None:
    async with serving(limits=Limits(connections=5)) as served:
        held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(5)]
        await until(lambda: len(served.connections) == 5)
        answer = await served.raw(request("GET", "/health"))
        assert status(answer) == 503
        assert b"retry-after: 1" in answer
        assert served.server.state.rejected_total == 1
        for _, writer in held:
            writer.close()
        await until(lambda: not served.connections)
        assert await healthy(served)


def test_one_foreign_address_may_hold_fewer_connections_than_this_machine() -> None:
    class Sweepless(Connections):
        def __init__(self, limits: Limits) -> None:
            super().__init__(limits)
            self.sweeper.wake = lambda: None  # type: ignore[method-assign]

    connections = Sweepless(Limits(connections=10, connections_per_ip=2))
    entered: list[tuple[object, str]] = []

    def enter(address: str) -> bool:
        connection = object()
        admitted = connections.admit(connection, address)  # type: ignore[arg-type]
        if admitted:
            entered.append((connection, address))
        return admitted

    assert [enter("192.168.1.5") for _ in range(3)] == [True, True, False]
    assert [enter("fe80::1%eth0") for _ in range(3)] == [True, True, False]
    assert [enter("127.0.0.1") for _ in range(4)] == [True] * 4
    assert [enter("") for _ in range(3)] == [True, True, False]  # a Unix socket, until the server is full
    assert connections.refused == 3
    for connection, address in entered:
        connections.forget(connection, address)  # type: ignore[arg-type]
    assert not connections.per_address
    assert enter("192.168.1.5")
