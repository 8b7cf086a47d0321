"""Logged bodies: only where asked for, masked, private, bounded, and never at the cost of an answer (S14, F24)."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.http import body_log
from lathe.engine.http.body_log import BodyLog, redact
from lathe.engine.http.server import HttpServer
from lathe.engine.states import ServerOptions
from support.http_kit import MODEL, SECRET, HeldWorkbench, Ring, Served, key
from support.waiting import until

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "mail me at ann@example.org"}]}


async def served_with(path: Path | None, events: list[Any]) -> Served:
    workbench = HeldWorkbench(answer="call +49 228 123456-7")
    server = HttpServer(workbench, Ring(key("ops")), events.append, bodies=lambda: path)
    await server.start(ServerOptions(port=0))
    return Served(server, workbench, events)


async def stop(served: Served) -> None:
    await served.client.aclose()
    await served.server.stop(drain_s=1)


async def test_S14_bodies_are_logged_only_where_asked_for_and_masked(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    for wanted in (None, path):
        served = await served_with(wanted, [])
        await served.post("/v1/chat/completions", CHAT)
        await served.stream("/v1/chat/completions", CHAT | {"stream": True})
        await served.post("/v1/chat/completions", {"nope": 1})
        await stop(served)
        assert path.exists() == (wanted is not None)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(row["key"], row["route"], row["status"]) for row in rows] == [
        ("ops", "POST /v1/chat/completions", status) for status in (200, 200, 400)
    ]
    assert "mail me at [EMAIL]" in rows[0]["asked"]
    said = json.loads(rows[0]["answered"])["choices"][0]["message"]["content"]
    assert said in ("call [NUMBER]", "call [PHONE]"), "with or without the library that knows telephone numbers"
    assert rows[1]["answered"].rstrip().endswith("data: [DONE]")
    assert "nope" in rows[2]["asked"]
    text = path.read_text("utf-8")
    assert SECRET not in text and "ann@" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"key {SECRET} here", "key [KEY] here"),
        ("Authorization: Bearer abcdefgh123", "Authorization: [KEY]"),
        ("card 4111 1111 1111 1111.", "card [NUMBER]."),
        ("tel. (0228) 123-4567", "tel. ([NUMBER]"),
        ('{"logprob":-0.6101619225835773,"n":123456}', '{"logprob":-0.6101619225835773,"n":123456}'),
    ],
)
def test_what_is_masked(text: str, masked: str) -> None:
    assert redact(text).replace("[CARD]", "[NUMBER]").replace("[PHONE]", "[NUMBER]") == masked


async def test_S14_the_file_is_bounded_in_size_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_log, "LOG_BYTES", 2000)
    path, now = tmp_path / "b.jsonl", [1000.0]
    log = BodyLog(path, lambda text: None, clock=lambda: now[0])
    for _ in range(30):
        log.add(serial="x", key="k", route="r", status=200, asked=b"a" * 500, answered=b"b" * 500)
        await log.close()
    old = tmp_path / "b.old.jsonl"
    assert path.stat().st_size <= 3300 and old.stat().st_size <= 3300
    now[0] += body_log.KEEP_S + 1
    log.add(serial="new", key="k", route="r", status=200, asked=b"", answered=b"")
    await log.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["new"]


async def test_long_bodies_are_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    log = BodyLog(path, lambda text: None)
    log.add(serial="x", key="k", route="r", status=200, asked=b"a" * (body_log.BODY_BYTES + 7), answered=b"\xff")
    await log.close()
    row = json.loads(path.read_text("utf-8"))
    assert row["asked"].endswith("[7 bytes more]") and row["answered"] == "\ufffd"


async def test_F24_a_log_that_cannot_be_written_costs_its_lines_and_nothing_else(tmp_path: Path) -> None:
    events: list[Any] = []
    served = await served_with(tmp_path / "missing" / "b.jsonl", events)
    for _ in range(3):
        assert (await served.post("/v1/chat/completions", CHAT)).status_code == 200
    await until(lambda: any("no longer logged" in getattr(event, "text", "") for event in events))
    assert sum("no longer logged" in getattr(event, "text", "") for event in events) == 1
    await stop(served)


async def test_a_slow_disk_drops_lines_instead_of_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()
    write = BodyLog._write

    def slow(self: BodyLog, entries: list[body_log.Exchanged]) -> None:
        gate.wait(10)
        write(self, entries)

    monkeypatch.setattr(BodyLog, "_write", slow)
    log = BodyLog(tmp_path / "b.jsonl", lambda text: None)
    for number in range(500):
        log.add(serial=str(number), key="k", route="r", status=200, asked=b"a", answered=b"b")
        await asyncio.sleep(0)
    gate.set()
    await log.close()
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) < 200
