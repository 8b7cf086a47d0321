"""The HTTP API as lines: its state, its endpoints, an example call of each. Pure."""

from __future__ import annotations

import json
import shlex

import msgspec
from lathe.engine.states import ServerOptions, Snapshot
from lathe.engine.workbench import ApiKey
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Row
from lathe.tui.widgets.paint import Line, crop, wrap


class Endpoint(msgspec.Struct, frozen=True):
    """One address of the API."""

    method: str
    path: str
    about: str
    body: str = ""
    """JSON of an example, `MODEL` standing for a model's name."""


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        "chat, streaming",
        '{"model":"MODEL","stream":true,"messages":[{"role":"user","content":"Hello"}]}',
    ),
    Endpoint("POST", "/v1/completions", "plain text", '{"model":"MODEL","prompt":"def add(a, b):","max_tokens":32}'),
    Endpoint("POST", "/v1/responses", "OpenAI responses", '{"model":"MODEL","input":"Hello"}'),
    Endpoint(
        "POST",
        "/v1/messages",
        "Anthropic messages",
        '{"model":"MODEL","max_tokens":64,"messages":[{"role":"user","content":"Hello"}]}',
    ),
    Endpoint("POST", "/v1/embeddings", "vectors", '{"model":"MODEL","input":["a text"]}'),
    Endpoint("POST", "/v1/rerank", "relevance", '{"model":"MODEL","query":"a question","documents":["a text"]}'),
    Endpoint(
        "POST", "/v1/score", "log-likelihood", '{"model":"MODEL","context":"2 + 2 =","continuations":[" 4"," 5"]}'
    ),
    Endpoint("POST", "/api/chat", "Ollama clients", '{"model":"MODEL","messages":[{"role":"user","content":"Hello"}]}'),
    Endpoint("POST", "/tokenize", "token ids", '{"model":"MODEL","content":"Hello"}'),
    Endpoint(
        "POST",
        "/apply-template",
        "the prompt as sent",
        '{"model":"MODEL","messages":[{"role":"user","content":"Hello"}]}',
    ),
    Endpoint("GET", "/v1/models", "what is offered"),
    Endpoint("GET", "/health", "alive, public"),
    Endpoint("GET", "/metrics", "Prometheus"),
    Endpoint("GET", "/slots", "running requests"),
)
ENDPOINT_COLUMNS = (
    Column("", least=4, most=4),
    Column("endpoint", least=12, most=24, flex=True),
    Column("for", rank=1, least=10, most=24),
)
KEY_COLUMNS = (
    Column("key", least=6, most=24, flex=True, sort="name"),
    Column("made", rank=1, least=10, most=16),
    Column("models", rank=2, least=6, most=20),
    Column("per minute", ">", least=10, most=18),
)


def endpoint_rows() -> list[Row]:
    """The endpoints."""
    return [
        Row(e.path, ((e.method, "dim"), e.path, (e.about, "dim")), {"path": e.path, "about": e.about})
        for e in ENDPOINTS
    ]


def key_rows(keys: list[ApiKey]) -> list[Row]:
    """The tokens, without their secrets."""
    return [
        Row(
            key.name,
            (key.name, (formats.moment(key.created_at), "dim"), (", ".join(key.models) or "all", "dim"), _limits(key)),
            {"name": key.name},
        )
        for key in keys
    ]


def _limits(key: ApiKey) -> str:
    parts = []
    if key.requests_per_minute is not None:
        parts.append(f"{formats.count(key.requests_per_minute)} req")
    if key.tokens_per_minute is not None:
        parts.append(f"{formats.count(key.tokens_per_minute)} tok")
    return " ".join(parts) or "no limit"


def server_lines(
    snapshot: Snapshot, now: float, wanted: ServerOptions, width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    """State, traffic, what is offered."""
    server = snapshot.server
    lines: list[Line] = []
    if server.running:
        token = "token required" if server.options.require_token else "no token: everyone on this machine may ask"
        up = formats.duration(now - server.started_at) if server.started_at else formats.NONE
        lines.append(
            [
                (f"{glyphs.good} serving  ", "good"),
                (one_line(server.url or ""), "value"),
                (f"   {token}", "dim" if server.options.require_token else "warn"),
                (f"   up {up}", "dim"),
            ]
        )
        lines.append(
            [
                ("requests ", "dim"),
                (formats.count(server.requests_total), "text"),
                ("   active ", "dim"),
                (str(server.requests_active), "value"),
                ("   refused ", "dim"),
                (formats.count(server.rejected_total), "text"),
                ("   errors ", "dim"),
                (formats.count(server.errors_total), "bad" if server.errors_total else "text"),
            ]
        )
    else:
        lines.append(
            [
                (f"{glyphs.idle} not serving", "dim"),
                ("   s starts it on ", "dim"),
                (f"http://{wanted.host}:{wanted.port}", "text"),
                (", with a token", "dim"),
            ]
        )
        if server.failure is not None:
            lines += wrap(f"{server.failure.message}  {server.failure.hint}", width, "bad", 2)
    offered = (
        ", ".join(server.options.models)
        if server.running and server.options.models
        else "every registered model, loaded on demand"
    )
    lines.append([("offers ", "dim"), (crop(offered, width - 7, glyphs.ellipsis), "text")])
    for worker in snapshot.workers:
        info = worker.info
        if info is None:
            lines.append(
                [(f"{glyphs.busy} ", "accent"), (one_line(worker.name, 40), "text"), (f"  {worker.phase}", "dim")]
            )
            continue
        stats = worker.stats
        lines.append(
            [
                (f"{glyphs.good} ", "good"),
                (crop(worker.name, 28, glyphs.ellipsis), "value"),
                (f"  slots {stats.running}/{info.slots}", "text"),
                (f"  ctx {formats.tokens(info.context)}", "dim"),
                (f"  KV {formats.percent(stats.kv_used / stats.kv_tokens if stats.kv_tokens else None)}", "dim"),
                (f"  {info.backend}  pid {info.pid}", "dim"),
            ]
        )
    if not snapshot.workers:
        lines.append([("no model in memory yet: the first request loads one", "dim")])
    return lines[:height]


def curl(endpoint: Endpoint, url: str, model: str, *, token: bool) -> str:
    """An example call for a shell; the token comes from a variable, never from the text."""
    words = [
        "curl",
        *(["-N"] if '"stream":true' in endpoint.body else []),
        shlex.quote(url.rstrip("/") + endpoint.path),
    ]
    if token and endpoint.path != "/health":
        words.append('-H "Authorization: Bearer $LATHE_API_KEY"')
    if endpoint.body:
        body = endpoint.body.replace('"MODEL"', json.dumps(model))
        words += ["-H 'Content-Type: application/json'", "-d " + shlex.quote(body)]
    return " ".join(words)
