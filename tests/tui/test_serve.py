"""The Serve place: first use, keys, models, requests, pages of short terminals; and its views as pure values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lathe.engine.events import LogLine
from lathe.engine.states import KeyUse, ServerOptions, ServerState
from lathe.engine.workbench import ApiKey
from lathe.tui import glyphs
from lathe.tui.screens import serve_forms
from lathe.tui.views import serve as view
from lathe.tui.widgets.columns import lay_out
from lathe.tui.widgets.grid import GAP, LEAD, Grid
from support.screens import compare, running, screen_lines, screen_text, tick, until
from support.scripted_workbench import ScriptedWorkbench

REPLACE = msgspec.structs.replace
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tui"
SIZES = [(80, 24), (120, 40), (160, 50)]


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def text_of(lines: list[list[tuple[str, str]]]) -> str:
    return "\n".join("".join(text for text, _ in line) for line in lines)


def served(bench: ScriptedWorkbench, **fields: object) -> ScriptedWorkbench:
    """A bench whose API runs."""
    state = {"running": True, "url": "http://127.0.0.1:8321", "started_at": bench.now - 90} | fields
    bench.server = ServerState(**state)  # type: ignore[arg-type]
    return bench


# -- first use --------------------------------------------------------------------------------------------------------
async def test_the_first_start_makes_the_first_key_and_shows_how_to_use_it() -> None:
    bench = ScriptedWorkbench()
    bench.tokens.clear()
    async with running(bench, mode="serve", size=(120, 40)) as (app, pilot, bench):
        await pilot.press("s")
        await until(pilot, lambda: "Start the HTTP API" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "Key default" in screen_text(app))
        text = screen_text(app)
        assert "export LATHE_API_KEY=lathe-" in text
        assert "curl http://127.0.0.1:8321/v1/models" in text
        await pilot.press("y")
        assert app.clipboard.startswith("export LATHE_API_KEY=lathe-")
        await pilot.press("escape")
        await until(pilot, lambda: "serving" in screen_text(app) and "token, 1 key" in screen_text(app))
        assert [call[0] for call in bench.calls if call[0] in ("start_server", "make_key")] == [
            "start_server",
            "make_key",
        ]


async def test_with_a_key_a_start_makes_no_other() -> None:
    async with running(mode="serve", size=(120, 40)) as (app, pilot, bench):
        await until(pilot, lambda: "ops" in screen_text(app))
        await pilot.press("s", "enter")
        await until(pilot, lambda: bench.server.running)
        await tick(app, pilot, bench)
        assert len(app.screen_stack) == 1
        assert list(bench.tokens) == ["ops"]


async def test_keys_have_scopes_models_and_limits() -> None:
    async with running(mode="serve", size=(120, 40)) as (app, pilot, bench):
        await pilot.press("n")
        await until(pilot, lambda: "New API key" in screen_text(app))
        await pilot.press(*"ci", "down", "right", "down", *"m1", "down", *"60", "enter")
        await until(pilot, lambda: "Key ci" in screen_text(app))
        (made,) = [call[1] for call in bench.calls if call[0] == "make_key"]
        assert (made.name, made.scopes, made.models, made.requests_per_minute) == ("ci", ("infer",), ("m1",), 60)
        assert "# may: infer" in screen_text(app)


# -- what it shows ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
async def test_models_requests_keys_and_log_are_to_be_seen(size: tuple[int, int]) -> None:
    bench = served(ScriptedWorkbench(), keys=(KeyUse(name="ops", requests=12_345, tokens=56_000, active=2),))
    async with running(bench, mode="serve", size=size) as (app, pilot, bench):
        bench.emit(
            LogLine(ts=bench.now, level="info", source="http", text=f"{'a' * 32} 127.0.0.1 key=ops POST /x 200 8.5ms")
        )
        await tick(app, pilot, bench)
        short = size[1] < 30
        seen = screen_text(app)
        for word in ("serving", "http://127.0.0.1:8321", "qwen3-8b-q4_k_m", "r-91", "decode"):
            assert word in seen, word
        if short:
            assert "/v1/chat/completions" not in seen
            await pilot.press("v")
            await pilot.pause()
        seen = screen_text(app)
        for word in ("ops", "12.3k", "/v1/chat"):
            assert word in seen, word
        if short:
            await pilot.press("v")
            await pilot.pause()
        assert "200 8.5ms ops /x from=127.0.0.1 id=aaaaaaaa" in screen_text(app)
        if short:
            await pilot.press("v")
            await until(pilot, lambda: "r-91" in screen_text(app))
        else:
            assert "generation" in seen or "out " in seen


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_place_looks_as_it_did(size: tuple[int, int]) -> None:
    """Below the navigation, whose places are others' affair; LATHE_GOLDEN=write renews the files."""
    keys = (KeyUse(name="ops", requests=12_345, tokens=56_000, active=2, last_at=1_795_183_300.0),)
    bench = served(ScriptedWorkbench(), keys=keys, requests_total=1300, requests_active=3, rejected_total=2)
    async with running(bench, mode="serve", size=size, theme="lathe-dark", glyphs="unicode") as (app, pilot, bench):
        for number in range(6):
            line = f"{'abcdef'[number] * 32} 127.0.0.1 key=ops POST /v1/chat/completions 200 812.1ms in=84B out=5121B"
            bench.emit(LogLine(ts=bench.now, level="info", source="http", text=line))
        await tick(app, pilot, bench)
        await until(pilot, lambda: "ops" in screen_text(app) or size[1] < 30)
        shown = "\n".join(screen_lines(app)[2:]) + "\n"
        compare(GOLDEN / f"serve-{size[0]}x{size[1]}.txt", shown)


def test_names_of_models_can_be_told_apart_at_80_columns() -> None:
    rows = view.model_rows(asyncio.run(ScriptedWorkbench().snapshot()), view.Speeds(), 0.0, glyphs.UNICODE)
    natural = [max(len(c.title), c.least) for c in view.MODEL_COLUMNS]
    natural[0] = max(len(str(row.cells[0])) for row in rows)
    room = dict(lay_out(view.MODEL_COLUMNS, natural, 78, LEAD, GAP))
    assert room[0] >= min(natural[0], 20)
    shown = {view.MODEL_COLUMNS[index].title for index in room}
    assert {"model", "state", "slots", "queue", "tok/s", "KV"} <= shown


async def test_live_requests_stay_in_sight() -> None:
    async with running(mode="serve") as (app, pilot, bench):
        grid = app.screen.query_one("#request-list", Grid)
        await until(pilot, lambda: grid.cursor == "r-91")
        kept = bench.requests
        for number in range(100, 130):
            row = REPLACE(kept["r-91"], id=f"r-{number}")
            bench.requests = {row.id: row, **bench.requests}
        await tick(app, pilot, bench)
        await until(pilot, lambda: grid.cursor == "r-129" and "r-129" in screen_text(app))
        await pilot.press("j")
        bench.requests = {"r-200": REPLACE(kept["r-91"], id="r-200"), **bench.requests}
        await tick(app, pilot, bench)
        assert grid.cursor == "r-128", "somebody reads: nothing moves any more"


async def test_pages_belong_to_short_terminals() -> None:
    async with running(mode="serve", size=(120, 40)) as (app, pilot, _):
        before = screen_text(app)
        await pilot.press("v")
        await pilot.pause()
        assert "view" not in before.splitlines()[-1]
        assert "API keys" in screen_text(app) and "Requests" in screen_text(app)


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        ("#model-list", "KV cache"),
        ("#request-list", "first token"),
        ("#key-list", "limits"),
        ("#endpoint-list", "curl"),
    ],
)
async def test_enter_shows_all_about_a_row(grid: str, word: str) -> None:
    async with running(served(ScriptedWorkbench()), mode="serve", size=(160, 50)) as (app, pilot, _):
        await until(pilot, lambda: "ops" in screen_text(app))
        app.screen.query_one(grid, Grid).focus()
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        if "Which model?" in screen_text(app):
            await pilot.press("enter")
        await until(pilot, lambda: word in screen_text(app))


async def test_a_busy_model_is_unloaded_after_a_question() -> None:
    async with running(served(ScriptedWorkbench()), mode="serve", size=(120, 40)) as (app, pilot, bench):
        app.screen.query_one("#model-list", Grid).focus()
        await pilot.press("u")
        await pilot.pause()
        if len(app.screen_stack) == 2:
            assert "finished first" in screen_text(app)
            await pilot.press("y")
        await until(pilot, lambda: any(call[0] == "unload" for call in bench.calls))


async def test_requests_are_cancelled_under_the_cursor() -> None:
    async with running(served(ScriptedWorkbench()), mode="serve", size=(120, 40)) as (app, pilot, bench):
        app.screen.query_one("#request-list", Grid).select("r-91")
        await pilot.press("x")
        await until(pilot, lambda: ("cancel_request", "r-91") in bench.calls)


# -- pure views -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "keys", "words"),
    [
        ({}, 2, "token, 2 keys   from this machine"),
        ({}, 0, "no key yet, so nobody: n makes one"),
        ({"require_token": False}, 0, "no token: everyone on this machine"),
        ({"allow_remote": True, "tls_certificate": "c"}, 1, "from other machines   TLS"),
        ({"unix_socket": "/x"}, 1, "from a socket file"),
        ({"cors_origins": ("https://a",)}, 1, "pages of https://a"),
    ],
)
async def test_the_state_says_who_may_come_in(options: dict[str, object], keys: int, words: str) -> None:
    bench = served(ScriptedWorkbench(), options=ServerOptions(**options))  # type: ignore[arg-type]
    snapshot = await bench.snapshot()
    lines = view.server_lines(snapshot, keys, bench.now, ServerOptions(), 90, 6, glyphs.SETS["unicode"])
    assert words in text_of(lines)


async def test_speed_of_a_model_is_what_its_counter_gained() -> None:
    bench = ScriptedWorkbench()
    speeds = view.Speeds()
    snapshot = await bench.snapshot()
    worker = snapshot.workers[0]
    assert snapshot.sample is not None

    def at(seconds: float, generated: int) -> float | None:
        stats = REPLACE(worker.stats, generated_tokens=generated)
        assert snapshot.sample is not None
        sample = REPLACE(snapshot.sample, t=snapshot.sample.t + seconds)
        speeds.take(REPLACE(snapshot, workers=(REPLACE(worker, stats=stats),), sample=sample))
        return speeds.of(worker)

    assert [at(0, 100), at(1, 150), at(3, 250), at(4, 250)] == [None, 50.0, 50.0, 50.0]
    assert at(7, 250) == 0.0
    speeds.take(REPLACE(snapshot, workers=()))
    assert speeds.of(worker) is None


def test_the_log_shows_the_server_s_lines_and_short_ids() -> None:
    lines = [
        LogLine(ts=0.0, level="info", source="engine", text="not this"),
        LogLine(ts=0.0, level="warn", source="http", text=f"{'b' * 32} 127.0.0.1 key=- GET /x 404 1.2ms in=0B"),
        LogLine(ts=0.0, level="info", source="http", text="listening at \x1b[31mhttp://x"),
    ]
    text = text_of(view.log_lines(lines, 80, 5, glyphs.SETS["ascii"]))
    assert "not this" not in text and "\x1b" not in text
    assert "404 1.2ms - /x in=0B from=127.0.0.1 id=bbbbbbbb" in text
    assert "Never what it said" in text_of(view.log_lines([], 100, 5, glyphs.SETS["ascii"]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"host": "0.0.0.0"}, "allow other machines"),
        ({"host": "0.0.0.0", "remote": "yes"}, ""),
        ({"host": "0.0.0.0", "remote": "yes", "access": "none"}, "only this machine"),
        ({"origins": "*"}, "name the web pages"),
        ({"certificate": "a"}, "TLS needs"),
        ({"host": " "}, "give an address"),
    ],
)
def test_the_form_refuses_what_the_server_would(change: dict[str, str], problem: str) -> None:
    values = {
        "host": "127.0.0.1", "port": "1", "models": "", "access": "required", "remote": "no", "origins": "",
        "certificate": "", "key": "",
    } | change  # fmt: skip
    found = serve_forms.start_check(values)
    assert (problem in found) if problem else not found


def test_forms_have_their_commands() -> None:
    values = {
        "host": "::1", "port": "0", "models": "a b", "access": "none", "remote": "no", "origins": "https://x",
        "certificate": "c", "key": "k",
    }  # fmt: skip
    assert serve_forms.start_command(serve_forms.server_options(values)) == (
        "lathe serve a b --host ::1 --port 0 --no-token --cors-origin https://x"
        " --tls-certificate c --tls-key k --detach"
    )
    key = ApiKey(name="ci", created_at=0.0, scopes=("infer",), models=("m",), tokens_per_minute=5)
    assert serve_forms.key_command(key) == "lathe keys make ci --scope infer --model m --tokens-per-minute 5"
