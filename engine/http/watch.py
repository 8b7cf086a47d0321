"""Deadlines of connections: who has been too slow, as a pure judgement, and the sweeper that acts on it.

    head -----> body ----------> answer -----> idle
     ^  head_s    body_s, body_rate             |  idle_s (uvicorn's own timer)
     '------------------------------------------'
    in every stage: a response left unread for write_s

One sweep per second over all connections costs about a microsecond each and,
unlike a timer per event, nothing per token; it does not run while there is no connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from lathe.engine.http.limits import Limits

Stage = Literal["head", "body", "answer", "idle"]
Overdue = Literal["head", "body", "rate", "write"]

WRITE_STEP = 1024
"""Bytes that a reader must take within `write_s`; a byte a second is an attack, not a slow line."""


class Progress:
    """Where one connection is, and since when; the protocol updates it."""

    __slots__ = ("_mark", "body_bytes", "since", "stage", "stuck_since", "written")

    def __init__(self, now: float) -> None:
        self.stage: Stage = "head"
        self.since = now
        self.body_bytes = 0
        self.written = 0
        """Response bytes handed to the transport; the gateway counts them."""
        self.stuck_since: float | None = None
        self._mark = 0

    def enter(self, stage: Stage, now: float) -> None:
        """Begin a stage."""
        self.stage = stage
        self.since = now
        if stage == "body":
            self.body_bytes = 0

    def look(self, unread: int, now: float) -> None:
        """Note how much of the response lies unread; taking `WRITE_STEP` of it counts as progress."""
        taken = self.written - unread
        if unread == 0:
            self.stuck_since = None
        elif self.stuck_since is None or taken - self._mark >= WRITE_STEP:
            self.stuck_since = now
            self._mark = taken


def overdue(progress: Progress, now: float, limits: Limits) -> Overdue | None:
    """Say which deadline a connection has missed, if any."""
    if progress.stuck_since is not None and now - progress.stuck_since >= limits.write_s:
        return "write"
    age = now - progress.since
    match progress.stage:
        case "head":
            return "head" if age >= limits.head_s else None
        case "body":
            if age >= limits.body_s:
                return "body"
            slow = age >= limits.rate_grace_s and progress.body_bytes < limits.body_rate * age
            return "rate" if slow else None
        case "answer" | "idle":
            return None


class Watched(Protocol):
    """A connection as the sweeper sees it."""

    progress: Progress

    def unread(self) -> int:
        """Bytes of the response that the client has not taken."""

    def expire(self, why: Overdue) -> None:
        """End the connection."""


class Sweeper:
    """Looks at every connection once per `sweep_s`, as long as there is one."""

    def __init__(
        self,
        connections: Callable[[], Iterable[Watched]],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connections = connections
        self._limits = limits
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Make sure that sweeps happen; called for each new connection."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.sweep_s, self._sweep)

    def stop(self) -> None:
        """End the sweeps."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock()
        left = list(self._connections())
        for connection in left:
            connection.progress.look(connection.unread(), now)
            if why := overdue(connection.progress, now, self._limits):
                connection.expire(why)
        if left:
            self.wake()
