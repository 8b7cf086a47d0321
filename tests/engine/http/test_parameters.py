"""Parameters at their extremes: refused with a reason or passed on in range, never a 5xx (S05, F40 to F44, F54)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.engine import generation
from lathe.engine.generation import GenerationRequest
from lathe.engine.http import wire
from lathe.engine.http.routes import ROUTES
from support.hostile_requests import NAUGHTY as STRINGS
from support.hostile_requests import RAW_EXTREMES, bases, fields
from support.http_kit import MODEL, Served, serving
from support.json_corpus import INVALID

BASES = bases(MODEL)


def in_range(request: GenerationRequest) -> None:
    """What reached the engine keeps every documented range."""
    generation.check(request)
    for name in request.sampling.__struct_fields__:
        value = getattr(request.sampling, name)
        assert not isinstance(value, float) or math.isfinite(value), name


async def send(served: Served, path: str, base: dict[str, Any], name: str, raw: str) -> int:
    """Send a body with one member replaced by raw JSON text; return the status, which is never a 5xx of a bug."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in base.items() if key != name]
    body = "{" + ", ".join([*parts, f"{json.dumps(name)}: {raw}"]) + "}"
    answer = await served.post(path, body.encode())
    assert answer.status_code in (200, 400, 404), (path, name, raw, answer.status_code, answer.text[:300])
    if answer.status_code == 400:
        assert "error" in answer.json()
    return answer.status_code


@pytest.mark.parametrize("path", BASES)
async def test_every_parameter_at_every_extreme(path: str) -> None:
    async with serving() as served:
        for name in fields(path):
            for raw in RAW_EXTREMES:
                served.workbench.calls.clear()
                await send(served, path, BASES[path], name, raw)
                for call in served.workbench.calls:
                    if call[0] == "generate":
                        in_range(call[1])
        assert served.server.state.errors_total == 0


async def test_template_variables_at_every_extreme() -> None:
    async with serving() as served:
        for path in ("/v1/chat/completions", "/apply-template"):
            for raw in RAW_EXTREMES:
                await send(served, path, BASES[path], "chat_template_kwargs", f'{{"depth": {raw}}}')
            assert await send(served, path, BASES[path], "chat_template_kwargs", f'{{"depth": {2**70}}}') == 400


async def test_ollama_options_at_every_extreme() -> None:
    from lathe.engine.http.ollama_in import OllamaOptions

    async with serving() as served:
        for field in OllamaOptions.__struct_fields__:
            for raw in RAW_EXTREMES:
                await send(served, "/api/chat", BASES["/api/chat"], "options", f'{{"{field}": {raw}}}')


async def test_many_and_long_things_are_refused() -> None:
    async with serving() as served:
        chat = "/v1/chat/completions"
        for name, value in (
            ("stop", ["x"] * 17), ("stop", ["x" * 257]), ("stop", [""]), ("stop", "x" * 1_000_000),
            ("logit_bias", {str(i): 1 for i in range(1025)}), ("logit_bias", {"x": 1}), ("logit_bias", {"-1": 1}),
            ("logit_bias", {"1": 1e10}), ("logit_bias", [[1, 2, 3]]), ("n", 17), ("top_logprobs", 21),
            ("messages", []), ("messages", [{"role": "user", "content": "x"}] * 4097),
            ("tools", [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
            ("grammar", "x" * 65_537), ("json_schema", {"x": "y" * 70_000}), ("model", "m" * 513),
            ("lora", [{"id": 0, "scale": 1}] * 65), ("max_tokens", 2**31), ("messages", [{"role": "alien"}]),
        ):  # fmt: skip
            assert await send(served, chat, BASES[chat], name, json.dumps(value)) == 400, name


@pytest.mark.parametrize(
    "extra",
    [
        {"grammar": "root ::= x", "json_schema": {}},
        {"grammar": "root ::= x", "response_format": {"type": "json_object"}},
        {"json_schema": {}, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "yaml"}},
        {"top_logprobs": 2},
        {"tool_choice": "required"},
    ],
)
async def test_contradictions_are_refused(extra: dict[str, Any]) -> None:
    async with serving() as served:
        chat = "/v1/chat/completions"
        assert (await served.post(chat, BASES[chat] | extra)).status_code == 400


def test_the_documented_ranges_are_the_engine_s() -> None:
    """The bounds in the OpenAPI document and those that the engine checks are the same numbers."""
    for name, (low, high) in generation._RANGES.items():
        assert name in wire._SAME
        schema = msgspec.json.schema(wire.Sampled)["$defs"]["Sampled"]["properties"][name]
        bounds = [option for option in schema["anyOf"] if option.get("type") in ("number", "integer")]
        assert [(option["minimum"], option["maximum"]) for option in bounds] == [(low, high)], name


async def test_malformed_bodies_are_400_on_every_route() -> None:
    async with serving() as served:
        paths = [route.path for route in ROUTES if route.takes is not None]
        for place, body in enumerate(INVALID):
            path = paths[place % len(paths)]
            answer = await served.post(path, body)
            assert answer.status_code == 400, (path, body, answer.text)
        for path in paths:
            for body in (b"", b"[]", b"null", b'"x"', b"{", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 100_000):
                assert (await served.post(path, body)).status_code in (200, 400), (path, body[:20])
        assert served.server.state.errors_total == 0


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200), ("application/json; charset=utf-8", 200), ("APPLICATION/JSON", 200),
        ("application/vnd.api+json", 200), ("text/json", 200), ("application/x-www-form-urlencoded", 200),
        ("application/json; charset=utf-16", 415), ("multipart/form-data; boundary=x", 415), ("application/xml", 415),
        ("image/png", 415),
    ],
)  # fmt: skip
async def test_media_types(media_type: str, status: int) -> None:
    async with serving() as served:
        answer = await served.post("/tokenize", BASES["/tokenize"], headers={"content-type": media_type})
        assert answer.status_code == status


NAUGHTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(STRINGS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | NAUGHTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAUGHTY, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(BASES)), st.data()), min_size=5, max_size=5))
def test_generated_bodies_never_break_the_server(plan: list[tuple[str, st.DataObject]]) -> None:
    import asyncio

    bodies = []
    for path, data in plan:
        names = st.sampled_from(fields(path)) | NAUGHTY
        bodies.append((path, BASES[path] | data.draw(st.dictionaries(names, VALUES, max_size=3))))

    async def run() -> None:
        async with serving() as served:
            for path, body in bodies:
                answer = await served.client.post(
                    path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
                )
                assert answer.status_code in (200, 400, 404), (path, body, answer.text)
            assert served.server.state.errors_total == 0

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(NAUGHTY)
def test_any_text_can_be_asked_and_comes_back_well_formed(text: str) -> None:
    import asyncio

    async def run() -> None:
        async with serving() as served:
            served.workbench.answer = text or "x"
            for stream in (False, True):
                body = BASES["/v1/chat/completions"] | {
                    "messages": [{"role": "user", "content": text}], "stream": stream, "max_tokens": None,
                }  # fmt: skip
                answer = await served.post("/v1/chat/completions", body)
                assert answer.status_code == 200, answer.text
                if stream:
                    events = [part for part in answer.text.split("\n\n") if part]
                    assert all(part.startswith("data: ") for part in events), events
                    assert events[-1] == "data: [DONE]"

    asyncio.run(run())


@pytest.mark.shared
async def test_the_big_list_of_naughty_strings(shared_data: Path) -> None:
    (path,) = (shared_data / "robustness" / "blns").glob("*.json")
    async with serving() as served:
        for text in json.loads(path.read_text("utf-8")):
            messages = [{"role": "user", "content": text}]
            answer = await served.post("/v1/chat/completions", BASES["/v1/chat/completions"] | {"messages": messages})
            assert answer.status_code == 200, text
            for body in ({"stop": text}, {"model": text}, {text: 1}, {"grammar": text}, {"user": text}):
                answer = await served.post("/v1/chat/completions", BASES["/v1/chat/completions"] | body)
                assert answer.status_code in (200, 400, 404), (text, body)
        assert served.server.state.errors_total == 0
