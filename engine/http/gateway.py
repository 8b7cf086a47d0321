"""The ASGI application: every request passes the same gates in the same order before a handler sees it.

    Host 421 -> Origin 403 -> key 401 -> route 404/405 -> scope 403 -> drain 503 -> quota 429 -> body 408/413/415
    -> JSON 400 -> admission 429/503 -> handler -> pump

Unknown paths ask for a key first, so that the route list is not told to strangers. Invariant: every request ends in
exactly one log record, and every slot it took is given back.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from lathe.engine.generation import GenerationRequest, Usage
from lathe.engine.http import problems, pump
from lathe.engine.http.access import (
    HostRule,
    Keys,
    OriginRule,
    Principal,
    authenticate,
    authorize,
    header,
)
from lathe.engine.http.body_log import BodyLog
from lathe.engine.http.call import Call, Json, Service, Streamed, Text, Whole
from lathe.engine.http.exchange import BodyBudget, ClientGone, Exchange, Receive, Send
from lathe.engine.http.limits import Limits
from lathe.engine.http.metrics import Meter
from lathe.engine.http.problems import Dialect, Problem
from lathe.engine.http.quota import Admission, Quotas, estimated_prompt
from lathe.engine.http.request_log import Record, RequestLog
from lathe.engine.http.routes import Route, Table
from lathe.engine.http.strict_json import decode
from lathe.engine.states import KeyUse

_JSON = ("content-type", "application/json")
_SAFETY = [("x-content-type-options", "nosniff")]
GONE = 499
"""The log's status for clients that left; never sent."""
CLIENT_GONE = "client_gone"
_REFUSED = frozenset({401, 403, 421, 429, 503})
"""Statuses of requests that were turned away, whatever they asked for."""


class Counts:
    """What the server has done since it started."""

    def __init__(self) -> None:
        self.total = 0
        self.active = 0
        self.rejected = 0
        self.errors = 0
        self.keys: dict[str, KeyUse] = {}

    def used(self, name: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Count work of a key."""
        use = self.keys.get(name) or KeyUse(name=name)
        self.keys[name] = msgspec.structs.replace(
            use, requests=use.requests + requests, tokens=use.tokens + tokens, last_at=time.time()
        )


class Gateway:
    """The application of one running server."""

    def __init__(
        self, service: Service, table: Table, keys: Keys, log: RequestLog, limits: Limits, *, remote: bool,
        bodies: BodyLog | None = None,
    ) -> None:  # fmt: skip
        options = service.options
        self._service = service
        self._table = table
        self._keys = keys
        self._log = log
        self._bodies = bodies
        self._limits = limits
        self._hosts = HostRule(options, remote=remote)
        self._origins = OriginRule(options.cors_origins)
        self._quotas = Quotas()
        self._admission = Admission(limits.active, limits.active_per_key_share)
        self._budget = BodyBudget(limits.bodies_bytes)
        self._require_token = options.require_token
        self.counts = Counts()
        self.draining = False

    def key_uses(self) -> tuple[KeyUse, ...]:
        """What came over each key."""
        return tuple(
            msgspec.structs.replace(use, active=self._admission.held(name))
            for name, use in sorted(self.counts.keys.items())
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        visit = _Visit(Exchange(scope, receive, send))
        if self._bodies is not None:
            visit.exchange.copy = bytearray()
        self.counts.total += 1
        self.counts.active += 1
        try:
            await self._pass(visit)
        except ClientGone:
            visit.error = CLIENT_GONE
        except asyncio.CancelledError:
            if visit.exchange.started or not self._drained():
                raise
            await self._refuse(visit, _draining())
        except Exception as error:  # noqa: BLE001 - the boundary: becomes an envelope and a log record
            await self._refuse(visit, error)
        finally:
            self.counts.active -= 1
            self._leave(visit)

    # -- the gates -----------------------------------------------------------------------------------------------
    async def _pass(self, visit: _Visit) -> None:
        exchange, limits = visit.exchange, self._limits
        self._hosts.check(exchange.headers)
        visit.headers += self._origins.check(exchange.headers)
        if exchange.method == "OPTIONS" and header(exchange.headers, b"origin") is not None:
            await exchange.respond(200, visit.headers + self._origins.preflight(), b"", limits)
            return
        match = self._table.match(exchange.path)
        if match is None or match.auth != "public":
            visit.principal = authenticate(
                exchange.headers, self._keys, require_token=self._require_token, x_api_key=visit.dialect == "anthropic"
            )
        route = self._route(visit, match.methods if match else None)
        visit.route = route
        if visit.principal is not None:
            authorize(visit.principal, route.auth)
        if self.draining:
            raise _draining()
        call = self._call(visit, match.argument if match else "")
        if route.work:
            visit.headers += self._quotas.admit(call.principal, visit.started_at)
        call.body = await self._body(visit, route.body)
        if route.work:  # only now: whoever is still sending must not hold a place
            self._admission.enter(call.principal.name)
            visit.admitted = True
            self.counts.used(call.principal.name, requests=1)
        await exchange.attended(self._answer(visit, route, call))

    def _drained(self) -> bool:
        """Whether the task at hand was cancelled because the time to drain is over."""
        task = asyncio.current_task()
        return self.draining and task is not None and task.uncancel() == 0

    def _route(self, visit: _Visit, methods: dict[str, Route] | None) -> Route:
        if methods is None:
            raise Problem(404, "there is no such route", code="unknown_url")
        method = "GET" if visit.exchange.method == "HEAD" else visit.exchange.method
        if method not in methods:
            allowed = ", ".join(sorted(methods))
            raise Problem(405, f"this route takes {allowed}", code="method_not_allowed", headers=(("allow", allowed),))
        return methods[method]

    def _call(self, visit: _Visit, argument: str) -> Call:
        principal = visit.principal or Principal("anonymous", scopes=frozenset())
        call = Call(
            serial=visit.id, principal=principal, client=visit.exchange.client, created=int(time.time()),
            service=self._service,
        )  # fmt: skip
        call.argument = argument
        if visit.exchange.query:
            try:
                call.query = dict(parse_qsl(visit.exchange.query.decode("ascii"), max_num_fields=16, errors="strict"))
            except ValueError:
                raise Problem(400, "the query string cannot be read", code="invalid_query") from None
        visit.call = call
        return call

    async def _body(self, visit: _Visit, decoder: msgspec.json.Decoder[Any] | None) -> object:
        if decoder is not None:
            _check_media_type(header(visit.exchange.headers, b"content-type"))
        body = await visit.exchange.read_body(self._limits, self._budget)
        visit.bytes_in = len(body)
        visit.asked = body if self._bodies is not None else b""
        try:
            return decode(body, decoder, self._limits) if decoder is not None else None
        finally:
            self._budget.give_back(len(body))

    async def _answer(self, visit: _Visit, route: Route, call: Call) -> None:
        reply = await route.handler(call)
        if isinstance(reply, Text):
            headers = [*visit.all_headers(), ("content-type", reply.media_type)]
            await visit.exchange.respond(200, headers, reply.body, self._limits)
            return
        if isinstance(reply, Json):
            value, extra = reply.value, reply.headers
        else:
            visit.meter, visit.requests = self._meter(call, reply), reply.requests
            if isinstance(reply, Streamed):
                broken = await pump.stream(visit.exchange, call, reply, visit.meter, self._limits, visit.all_headers())
                if broken is not None:  # its status was sent long ago; the log and the counts tell it all the same
                    visit.error = broken.code or "error"
                    self.counts.errors += broken.status >= 500 and broken.code != pump.CANCELLED
                return
            value, extra = await pump.whole(call, reply, visit.meter), ()
        headers = [*visit.all_headers(), *extra, _JSON]
        await visit.exchange.respond(200, headers, msgspec.json.encode(value), self._limits)

    def _meter(self, call: Call, reply: Streamed | Whole) -> Meter:
        request = reply.requests[0]
        return self._service.metrics.meter(call.model.name if call.model else request.model, request.max_tokens)

    # -- the ways out --------------------------------------------------------------------------------------------
    async def _refuse(self, visit: _Visit, error: Exception) -> None:
        problem = problems.of(error)
        visit.error = problem.code or type(error).__name__
        if problem.status in _REFUSED and not visit.exchange.started:
            self.counts.rejected += 1
        if problem.status == 500:
            self.counts.errors += 1
            self._log.note("error", f"{visit.id} {_origin(error)}")
        if visit.exchange.started:
            return  # the stream's own writer has told it, or the connection is gone
        body = problems.encoded(problem, visit.dialect, visit.request_id)
        headers = [*visit.all_headers(), *problem.all_headers(), _JSON]
        await visit.exchange.respond(problem.status, headers, body, self._limits)

    def _leave(self, visit: _Visit) -> None:
        seconds = time.monotonic() - visit.started_at
        call, meter = visit.call, visit.meter
        if visit.admitted and call is not None:
            self._admission.leave(call.principal.name, seconds)
        if call is not None:
            tokens = call.prompt_tokens + visit.generation_tokens()
            self._quotas.charge(call.principal, tokens, time.monotonic())
            if visit.admitted:
                self.counts.used(call.principal.name, tokens=tokens)
        route = visit.route.name if visit.route else "-"
        status = GONE if visit.error == CLIENT_GONE else visit.exchange.status or 500
        self._service.metrics.answered(route, status)
        if self._bodies is not None and visit.asked and visit.principal is not None:
            self._bodies.add(
                serial=visit.id, key=visit.principal.name, route=route, status=status, asked=visit.asked,
                answered=bytes(visit.exchange.copy or b""),
            )  # fmt: skip
        if visit.route is not None and visit.route.quiet and status < 400:
            return
        self._log.add(
            Record(
                id=visit.id, client=visit.exchange.client, route=route, status=status, seconds=seconds,
                bytes_in=visit.bytes_in, bytes_out=visit.exchange.bytes_out,
                key=visit.principal.name if visit.principal else "-",
                model=call.model.name if call and call.model else None,
                usage=meter.usage if meter else None, timing=meter.timing if meter else None, error=visit.error,
            )
        )  # fmt: skip


class _Visit:
    """What is known of one request so far."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.id = secrets.token_hex(16)
        self.dialect = _dialect(exchange.path)
        self.started_at = time.monotonic()
        self.headers: list[tuple[str, str]] = []
        self.principal: Principal | None = None
        self.route: Route | None = None
        self.call: Call | None = None
        self.meter: Meter | None = None
        self.requests: tuple[GenerationRequest, ...] = ()
        self.admitted = False
        self.bytes_in = 0
        self.asked = b""
        """The body, where bodies are logged."""
        self.error: str | None = None

    @property
    def request_id(self) -> str:
        """The id as clients see it."""
        return f"req_{self.id}"

    def generation_tokens(self) -> int:
        """What its generation cost: the usage; for one broken off, what passed and about what its prompt took."""
        meter = self.meter
        if meter is None:
            return 0
        usage = meter.usage or Usage(0, 0)
        if meter.booked >= len(self.requests) or not (meter.tokens or self.error == CLIENT_GONE):
            return usage.prompt_tokens + usage.completion_tokens
        prompts = sum(map(estimated_prompt, self.requests))
        return max(usage.prompt_tokens, prompts) + max(usage.completion_tokens, meter.tokens)

    def all_headers(self) -> list[tuple[str, str]]:
        """Return what every answer carries."""
        name = "request-id" if self.dialect == "anthropic" else "x-request-id"
        return [*_SAFETY, (name, self.request_id), *self.headers]


def _draining() -> Problem:
    close = (("connection", "close"),)
    return Problem(503, "the server is shutting down", code="draining", retry_after_s=5, headers=close)


def _dialect(path: str) -> Dialect:
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def _check_media_type(value: str | None) -> None:
    """Take JSON, and the default of `curl -d`; a browser cannot use that to get around CORS (see `OriginRule`)."""
    kind, _, parameters = (value or "application/json").lower().partition(";")
    kind = kind.strip()
    if not (kind.endswith(("/json", "+json")) or kind in ("application/x-www-form-urlencoded", "text/plain")):
        raise Problem(415, "the body must be application/json", code="unsupported_media_type")
    charset = parameters.strip().removeprefix("charset=").strip('"')
    if parameters.strip().startswith("charset=") and charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, "the body must be UTF-8", code="unsupported_media_type")


def _origin(error: BaseException) -> str:
    """Say where an unexpected error came from without its text, which may hold a prompt."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    cause = error.__cause__
    return f"{type(error).__name__} at {place}" + (f" from {type(cause).__name__}" if cause else "")
