"""A remote server as a model: Lathe's own server, and one that does whatever a test tells it to."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from lathe.engine.catalogue.remotes import check_policy, checked, remote_path, secret_of
from lathe.engine.errors import (
    BusyError,
    ConfigError,
    InternalError,
    LatheError,
    MissingError,
    PolicyError,
    TimeoutExpired,
    UnavailableError,
    UsageError,
)
from lathe.engine.generation import EmbedRequest, GenerationRequest, Message, Sampling, ScoreRequest
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.states import ServerOptions
from lathe.engine.workbench import ApiKey, ModelAlias
from lathe.engine.worker.backends.remote import connection, wire
from lathe.engine.worker.backends.remote.connection import Connection
from lathe.store.models import ModelEntry

Handler = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


class Asked:
    """A request as the server saw it."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: Any) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body


class Told:
    """A server that answers what it is told, in order, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: list[Handler] = []
        self.closed = asyncio.Event()
        """A client went away before its answer was whole."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = first.split(" ")
                asked = Asked(method, path, headers, json.loads(body) if body else None)
                self.asked.append(asked)
                await self.answers.pop(0)(asked, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def told(*answers: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Told]:
    server = Told()
    server.answers += answers
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
    server.url = f"{scheme}://{host}:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()


def says(value: object, status: int = 200, **headers: str) -> Handler:
    async def handler(_: Asked, writer: asyncio.StreamWriter) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", "content-type: application/json"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    return handler


def streams(*events: object, end: str = "data: [DONE]\n\n", stay: bool = False) -> Handler:
    """An event stream; `stay` leaves it open after its events."""

    async def handler(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event in events:
            writer.write(f": comment\n\ndata: {json.dumps(event)}\n\n".encode())
            await writer.drain()
        if stay:
            while not writer.is_closing():
                writer.write(b": ping\n\n")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.write(end.encode())
        await writer.drain()
        writer.close()

    return handler


def chunk(text: str = "", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, **more}]}


LIST = says({"data": [{"id": "m", "max_model_len": 4096}]})
USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}


@asynccontextmanager
async def workbench(folder: Path) -> AsyncIterator[LocalWorkbench]:
    opened = await LocalWorkbench.open(Home(folder))
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def aliased(folder: Path, server: Told, **fields: Any) -> AsyncIterator[LocalWorkbench]:
    """A workbench on which `far` is that server's model."""
    async with workbench(folder) as opened:
        await opened.set_alias(ModelAlias(name="far", target=server.url, model="m", **fields))
        yield opened


async def text_of(opened: LocalWorkbench, **fields: Any) -> str:
    return "".join([delta.text async for delta in opened.generate(GenerationRequest(model="far", **fields))])


# -- what is sent, what is read --------------------------------------------------------------------------------------
async def test_a_chat_travels_and_its_stream_comes_back(tmp_path: Path) -> None:
    events = (chunk("Hel"), chunk("lo"), chunk(finish_reason="length"), USAGE)
    async with told(LIST, streams(*events)) as server, aliased(tmp_path, server) as opened:
        request = GenerationRequest(
            model="far", messages=(Message("user", "Hi"),), max_tokens=7, stop=("x",),
            sampling=Sampling(seed=3, min_p=0.2), template_args={"enable_thinking": False},
        )  # fmt: skip
        deltas = [delta async for delta in opened.generate(request)]
        traffic = (await opened.snapshot()).traffic
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert deltas[-1].finish == "length"
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 2, 3)
    assert deltas[-1].timing is not None
    assert deltas[-1].timing.first_token_s is not None
    assert traffic.generated_tokens_total == 2
    sent = server.asked[1]
    assert sent.path == "/v1/chat/completions"
    assert sent.body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (sent.body["model"], sent.body["max_tokens"], sent.body["seed"], sent.body["min_p"]) == ("m", 7, 3, 0.2)
    assert sent.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "top_k" not in sent.body, "what is at its default is not forced on servers that do not know it"
    assert "authorization" not in sent.headers


async def test_choices_log_probabilities_and_tool_calls(tmp_path: Path) -> None:
    top = [{"token": "é", "logprob": -0.5}, {"token": "e", "logprob": -1.5}]
    scored = {"content": [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top}]}
    first = {"choices": [{"index": 1, "delta": {"content": "é"}, "logprobs": scored}]}
    calls = [{"index": 0, "function": {"name": "find", "arguments": '{"q": '}}]
    more = [{"index": 0, "function": {"arguments": '"x"}'}}]
    events = (
        first,
        {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": more}, "finish_reason": "tool_calls"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
    )
    async with told(LIST, streams(*events)) as server, aliased(tmp_path, server) as opened:
        request = GenerationRequest(model="far", messages=(Message("user", "?"),), n=2, logprobs=2)
        deltas = [delta async for delta in opened.generate(request)]
    assert deltas[0].logprobs[0].raw == "é".encode()
    assert [one for _, one, _ in deltas[0].logprobs[0].top] == ["é", "e"]
    assert {delta.index: delta.finish for delta in deltas if delta.finish} == {0: "stop", 1: "stop"}
    call = "".join(delta.text for delta in deltas if delta.index == 0)
    assert json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>")) == {
        "name": "find",
        "arguments": {"q": "x"},
    }


async def test_vectors_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.0, 2.0)).decode()
    answer = {
        "data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": packed}],
        "usage": {"prompt_tokens": 9},
    }
    ranked = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": -1}]}
    short = {"data": [{"index": 0, "embedding": [1, 2]}]}
    async with told(LIST, says(answer), says(ranked), says(short)) as server, aliased(tmp_path, server) as opened:
        found = await opened.embed(EmbedRequest(model="far", texts=("a", "b")))
        assert struct.unpack("<4f", found.vectors) == pytest.approx((0, 1, 0.6, 0.8))
        assert found.prompt_tokens == 9
        scores = await opened.embed(EmbedRequest(model="far", texts=("a", "b"), pooling="rank", query="q"))
        assert struct.unpack("<2f", scores.vectors) == pytest.approx((-1, 0.9))
        with pytest.raises(LatheError, match="1 usable vectors for 2 texts"):
            await opened.embed(EmbedRequest(model="far", texts=("a", "b")))
        with pytest.raises(UsageError, match="pools by itself"):
            await opened.embed(EmbedRequest(model="far", texts=("a",), pooling="cls"))


# -- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, UsageError, "E_REMOTE_REFUSED"),
        (401, PolicyError, "E_REMOTE_KEY"),
        (404, MissingError, "E_REMOTE_MISSING"),
        (500, UnavailableError, "E_REMOTE"),
    ],
)
async def test_refusals_keep_their_kind_and_their_words(
    tmp_path: Path, status: int, error: type[LatheError], code: str
) -> None:
    words = says({"error": {"message": "these are its words"}}, status)
    async with told(LIST, words, streams(chunk("fine"))) as server, aliased(tmp_path, server) as opened:
        with pytest.raises(error, match="these are its words") as caught:
            await text_of(opened, prompt="x")
        assert caught.value.code == code
        assert await text_of(opened, prompt="x") == "fine", "one refusal ends one request"


async def test_a_busy_server_is_asked_again_before_the_first_token_and_never_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = says({"error": "busy"}, 503, retry_after="0.01")
    broken = streams(chunk("half"), {"error": {"message": "out of memory", "code": 500}})
    async with (
        told(LIST, busy, busy, streams(chunk("third time")), broken) as server,
        aliased(tmp_path, server) as opened,
    ):
        assert await text_of(opened, prompt="x") == "third time"
        seen = []
        with pytest.raises(UnavailableError, match="out of memory"):
            async for delta in opened.generate(GenerationRequest(model="far", prompt="x")):
                seen.append(delta.text)  # noqa: PERF401 - what came before the error counts
        assert seen == ["half"]
        assert not server.answers
        server.answers += [says({"error": "full"}, 429, retry_after="0")] * 3
        with pytest.raises(BusyError):
            await text_of(opened, prompt="x")


async def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    async def breaks(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n")
        writer.write(f"data: {json.dumps(chunk('half'))}\n\n".encode())
        await writer.drain()
        writer.close()

    async with told(LIST, breaks, streams("junk", end="")) as server, aliased(tmp_path, server) as opened:
        with pytest.raises(UnavailableError):
            await text_of(opened, prompt="x")
        with pytest.raises(LatheError, match="no JSON object"):
            await text_of(opened, prompt="x")


async def test_a_stream_that_ends_too_early_is_no_answer(tmp_path: Path) -> None:
    whole = streams(chunk("whole"), chunk(finish_reason="stop"), end="")
    async with told(LIST, streams(chunk("half"), end=""), whole) as server, aliased(tmp_path, server) as opened:
        with pytest.raises(UnavailableError, match="broke off") as caught:
            await text_of(opened, prompt="x")
        assert caught.value.code == "E_REMOTE_UNAVAILABLE"
        assert await text_of(opened, prompt="x") == "whole", "some servers do not say [DONE]"


async def test_halves_of_characters_and_absurd_numbers_hold_no_request_up(tmp_path: Path) -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": '{"x": "\ud83d"}'}}
    named = {"tokens": ["\ud83d"], "token_logprobs": [-1], "top_logprobs": [{"\ud83d": -1}]}
    halves = ({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "logprobs": named}]}, chunk("\ude00"))
    absurd = {"choices": [], "usage": {"prompt_tokens": 2**70, "completion_tokens": 1}}
    async with told(LIST, streams(*halves), streams(absurd)) as server, aliased(tmp_path, server) as opened:
        text = await text_of(opened, prompt="x")
        assert text.startswith("?") and '{"x": "?"}' in text
        with pytest.raises(InternalError, match="cannot be encoded"):
            await text_of(opened, prompt="x")


async def test_leaving_closes_the_connection_and_cancelling_ends_the_stream(tmp_path: Path) -> None:
    async with (
        told(LIST, streams(chunk("a"), stay=True), streams(chunk("b"), stay=True)) as server,
        aliased(tmp_path, server) as opened,
    ):
        stream = opened.generate(GenerationRequest(model="far", prompt="x"))
        assert (await anext(stream)).text == "a"
        await stream.aclose()
        async with asyncio.timeout(10):
            await server.closed.wait()
        deltas = []
        async for delta in opened.generate(GenerationRequest(model="far", prompt="x")):
            deltas.append(delta)
            if delta.text:
                rows = (await opened.snapshot()).traffic.requests
                await opened.cancel_request(next(row.id for row in rows if not row.finished))
        assert deltas[-1].finish == "cancelled"
        assert deltas[-1].usage is not None


async def test_deadlines_and_silence_end_requests(tmp_path: Path) -> None:
    async with told(LIST, streams(chunk("a"), stay=True)) as server, aliased(tmp_path, server) as opened:
        request = GenerationRequest(model="far", prompt="x", deadline_s=0.2)
        assert [delta async for delta in opened.generate(request)][-1].finish == "deadline"

    async def silent(_: Asked, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)

    async with told(silent) as server:
        quick = Connection(server.url, None, "far", silence_s=0.1)
        with pytest.raises(TimeoutExpired):
            await quick.get("models")
        await quick.close()


async def test_a_server_that_is_not_there_or_lacks_the_model_fails_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told(says({"data": [{"id": "other"}, {"id": "third"}]})) as server, aliased(tmp_path, server) as opened:
        with pytest.raises(MissingError, match="no model 'm'") as caught:
            await opened.load("far")
        assert "other" in caught.value.hint
    monkeypatch.setattr(connection, "_WAITS_S", (0.0,))
    gone = Connection(server.url, "secret", "far")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await gone.get("models")
    await gone.close()


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"{", b'{"choices": 3}', b'{"choices": [{"index": "a", "delta": 7}]}', b"[" * 9999]
)
def test_junk_is_refused_or_nothing(junk: bytes) -> None:
    try:
        event = wire.document(junk)
    except LatheError:
        return
    try:
        assert all(not piece.text for piece in wire.pieces(event))
    except AttributeError:
        pytest.fail("an answer's shape was trusted")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", private, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, private


async def test_certificates_are_checked(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, private = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, private)
    async with told(LIST, streams(chunk("safe")), tls=context) as server:
        async with aliased(tmp_path / "stranger", server) as opened:
            with pytest.raises(UnavailableError) as caught:
                await text_of(opened, prompt="x")
            assert caught.value.code == "E_REMOTE_TLS"
            assert not server.asked, "nothing is said to a server that nobody vouches for"
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        async with aliased(tmp_path / "known", server) as opened:
            assert await text_of(opened, prompt="x") == "safe"


# -- keys ------------------------------------------------------------------------------------------------------------
async def test_the_key_comes_from_a_variable_or_a_private_file_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-never-to-be-seen"
    file = tmp_path / "key"
    file.write_text(f"{secret}\n")
    file.chmod(0o600)
    monkeypatch.setenv("FAR_KEY", secret)
    for key in ("env:FAR_KEY", f"file:{file}"):
        home = tmp_path / key[:3]
        async with told(LIST, streams(chunk("x"))) as server, aliased(home, server, key=key) as opened:
            assert await text_of(opened, prompt="x") == "x"
            assert [asked.headers["authorization"] for asked in server.asked] == [f"bearer {secret}"] * 2
            shown = repr((await opened.models(), await opened.aliases(), await opened.snapshot(), await opened.log()))
            assert secret not in shown
            assert key in shown
        kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert secret.encode() not in kept


def test_a_key_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("sk")
    file.chmod(0o644)

    def entry(key: str) -> ModelEntry:
        return ModelEntry(id="x", name="far", path="http://h/v1", format="remote", bytes=0, recipe={"key": key})

    with pytest.raises(PolicyError, match="others may read"):
        secret_of(entry(f"file:{file}"))
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(ConfigError, match="FAR_KEY"):
        secret_of(entry("env:FAR_KEY"))
    with pytest.raises(MissingError):
        secret_of(entry(f"file:{file}.gone"))
    with pytest.raises(ConfigError, match="cannot be read"):
        secret_of(entry(f"file:{tmp_path}"))
    with pytest.raises(UsageError, match="env:VARIABLE or file:PATH"):
        checked("sk-plain-text")


@pytest.mark.parametrize(
    "url", ["ftp://h/v1", "http://", "http://user:pw@h/v1", "http://h/v1?key=x", "http://h:99999/", "h/v1"]
)
def test_urls_that_could_hold_secrets_or_lead_nowhere_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        remote_path(url, "m")
    assert remote_path("https://[::1]:8000/v1/", "org/m") == "https://[::1]:8000/v1#org/m"


def test_offline_means_this_machine() -> None:
    def entry(url: str) -> ModelEntry:
        return ModelEntry(id="x", name="far", path=url, format="remote", bytes=0)

    for url in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.9.9.9/v1"):
        check_policy(entry(url), offline=True)
    for url in (
        "http://10.0.0.1/v1",
        "https://gpu-box/v1",
        "http://localhost.example.org/v1",
        "http://[2001:db8::1]/v1",
    ):
        check_policy(entry(url), offline=False)
        with pytest.raises(PolicyError, match="the workspace is offline") as caught:
            check_policy(entry(url), offline=True)
        assert "general.offline" in caught.value.hint
    check_policy(entry("scripted:echo"), offline=True)


# -- through Lathe's own server --------------------------------------------------------------------------------------
async def test_clients_of_lathe_reach_the_remote_model(tmp_path: Path) -> None:
    events = (chunk("Hel"), chunk("lo"), chunk(finish_reason="stop"), USAGE)
    denied = says({"error": {"message": "no such key"}}, 401)
    async with told(LIST, streams(*events), denied) as server, aliased(tmp_path, server) as opened:
        await opened.set_alias(ModelAlias(name="big", target="far"))
        state = await opened.start_server(ServerOptions(port=0, require_token=False))
        async with httpx2.AsyncClient(base_url=state.url or "", trust_env=False, timeout=20) as client:
            listed = {one["id"] for one in (await client.get("/v1/models")).json()["data"]}
            assert {"far", "big"} <= listed
            body = {"model": "big", "messages": [{"role": "user", "content": "Hi"}]}
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            assert answer["choices"][0]["message"]["content"] == "Hello"
            assert answer["usage"]["total_tokens"] == 7
            refused = await client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 403
            assert "no such key" in refused.json()["error"]["message"]
            assert server.url.removesuffix("/v1").rpartition("/")[2] not in refused.text, "where it is stays here"


# -- Lathe behind Lathe ----------------------------------------------------------------------------------------------
@pytest.mark.native
async def test_lathe_serves_lathe(tmp_path: Path, embedded_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workbench(tmp_path / "near") as near, workbench(tmp_path / "far") as far:
        key = await near.make_key(ApiKey(name="t", created_at=0))
        monkeypatch.setenv("NEAR_KEY", key.secret or "")
        entry = await near.resolve(str(embedded_gguf))
        state = await near.start_server(ServerOptions(port=0))
        await far.set_alias(ModelAlias(name="far", target=f"{state.url}/v1", model=entry.name, key="env:NEAR_KEY"))
        greedy = Sampling(temperature=0)
        prompt = "import os\n\ndef main():\n    x ="

        async def both(**fields: Any) -> list[Any]:
            return [
                [delta async for delta in bench.generate(GenerationRequest(model=model, **fields))]
                for bench, model in ((near, entry.name), (far, "far"))
            ]

        for fields in (
            {"prompt": prompt, "max_tokens": 20, "sampling": greedy},
            {"messages": (Message("user", "What is os.path?"),), "max_tokens": 20, "sampling": Sampling(seed=5)},
            {"tokens": (12, 44, 300), "max_tokens": 8, "sampling": greedy, "n": 2},
        ):
            here, there = await both(**fields)
            for index in range(fields.get("n", 1)):
                ours, theirs = ("".join(d.text for d in part if d.index == index) for part in (here, there))
                assert theirs == ours
            assert there[-1].usage.completion_tokens == here[-1].usage.completion_tokens
            assert {d.index: d.finish for d in there if d.finish} == {d.index: d.finish for d in here if d.finish}
        here, there = await both(prompt=prompt, max_tokens=3, sampling=greedy, logprobs=2, echo=True)
        scored = [[e for d in part for e in (*d.prompt_logprobs, *d.logprobs)] for part in (here, there)]
        assert [entry.text for entry in scored[1]] == [entry.text for entry in scored[0]]
        assert [entry.logprob for entry in scored[1]][1:] == pytest.approx([e.logprob for e in scored[0]][1:], abs=1e-3)
        questions = {"context": "import os\nos.path.", "continuations": ("join(a)", "exists(x)")}
        ours = await near.score(ScoreRequest(model=entry.name, **questions))
        theirs = await far.score(ScoreRequest(model="far", **questions))
        assert [one.logprob for one in theirs] == pytest.approx([one.logprob for one in ours], abs=1e-3)
        assert [(one.tokens, one.greedy) for one in theirs] == [(one.tokens, one.greedy) for one in ours]
        assert await far.tokenize("far", "hello") == await near.tokenize(entry.name, "hello")
        vectors = [
            await b.embed(EmbedRequest(model=m, texts=("a", "b"))) for b, m in ((near, entry.name), (far, "far"))
        ]
        assert struct.unpack("<4f", vectors[0].vectors[:16]) == pytest.approx(
            struct.unpack("<4f", vectors[1].vectors[:16]), abs=1e-4
        )
        assert near.busy
