"""`/openapi.json`: the API described from the very structs that decode it, so that it cannot say something else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.release import RELEASE

if TYPE_CHECKING:
    from lathe.engine.http.routes import Route

_REFUSALS = {
    "400": "The request is wrong, or asks what the model cannot do; the message says how.",
    "401": "A valid key is required.",
    "403": "This key, Host or origin may not.",
    "404": "No such model or route.",
    "405": "The route takes other methods.",
    "408": "The request arrived too slowly.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "This server does not serve that Host.",
    "429": "Over a quota; Retry-After says when to come back.",
    "431": "The head is too large.",
    "500": "A bug of this server.",
    "503": "Overloaded, loading or shutting down; Retry-After says when to come back.",
    "504": "A deadline passed.",
}


async def document(call: Call) -> Reply:
    """GET /openapi.json."""
    from lathe.engine.http.routes import ROUTES  # the table has a row for this handler

    return Json(describe(ROUTES))


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a route table."""
    kinds = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = list(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lathe", "version": RELEASE, "description": "OpenAI, Anthropic and Ollama dialects."},
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
        "paths": paths,
    }


def _operation(route: Route, by_kind: list[tuple[Any, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer."}
    if route.gives is not None:
        answer["content"] = {"application/json": {"schema": _schema(route.gives, by_kind)}}
    if "stream" in getattr(route.takes, "__struct_fields__", ()):
        kind = "application/x-ndjson" if route.path.startswith("/api/") else "text/event-stream"
        answer["content"][kind] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__
        + "_"
        + route.path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "summary": (route.handler.__doc__ or "").splitlines()[0],
        "x-scope": route.auth,
        "responses": {"200": answer} | {status: {"description": text} for status, text in _REFUSALS.items()},
    }
    if route.auth == "public":
        operation["security"] = []
    if route.takes is not None:
        content = {"application/json": {"schema": _schema(route.takes, by_kind)}}
        operation["requestBody"] = {"required": True, "content": content}
    if (argument := re.search(r"\{([a-z]+)\}", route.path)) is not None:
        place = {"name": argument[1], "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [place]
    return operation


def _schema(kind: Any, by_kind: list[tuple[Any, Any]]) -> Any:
    return next(schema for known, schema in by_kind if known is kind)
