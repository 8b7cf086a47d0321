"""uvicorn's h11 connection with what it lacks: deadlines, caps, strict framing and JSON refusals.

The gateway finds this connection's `Progress` in `scope["state"]["progress"]`. A half-closed connection counts as gone:
nothing else tells a client that waits from one that left. A second request sent before the first is answered is not
served (nobody pipelines; it would hide the disconnect). What a refused client still sends is swallowed for a moment:
closing with bytes unread resets the connection, and the reset may overtake the refusal (RFC 9112, 9.6). Invariant:
whatever bytes arrive, the connection ends in a response, a refusal or a close within the deadlines of `Limits`, and its
memory stays bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from typing import Any, cast

import h11
from lathe.engine.http.head import END_OF_HEAD, Refusal, check_head
from lathe.engine.http.limits import Limits
from lathe.engine.http.problems import Problem, encoded
from lathe.engine.http.watch import Overdue, Progress, Sweeper
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 414: b"URI Too Long", 431: b"Headers Too Large",
            503: b"Service Unavailable"}  # fmt: skip
_TIMEOUTS: dict[Overdue, str] = {
    "head": "the request head did not arrive in time",
    "body": "the request body did not arrive in time",
    "rate": "the request body arrives too slowly",
}

# uvicorn reports through its own loggers, whose records name clients and tracebacks; the request log is ours.
_silent = logging.getLogger("lathe.engine.http.uvicorn")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class _Refused(h11.RemoteProtocolError):
    """A head that h11 would take and we do not."""


class StrictConnection(h11.Connection):
    """An h11 connection that judges each head before parsing it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._limits = limits
        self.refusal: Refusal | None = None

    def next_event(self) -> Any:
        """Return the next event; a refused head raises and leaves its reason in `refusal`."""
        if self.their_state is h11.IDLE:
            received, _ = self.trailing_data
            end = END_OF_HEAD.search(received)
            if end is not None or len(received) > self._limits.head_bytes:
                self.refusal = check_head(received[: end.end()] if end else received, self._limits)
                if self.refusal is not None:
                    raise _Refused(self.refusal.message)
        return super().next_event()


class Connections:
    """Shared by all connections of one server: the limits, the counts per address and the sweeper."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.live: set[GuardedProtocol] = set()
        self.per_address: Counter[str] = Counter()
        self.sweeper = Sweeper(lambda: self.live, limits)
        self.refused = 0

    def admit(self, connection: GuardedProtocol, address: str) -> bool:
        """Count a new connection; False where a cap is reached."""
        cap = self.limits.connections_per_ip if _is_foreign(address) else self.limits.connections
        if len(self.live) >= self.limits.connections or self.per_address[address] >= cap:
            self.refused += 1
            return False
        self.live.add(connection)
        self.per_address[address] += 1
        self.sweeper.wake()
        return True

    def forget(self, connection: GuardedProtocol, address: str) -> None:
        """Count a closed connection."""
        if connection in self.live:
            self.live.discard(connection)
            self.per_address[address] -= 1
            if not self.per_address[address]:
                del self.per_address[address]


def _is_foreign(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False  # a Unix socket has no address


class GuardedProtocol(H11Protocol):
    """One client connection."""

    def __init__(self, config: Config, server_state: ServerState, connections: Connections) -> None:
        self.progress = Progress(time.monotonic())
        super().__init__(config, server_state, {"progress": self.progress})
        self.logger = _silent
        self._shared = connections
        self._strict = StrictConnection(connections.limits)
        self.conn = self._strict
        self._address = ""
        self._deaf = False
        self._linger: asyncio.TimerHandle | None = None

    # -- asyncio's callbacks -------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or refuse it in one write."""
        stream = cast(asyncio.Transport, transport)
        stream.set_write_buffer_limits(high=self._shared.limits.write_buffer)
        super().connection_made(stream)
        self._address = self.client[0] if self.client else ""
        if not self._shared.admit(self, self._address):
            problem = Problem(503, "too many connections", code="too_many_connections", retry_after_s=1)
            self._tell(503, problem)
            self.transport.close()  # at once: connections beyond the cap must not gather

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; the running request sees a disconnect."""
        self._shared.forget(self, self._address)
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser and note which stage the request has reached."""
        if self._deaf or self.transport.is_closing():
            return
        now = time.monotonic()
        if self.progress.stage == "idle":
            self.progress.enter("head", now)
        super().data_received(data)
        self._note_stage(len(data), now)
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._stop_pipelining()

    # -- uvicorn's hooks -----------------------------------------------------------------------------------------
    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, in JSON and with the right status, and close."""
        refusal = self._strict.refusal or Refusal(400, "the request is not valid HTTP/1.1")
        self._refuse(refusal.status, Problem(refusal.status, refusal.message, code="invalid_http"))

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        now = time.monotonic()
        self.progress.enter("idle", now)
        super().on_response_complete()
        self._note_stage(0, now)

    # -- what the sweeper uses -----------------------------------------------------------------------------------
    def unread(self) -> int:
        """Bytes of the response that wait for the client."""
        return self.transport.get_write_buffer_size()

    def expire(self, why: Overdue) -> None:
        """End a connection that missed a deadline: 408 where a request was under way, else a plain close."""
        started = self.cycle is not None and self.progress.stage != "head" and self.cycle.response_started
        message = _TIMEOUTS.get(why)
        if why == "write" or started or message is None or (why == "head" and not self._strict.trailing_data[0]):
            self.transport.abort()
            return
        self._refuse(408, Problem(408, message, code="request_timeout"))

    # -- inside --------------------------------------------------------------------------------------------------
    def _note_stage(self, received: int, now: float) -> None:
        progress = self.progress
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY:
            if progress.stage != "body":
                progress.enter("body", now)
            progress.body_bytes += received
        elif theirs is not h11.IDLE and progress.stage in ("head", "body"):
            progress.enter("answer", now)  # DONE, or MUST_CLOSE for clients that said `Connection: close`

    def _stop_pipelining(self) -> None:
        """Serve the request at hand and close; a second one behind it would hide the client's disconnect."""
        self._deaf = True
        self.cycle.keep_alive = False
        self.flow.resume_reading()

    def _refuse(self, status: int, problem: Problem) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._tell(status, problem)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # for the gateway, that may wait for the body, it is over
            self.cycle.message_event.set()
        self._swallow()

    def _tell(self, status: int, problem: Problem) -> None:
        body = encoded(problem, "openai")
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers += problem.all_headers()
        events: list[h11.Response | h11.Data | h11.EndOfMessage] = [
            h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b"")),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))

    def _swallow(self) -> None:
        """Say that nothing more comes, read on without listening, and close when the client does or time is up."""
        self._deaf = True
        self.progress.enter("answer", time.monotonic())
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger = self.loop.call_later(self._shared.limits.linger_s, self.transport.close)
