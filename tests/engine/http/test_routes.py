"""The route table: every route has an auth class that this test lists, and holds it (S17)."""

from __future__ import annotations

import re

import pytest
from lathe.engine.http.routes import ROUTES, TABLE, Route
from support.http_kit import SECRET, key, serving

CLASSES = {
    "public": {"GET /health", "GET /v1/health"},
    "infer": {
        "GET /v1/models", "GET /v1/models/{model}", "POST /v1/chat/completions", "POST /v1/completions",
        "POST /v1/embeddings", "POST /v1/responses", "POST /v1/rerank", "POST /v1/score", "POST /v1/messages",
        "POST /v1/messages/count_tokens", "POST /completion", "POST /infill", "POST /tokenize",
        "POST /detokenize", "POST /apply-template", "POST /v1/feedback",
        "GET /tokenizer_info", "GET /api/version", "GET /api/tags", "GET /api/ps", "POST /api/show", "POST /api/chat",
        "POST /api/generate", "POST /api/embed", "POST /api/embeddings",
        "GET /v1/stores", "GET /v1/stores/{store}", "POST /v1/stores/{store}/search",
    },
    "observe": {"GET /metrics", "GET /props", "GET /slots", "GET /lora-adapters", "GET /openapi.json"},
    "admin": {"POST /lora-adapters"},
}  # fmt: skip


def path_of(route: Route) -> str:
    """A path that leads to a route."""
    return re.sub(r"\{[a-z]+\}", "x", route.path)


def test_every_route_is_listed_with_its_class() -> None:
    found: dict[str, set[str]] = {}
    for route in ROUTES:
        found.setdefault(route.auth, set()).add(route.name)
    assert found == CLASSES


def test_routes_that_make_the_engine_work_count_against_quotas() -> None:
    for route in ROUTES:
        if route.method == "POST" and route.path not in ("/lora-adapters", "/api/show"):
            assert route.work, route.name


def test_paths_are_matched_exactly() -> None:
    for path in ("/v1/models/", "/health/", "//health", "/HEALTH", "", "*", "/docs"):
        assert TABLE.match(path) is None, path
    match = TABLE.match("/v1/models/org/name:tag")
    assert match is not None
    assert match.argument == "org/name:tag"
    for path, names, argument in (
        ("/v1/stores/a/search", {"POST /v1/stores/{store}/search"}, "a"),
        ("/v1/stores/search", {"GET /v1/stores/{store}"}, "search"),
        ("/v1/stores//search", {"GET /v1/stores/{store}"}, "/search"),
    ):
        match = TABLE.match(path)
        assert match is not None and match.argument == argument
        assert {route.name for route in match.methods.values()} == names


async def test_no_route_but_health_answers_without_a_key() -> None:
    async with serving() as served:
        del served.client.headers["authorization"]
        bodies = set()
        for route in ROUTES:
            answer = await served.client.request(route.method, path_of(route))
            if route.auth == "public":
                assert answer.status_code == 200
                assert answer.json() == {"status": "ok"}
            else:
                assert answer.status_code == 401, route.name
                assert answer.headers["www-authenticate"] == "Bearer"
                if not route.path.startswith(("/api/", "/v1/messages")):
                    bodies.add(answer.content)
        assert len(bodies) == 1
        # Strangers do not learn which routes there are.
        assert (await served.client.get("/nothing/here")).status_code == 401
        assert (await served.client.delete("/v1/models")).status_code == 401


@pytest.mark.parametrize("scope", ["infer", "observe", "admin"])
async def test_a_key_opens_the_routes_of_its_scope_alone(scope: str) -> None:
    async with serving(keys=(key("k", scopes=(scope,)),)) as served:
        for route in ROUTES:
            body = b"" if route.method == "GET" else b"{}"
            answer = await served.client.request(route.method, path_of(route), content=body or None)
            assert (answer.status_code == 403) == (route.auth not in ("public", scope)), route.name


async def test_unknown_paths_and_methods_with_a_key() -> None:
    async with serving() as served:
        assert (await served.client.get("/nothing/here")).status_code == 404
        answer = await served.client.put("/v1/chat/completions", content=b"{}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        answer = await served.client.get("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        head = await served.client.head("/health")
        assert (head.status_code, head.content) == (200, b"")


async def test_keys_in_the_url_do_not_count() -> None:
    async with serving() as served:
        del served.client.headers["authorization"]
        for name in ("key", "api_key", "token", "access_token"):
            assert (await served.client.get("/v1/models", params={name: SECRET})).status_code == 401


async def test_errors_speak_the_dialect_of_the_path() -> None:
    async with serving() as served:
        openai = (await served.post("/v1/chat/completions", {})).json()
        assert openai["error"] == {
            "message": "missing required parameter 'messages'", "type": "invalid_request_error", "param": "messages",
            "code": "missing_required_parameter",
        }  # fmt: skip
        anthropic = await served.post("/v1/messages", {})
        assert anthropic.json()["type"] == "error"
        assert anthropic.json()["error"]["type"] == "invalid_request_error"
        assert anthropic.json()["request_id"] == anthropic.headers["request-id"]
        ollama = (await served.post("/api/chat", {"nope": 1})).json()
        assert list(ollama) == ["error"]
        assert isinstance(ollama["error"], str)
