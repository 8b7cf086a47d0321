"""Starting, stopping and what is refused at the door: lifecycle, sockets, TLS, drain, overload, log."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import httpx2
import msgspec
import pytest
from lathe.engine.errors import BusyError, CannotCreate, ConfigError, MissingError, PolicyError
from lathe.engine.events import Event, LogLine, ServerChanged
from lathe.engine.http.limits import Limits
from lathe.engine.http.request_log import LINES_PER_S, Record, RequestLog
from lathe.engine.http.server import HttpServer
from lathe.engine.states import ServerOptions
from support.http_kit import MODEL, SECRET, HeldWorkbench, Ring, key, raw_connection, request, serving
from support.waiting import until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def server(*, keys: int = 1) -> tuple[HttpServer, list[Event]]:
    events: list[Event] = []
    ring = Ring(key("ops")) if keys else Ring()
    return HttpServer(HeldWorkbench(), ring, events.append, Limits(drain_s=1)), events


async def test_state_follows_start_and_stop() -> None:
    http, events = server()
    assert not http.state.running
    state = await http.start(ServerOptions(port=0))
    assert state.running
    assert state.url is not None
    assert state.url.startswith("http://127.0.0.1:")
    with pytest.raises(BusyError, match="already serving"):
        await http.start(ServerOptions(port=0))
    stopped = await http.stop()
    assert (stopped.running, stopped.url) == (False, None)
    assert [event.server.running for event in events if isinstance(event, ServerChanged)] == [True, False, False]
    again = await http.start(ServerOptions(port=0))
    assert again.running
    await http.stop()
    assert await http.stop() == http.state


async def test_answers_do_not_wait_for_the_client_s_acknowledgement() -> None:
    async with serving() as served, raw_connection(served.port):
        await until(lambda: bool(served.connections))
        for connection in served.connections:
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_taken_port_is_said_and_leaves_nothing_behind() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http, events = server()
        with pytest.raises(BusyError, match="is taken"):
            await http.start(ServerOptions(port=taken.getsockname()[1]))
    assert not http.state.running
    assert http.state.failure is not None
    assert isinstance(events[-1], ServerChanged)
    assert (await http.start(ServerOptions(port=0))).failure is None
    await http.stop()


async def test_remote_addresses_are_refused_unless_asked_for_aloud() -> None:
    http, _ = server()
    with pytest.raises(PolicyError):
        await http.start(ServerOptions(host="0.0.0.0", port=0))
    open_to_all, _ = server(keys=0)
    with pytest.raises(PolicyError, match="API key"):
        await open_to_all.start(ServerOptions(host="0.0.0.0", port=0, allow_remote=True))
    await http.start(ServerOptions(host="0.0.0.0", port=0, allow_remote=True))
    await http.stop()


async def test_named_models_are_loaded_first_and_nothing_else_is_offered() -> None:
    async with serving(models=("stdlib-4m-f16",)) as served:
        assert served.workbench.calls[0][:2] == ("load", "stdlib-4m-f16")
        listed = (await served.client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["stdlib-4m-f16"]
        assert (await served.post("/v1/chat/completions", CHAT)).status_code == 404
        # With one model offered, requests need not name it.
        assert (await served.post("/tokenize", {"prompt": "a"})).status_code == 200


async def test_a_model_that_cannot_be_loaded_stops_the_start() -> None:
    http, _ = server()
    with pytest.raises(MissingError):
        await http.start(ServerOptions(port=0, models=("nope",)))
    assert not http.state.running


async def test_a_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(unix_socket=str(path), require_token=False) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert served.url == f"unix:{path}"
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, base_url="http://anything") as client:
            assert (await client.get("/v1/models")).status_code == 200
        other, _ = server()
        with pytest.raises(BusyError, match="another server"):
            await other.start(ServerOptions(unix_socket=str(path)))
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(unix_socket=str(path)):
        pass
    path.write_text("precious")
    http, _ = server()
    with pytest.raises(CannotCreate):
        await http.start(ServerOptions(unix_socket=str(path)))
    assert path.read_text() == "precious"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, private = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(private),
         "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, private


async def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, private = certificate
    async with serving(tls_certificate=str(cert), tls_key=str(private)) as served:
        assert served.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        async with httpx2.AsyncClient(verify=context, base_url=served.url) as client:
            assert (await client.get("/health")).status_code == 200
        assert await served.raw(request("GET", "/health")) in (b"", b"")  # plain HTTP gets no answer in the clear


async def test_a_bad_certificate_is_a_configuration_error(certificate: tuple[Path, Path]) -> None:
    http, _ = server()
    with pytest.raises(ConfigError):
        await http.start(ServerOptions(port=0, tls_certificate=str(certificate[0]), tls_key="/nowhere"))


async def test_drain_lets_running_requests_finish_and_refuses_new_ones() -> None:
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 1
    async with serving(workbench) as served:
        running = asyncio.create_task(served.stream("/v1/chat/completions", {**CHAT, "stream": True}))
        await until(lambda: workbench.open == 1)
        stopping = asyncio.create_task(served.server.stop(drain_s=20))
        await until(lambda: not served.server.state.running)
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient() as client:
                await client.get(f"{served.url}/health")
        assert not stopping.done()
        workbench.held.set()
        assert (await running)[-1] == "data: [DONE]"
        assert not (await stopping).running


async def test_a_stop_goes_on_when_its_caller_leaves_and_a_second_waits_for_the_same_end() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    async with serving(workbench) as served:
        http = served.server
        running = asyncio.create_task(served.post("/v1/chat/completions", CHAT))
        await until(lambda: workbench.open == 1)
        leaving = asyncio.create_task(http.stop(drain_s=20))
        await until(lambda: not http.state.running)
        leaving.cancel()
        await asyncio.wait({leaving})
        second = asyncio.create_task(http.stop())
        with pytest.raises(BusyError):
            await http.start(ServerOptions(port=0))
        assert not second.done()
        workbench.held.set()
        assert (await running).status_code == 200
        assert await second == http.state
        assert (await http.start(ServerOptions(port=0))).running


async def test_drain_ends_what_does_not_finish() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    async with serving(workbench) as served:
        running = asyncio.create_task(served.post("/v1/chat/completions", CHAT))
        await until(lambda: workbench.open == 1)
        await served.server.stop(drain_s=0.05)
        assert workbench.open == 0
        answer = await running
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_beyond_capacity_requests_are_told_when_to_come_back() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    keys = (key("a"), key("b", "lathe-" + "b" * 43))
    async with serving(workbench, keys=keys, limits=Limits(active=4, active_per_key_share=0.5)) as served:
        running = [asyncio.create_task(served.post("/v1/chat/completions", CHAT)) for _ in range(2)]
        await until(lambda: workbench.open == 2)
        over_share = await served.post("/v1/chat/completions", CHAT)
        assert (over_share.status_code, over_share.json()["error"]["code"]) == (429, "too_many_requests")
        other = {"authorization": "Bearer lathe-" + "b" * 43}
        running += [asyncio.create_task(served.post("/v1/chat/completions", CHAT, headers=other)) for _ in range(2)]
        await until(lambda: workbench.open == 4)
        full = await served.post("/v1/chat/completions", CHAT, headers=other)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
        assert int(full.headers["retry-after"]) >= 1
        assert (await served.client.get("/v1/models")).status_code == 200
        assert served.server.state.rejected_total == 2
        workbench.held.set()
        assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
        assert (await served.post("/v1/chat/completions", CHAT)).status_code == 200


async def test_a_key_s_quota_of_tokens_is_charged_by_what_was_used() -> None:
    async with serving(keys=(key("small", tokens_per_minute=5, requests_per_minute=100),)) as served:
        first = await served.post("/v1/chat/completions", CHAT)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "5"
        second = await served.post("/v1/chat/completions", CHAT)
        assert (second.status_code, second.json()["error"]["code"]) == (429, "tokens_per_minute")
        assert int(second.headers["retry-after"]) > 1


async def test_whoever_leaves_a_stream_pays_for_what_it_took() -> None:
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 3
    async with serving(workbench, keys=(key("hasty", tokens_per_minute=20),)) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 20}], "stream": True}
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            await until(lambda: workbench.open == 1)
        await until(lambda: workbench.open == 0 and served.server.state.requests_active == 0)
        assert served.server.state.keys[0].tokens >= 25
        refused = await served.post("/v1/chat/completions", CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_per_minute")


async def test_what_the_engine_refuses_costs_no_tokens() -> None:
    workbench = HeldWorkbench()
    workbench.fail["generate"] = BusyError("full")
    async with serving(workbench) as served:
        assert (await served.post("/v1/chat/completions", CHAT)).status_code == 503
        assert served.server.state.keys[0].tokens == 0


async def test_a_score_costs_its_context() -> None:
    async with serving(keys=(key("small", tokens_per_minute=100),)) as served:
        for context, status in (("word " * 100, 200), ("a", 429)):
            body = {"model": MODEL, "context": context, "continuations": ["b"]}
            assert (await served.post("/v1/score", body)).status_code == status
        assert served.server.state.keys[0].tokens >= 125


async def test_a_key_s_models_are_all_it_sees() -> None:
    async with serving(keys=(key("one", models=(MODEL,)),)) as served:
        listed = (await served.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == [MODEL]
        hidden = await served.post("/tokenize", {"model": "stdlib-4m-f16", "prompt": "a"})
        unknown = await served.post("/tokenize", {"model": "no-such-model", "prompt": "a"})
        assert hidden.status_code == unknown.status_code == 404
        assert hidden.json()["error"]["message"].replace("stdlib-4m-f16", "X") == unknown.json()["error"][
            "message"
        ].replace("no-such-model", "X")
        assert (await served.client.get("/v1/models/stdlib-4m-f16")).status_code == 404
        assert [tag["name"] for tag in (await served.client.get("/api/tags")).json()["models"]] == [MODEL]


async def test_paths_are_not_models() -> None:
    async with serving() as served:
        path = served.workbench._find(MODEL).path
        for reference in (path, "/etc/passwd", "../x.gguf", "~/x", "file:///etc/passwd", "\\\\host\\share"):
            answer = await served.post("/tokenize", {"model": reference, "prompt": "a"})
            assert answer.status_code == 404, reference


async def test_cors_is_off_and_named_origins_get_a_preflight() -> None:
    foreign = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    async with serving() as served:
        refused = await served.client.options("/v1/chat/completions", headers=foreign)
        assert refused.status_code == 403
        assert not any(name.startswith("access-control") for name in refused.headers)
        assert (await served.client.get("/v1/models", headers=foreign)).status_code == 403
    async with serving(cors_origins=("https://app.example",)) as served:
        named = {"origin": "https://app.example", "access-control-request-method": "POST"}
        del served.client.headers["authorization"]
        preflight = await served.client.options("/v1/chat/completions", headers=named)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        served.client.headers["authorization"] = f"Bearer {SECRET}"
        answer = await served.client.get("/v1/models", headers=named)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
        assert (await served.client.get("/v1/models", headers=foreign)).status_code == 403


async def test_foreign_hosts_are_misdirected() -> None:
    async with serving(allowed_hosts=("box.lan",)) as served:
        for name, status in (("evil.example", 421), ("box.lan", 200), ("localhost", 200)):
            answer = await served.client.get("/health", headers={"host": name})
            assert answer.status_code == status


async def test_R11_health_says_when_a_model_fell_back_to_the_cpu_and_no_more() -> None:
    async with serving() as served:
        assert (await served.client.get("/health")).json() == {"status": "ok"}
    workbench = HeldWorkbench()
    ((model_id, worker),) = list(workbench.workers.items())[:1]
    notice = "32 layers were meant for the GPU, 0 are there (`lathe doctor` says why)"
    workbench.workers[model_id] = msgspec.structs.replace(worker, notice=notice)
    async with serving(workbench) as served:
        del served.client.headers["authorization"]
        answer = await served.client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded"})
        before = sum(call[0] == "snapshot" for call in workbench.calls)
        for _ in range(20):
            await served.client.get("/health")
        assert sum(call[0] == "snapshot" for call in workbench.calls) <= before + 1, "strangers cost no snapshots"


async def test_what_came_over_each_key_is_counted() -> None:
    secrets = {"ann": "lathe-" + "a" * 43, "bob": "lathe-" + "b" * 43}
    async with serving(keys=tuple(key(name, secret) for name, secret in secrets.items())) as served:
        for name, secret in secrets.items():
            for _ in range(2 if name == "ann" else 1):
                await served.post("/v1/chat/completions", CHAT, headers={"authorization": f"Bearer {secret}"})
        await served.client.get("/health")
        ann, bob = served.server.state.keys
        assert [(use.name, use.requests, use.active) for use in (ann, bob)] == [("ann", 2, 0), ("bob", 1, 0)]
        assert ann.tokens == 2 * bob.tokens > 0
        assert ann.last_at is not None


CANARY = "canary-7b1f"


async def test_nothing_a_client_wrote_is_logged() -> None:
    async with serving() as served:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "user": CANARY, "stop": [CANARY]}
        await served.post("/v1/chat/completions", chat)
        await served.stream("/v1/chat/completions", {**chat, "stream": True})
        await served.post("/v1/chat/completions", {**chat, CANARY: 1})
        await served.post("/v1/chat/completions", {**chat, "model": CANARY})
        await served.post("/v1/chat/completions", ('{"' + CANARY).encode())
        await served.client.get(f"/{CANARY}", params={CANARY: CANARY}, headers={"x-" + CANARY: CANARY})
        await served.client.get("/health", headers={"host": CANARY})
        await served.client.get("/v1/models", headers={"authorization": f"Bearer {CANARY}"})
        served.workbench.fail["generate"] = RuntimeError(CANARY)  # type: ignore[assignment]
        broken = await served.post("/v1/chat/completions", chat)
        assert broken.status_code == 500
        assert CANARY not in broken.text
        assert len(served.log) >= 9
        assert not [line for line in served.log if CANARY in line or SECRET in line]
        assert any("RuntimeError at support.scripted_workbench" in line for line in served.log)


async def test_the_log_has_ids_sizes_and_timings() -> None:
    async with serving() as served:
        answer = await served.post("/v1/chat/completions", CHAT)
        line = served.log[-1]
        assert answer.headers["x-request-id"].removeprefix("req_") in line
        for part in ("127.0.0.1 key=ops POST /v1/chat/completions 200", f"model={MODEL}", "prompt=9", "ttft="):
            assert part in line


def test_a_flood_is_counted_instead_of_written() -> None:
    events: list[Event] = []
    now = [100.0]
    log = RequestLog(events.append, clock=lambda: now[0])
    record = Record(id="x", client="127.0.0.1", route="-", status=404, seconds=0.001)
    for _ in range(1000):
        log.add(record)
    assert len(events) == LINES_PER_S
    now[0] = 101.0
    log.add(record)
    texts = [event.text for event in events[-2:] if isinstance(event, LogLine)]
    assert texts[0] == f"{1000 - LINES_PER_S} more requests in one second"
    assert " 404 " in texts[1]
