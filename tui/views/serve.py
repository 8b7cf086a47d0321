"""The HTTP API as lines: its state, models, endpoints and keys, an example call of each, its log. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import PurePath

import msgspec
from lathe.engine.events import LogLine
from lathe.engine.states import KeyUse, ServerOptions, ServerState, Snapshot, WorkerState
from lathe.engine.workbench import ApiKey
from lathe.store.keys import DEFAULT_SCOPES
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import advice
from lathe.tui.text import line as one_line
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Row
from lathe.tui.widgets.paint import Line, bar, cell, crop, graph, spread, wrap


class Endpoint(msgspec.Struct, frozen=True):
    """One address of the API."""

    method: str
    path: str
    about: str
    body: str = ""
    """JSON of an example, `MODEL` standing for a model's name."""


CurlUse = Callable[[Endpoint, str, bool], None]
"""What is done with an example call: (endpoint, text, whether it needs a token)."""

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
    Endpoint("POST", "/v1/feedback", "reviews", '{"name":"quality","label":"accept","id":"chatcmpl-..."}'),
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
    Column("scopes", rank=3, least=6, most=20),
    Column("models", rank=4, least=6, most=20),
    Column("limits", rank=2, least=8, most=18),
    Column("now", ">", least=3, sort="active"),
    Column("asked", ">", least=5, sort="requests"),
    Column("tokens", ">", rank=1, least=6, sort="tokens"),
    Column("last", ">", rank=5, least=5, sort="last"),
)
MODEL_COLUMNS = (
    Column("model", least=20, most=40, flex=True, sort="model"),
    Column("state", least=7, most=14, sort="state"),
    Column("slots", ">", least=5),
    Column("queue", ">", least=5, sort="queue"),
    Column("tok/s", ">", least=5, sort="speed"),
    Column("KV", ">", least=4, sort="kv"),
    Column("cached", ">", rank=1, least=6),
    Column("ctx", ">", rank=2, least=4),
    Column("memory", ">", rank=3, least=6, sort="memory"),
    Column("backend", rank=5, least=8, most=22),
    Column("restarts", ">", rank=6, least=8),
    Column("up", ">", rank=4, least=5, sort="up"),
)
_PHASE_INKS = {"ready": "good", "starting": "accent", "failed": "bad", "quarantined": "bad"}


def endpoint_rows() -> list[Row]:
    """The endpoints."""
    return [
        Row(e.path, ((e.method, "dim"), e.path, (e.about, "dim")), {"path": e.path, "about": e.about})
        for e in ENDPOINTS
    ]


def key_rows(keys: list[ApiKey], server: ServerState, now: float) -> list[Row]:
    """The tokens, without their secrets, and what came over each since the server started."""
    uses = {use.name: use for use in server.keys} if server.running else {}
    return [_key(key, uses.get(key.name, KeyUse(name=key.name)), now) for key in keys]


def _key(key: ApiKey, use: KeyUse, now: float) -> Row:
    last = formats.ago(now - use.last_at) if use.last_at is not None else formats.NONE
    cells = (
        key.name,
        (" ".join(key.scopes or DEFAULT_SCOPES), "dim"),
        (", ".join(key.models) or "all", "dim"),
        (limits(key), "dim"),
        (str(use.active) if use.active else formats.NONE, "value" if use.active else "dim"),
        formats.count(use.requests),
        formats.count(use.tokens),
        (last, "dim"),
    )
    fields: dict[str, str | float | None] = {
        "name": key.name, "active": use.active, "requests": use.requests, "tokens": use.tokens, "last": use.last_at,
    }  # fmt: skip
    return Row(key.name, cells, fields)


def key_facts(key: ApiKey, server: ServerState, now: float) -> list[tuple[str, str]]:
    """All that is known of a key."""
    use = next((use for use in server.keys if use.name == key.name), KeyUse(name=key.name))
    last = f"{formats.ago(now - use.last_at)} ago" if use.last_at is not None else formats.NONE
    return [
        ("made", formats.moment(key.created_at)),
        ("may", " ".join(key.scopes or DEFAULT_SCOPES)),
        ("models", ", ".join(key.models) or "all"),
        ("limits", limits(key)),
        ("under way", str(use.active)),
        ("asked", f"{use.requests} times since the server started"),
        ("tokens", str(use.tokens)),
        ("last", last),
        ("", "The secret is not kept, only its hash."),
    ]


def limits(key: ApiKey) -> str:
    """Quotas in a few words."""
    parts = []
    if key.requests_per_minute is not None:
        parts.append(f"{formats.count(key.requests_per_minute)} req")
    if key.tokens_per_minute is not None:
        parts.append(f"{formats.count(key.tokens_per_minute)} tok")
    return f"{' '.join(parts)}/min" if parts else "none"


class Speeds:
    """Tokens per second of each worker: what its counter gained since the last sample."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}
        self._rates: dict[int, float] = {}

    def take(self, snapshot: Snapshot) -> None:
        """Note the counters of a snapshot; counters that have not moved for three seconds stand still."""
        moment = snapshot.sample.t if snapshot.sample is not None else None
        pids = set()
        for worker in snapshot.workers:
            if worker.pid is None or moment is None:
                continue
            pids.add(worker.pid)
            made = worker.stats.generated_tokens
            at, before = self._seen.get(worker.pid, (moment, made))
            if made > before and moment > at:
                self._rates[worker.pid] = (made - before) / (moment - at)
            elif moment - at >= 3:
                self._rates[worker.pid] = 0.0
            if made != before or worker.pid not in self._seen:
                self._seen[worker.pid] = (moment, made)
        self._seen = {pid: value for pid, value in self._seen.items() if pid in pids}
        self._rates = {pid: value for pid, value in self._rates.items() if pid in pids}

    def of(self, worker: WorkerState) -> float | None:
        """The newest rate; None while unknown."""
        return self._rates.get(worker.pid) if worker.pid is not None else None


def model_rows(snapshot: Snapshot, speeds: Speeds, now: float, glyphs: Glyphs) -> list[Row]:
    """Every model in memory, on its way there, or failed."""
    return [_model(worker, speeds.of(worker), now, glyphs) for worker in snapshot.workers]


def _model(worker: WorkerState, speed: float | None, now: float, glyphs: Glyphs) -> Row:
    info, stats = worker.info, worker.stats
    sign = {"ready": glyphs.good, "failed": glyphs.bad, "quarantined": glyphs.bad}.get(worker.phase, glyphs.busy)
    word: str = "busy" if worker.phase == "ready" and stats.running else worker.phase
    if worker.phase == "starting" and worker.progress is not None:
        word = f"load {formats.percent(worker.progress)}"
    kv = stats.kv_used / stats.kv_tokens if stats.kv_tokens else None
    read = stats.prompt_tokens + stats.cached_tokens
    memory = float(sum(info.device_bytes.values())) if info is not None and info.device_bytes else None
    backend = formats.NONE
    if info is not None:
        backend = info.backend
        if info.layers is not None:
            backend += f" {info.gpu_layers}/{info.layers} GPU" if info.gpu_layers else " CPU"
    up = formats.ago(now - worker.since) if worker.since else formats.NONE
    cells = (
        worker.name,
        (f"{sign} {word}", _PHASE_INKS.get(worker.phase, "warn")),
        (f"{stats.running}/{info.slots}" if info is not None else formats.NONE, "value" if stats.running else "dim"),
        (str(stats.waiting) if stats.waiting else formats.NONE, "warn" if stats.waiting else "dim"),
        (formats.rate(speed), "value" if speed else "dim"),
        (formats.percent(kv), "warn" if kv is not None and kv > 0.95 else "text"),
        (formats.percent(stats.cached_tokens / read if read else None), "dim"),
        (formats.tokens(info.context if info is not None else None), "dim"),
        (formats.size(memory), "dim"),
        (backend, "warn" if worker.notice else "dim"),
        (str(worker.restarts), "warn" if worker.restarts else "dim"),
        (up, "dim"),
    )
    fields: dict[str, str | float | None] = {
        "model": worker.name, "state": worker.phase, "queue": stats.waiting, "speed": speed, "kv": kv,
        "memory": memory, "up": worker.since,
    }  # fmt: skip
    return Row(worker.model_id, cells, fields)


def model_facts(worker: WorkerState, now: float) -> list[tuple[str, str]]:
    """All that is known of a model in memory."""
    info, stats = worker.info, worker.stats
    facts = [("state", worker.phase), ("notice", worker.notice or formats.NONE)]
    if worker.failure is not None:
        facts.append(("last failure", advice(worker.failure.message, worker.failure.hint)))
    if info is not None:
        facts += [
            ("backend", f"{info.backend}, pid {info.pid}, {info.threads} threads"),
            ("layers on GPU", f"{info.gpu_layers} of {info.layers if info.layers is not None else formats.NONE}"),
            ("context", f"{info.context} tokens a request, {info.kv_tokens} in the KV cache, {info.slots} slots"),
            ("KV cache", f"{worker.options.kv_type}, {formats.long_size(info.kv_bytes)}"),
            ("memory", "  ".join(f"{name} {formats.long_size(size)}" for name, size in info.device_bytes.items())),
            ("can", ", ".join(info.capabilities)),
        ]
    facts += [
        ("prompt", f"{stats.prompt_tokens} tokens computed, {stats.cached_tokens} from the prefix cache"),
        ("generated", f"{stats.generated_tokens} tokens in {stats.iterations} iterations"),
        ("speculation", _speculation(worker)),
        ("preemptions", str(stats.preemptions)),
        ("restarts", str(worker.restarts)),
        ("in this state", formats.duration(now - worker.since) if worker.since else formats.NONE),
    ]
    return facts


def _speculation(worker: WorkerState) -> str:
    drafted, accepted = worker.stats.draft_tokens, worker.stats.accepted_tokens
    return f"{accepted} of {drafted} drafted tokens accepted" if drafted else "off"


def server_lines(
    snapshot: Snapshot, keys: int | None, now: float, wanted: ServerOptions, width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    """State, who may come in, what is offered, what came."""
    server = snapshot.server
    if not server.running:
        return _stopped(server, wanted, width, glyphs)[:height]
    options = server.options
    up = formats.duration(now - server.started_at) if server.started_at else formats.NONE
    lines = [
        spread(
            [(f"{glyphs.good} serving  ", "good"), (one_line(server.url or ""), "value")],
            [("up ", "dim"), (up, "text")],
            width,
        ),
        _guard(options, keys, glyphs),
        [("offers   ", "dim"), (crop(_offered(options), width - 9, glyphs.ellipsis), "text")],
        [
            ("requests ", "dim"), (formats.count(server.requests_total), "text"),
            ("   active ", "dim"), (str(server.requests_active), "value"),
            ("   refused ", "dim"),
            (formats.count(server.rejected_total), "warn" if server.rejected_total else "text"),
            ("   errors ", "dim"), (formats.count(server.errors_total), "bad" if server.errors_total else "text"),
        ],
    ]  # fmt: skip
    tokens = sum(use.tokens for use in server.keys)
    if server.keys:
        busiest = max(server.keys, key=lambda use: use.tokens)
        lines.append(
            [("tokens   ", "dim"), (formats.count(tokens), "text"), ("   most by ", "dim"), (busiest.name, "text")]
        )
    return lines[:height]


def _stopped(server: ServerState, wanted: ServerOptions, width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = [
        [(f"{glyphs.idle} not serving", "dim")],
        [("s", "value"), (" starts it at ", "dim"), (f"http://{wanted.host}:{wanted.port}", "text")],
        [("with a token, every model loaded on demand; the form asks for more", "dim")],
    ]
    if server.failure is not None:
        lines[2:] = wrap(advice(server.failure.message, server.failure.hint), width, "bad", 3)
    return lines


def _guard(options: ServerOptions, keys: int | None, glyphs: Glyphs) -> Line:
    """Who may come in, said in words, with a warning where it is everyone or no one."""
    parts: Line = [("access   ", "dim")]
    if not options.require_token:
        parts.append((f"{glyphs.warn} no token: everyone on this machine", "warn"))
    elif keys == 0:
        parts += [(f"{glyphs.warn} no key yet, so nobody: ", "warn"), ("n", "value"), (" makes one", "warn")]
    else:
        parts.append((f"token, {formats.many(keys, 'key')}" if keys is not None else "token", "text"))
    reach = "this machine" if not options.allow_remote else "other machines"
    parts.append((f"   from {'a socket file' if options.unix_socket else reach}", "dim"))
    parts.append(("   TLS" if options.tls_certificate else "", "good"))
    if options.cors_origins:
        parts.append((f"   pages of {', '.join(options.cors_origins)}", "dim"))
    return parts


def _offered(options: ServerOptions) -> str:
    names = [PurePath(name).name for name in options.models]
    return ", ".join(names) if names else "every registered model, loaded on demand"


def speed_lines(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """What clients feel: speed with its past, time to first token, intervals, the queue."""
    snapshot = board.snapshot
    if snapshot is None:
        return []
    traffic = snapshot.traffic
    kv = traffic.kv_used / traffic.kv_tokens if traffic.kv_tokens else None
    head = spread(
        [("out ", "dim"), (formats.rate(traffic.decode_tps), "value"), (" tok/s", "dim")],
        [("in ", "dim"), (formats.rate(traffic.prefill_tps), "text"), (" tok/s", "dim")],
        width,
    )
    tail: list[Line] = [
        _quantiles("first", traffic.ttft.p50, traffic.ttft.p95, width),
        _quantiles("token", traffic.itl.p50, traffic.itl.p95, width),
        [
            ("KV ", "dim"), *bar(kv, max(6, width - 26), glyphs, "part2"),
            (cell(formats.percent(kv), 5, ">"), "value"), ("  queue ", "dim"),
            (cell(str(traffic.waiting), 4, ">"), "warn" if traffic.waiting else "text"),
        ],
    ]  # fmt: skip
    tail = tail[: max(0, height - 2)]
    room = height - 1 - len(tail)
    past = graph(board.recent("decode"), width, room, glyphs, span=board.window_s, phase=board.phase)
    return [head, *past, *tail][:height]


def _quantiles(name: str, middle: float | None, high: float | None, width: int) -> Line:
    return spread(
        [(f"{name:<6}", "dim"), ("p50 ", "dim"), (formats.latency(middle), "text")],
        [("p95 ", "dim"), (formats.latency(high), "text")],
        width,
    )


_LEVEL_INKS = {"warn": "warn", "error": "bad", "debug": "dim"}


def log_lines(log: Iterable[LogLine], width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The last lines of the server's log, the newest at the end."""
    own = [line for line in log if line.source == "http"][-height:] if height > 0 else []
    if not own:
        return [[("One line for each request: id, key, route, status, times, tokens. Never what it said.", "dim")]]
    return [
        [
            (f"{formats.clock(line.ts)} ", "dim"),
            (crop(_brief(line.text), width - 9, glyphs.ellipsis), _LEVEL_INKS.get(line.level, "text")),
        ]
        for line in own
    ]


def _brief(text: str) -> str:
    """A request's line with what one looks for first: outcome, time, key, route; the id by its first digits."""
    shown = one_line(text, 500)
    words = shown.split(" ")
    if len(words) < 7 or len(words[0]) != 32 or not words[2].startswith("key="):
        return shown
    serial, address, key, _, route, status, took, *rest = words
    who = key.removeprefix("key=")
    return " ".join([status, took, who, route, *rest, f"from={address}", f"id={serial[:8]}"])


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
