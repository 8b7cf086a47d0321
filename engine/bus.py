"""The event bus: facts go up from services to any number of fronts.

Two policies, by kind of event: *latest* keeps the newest per key (samples, traffic, progress), *lossless* keeps order
in a bounded queue; a subscriber that overflows it gets one `Stale` and reloads from `snapshot()`.
Invariant: publishers never wait, and memory per subscriber is bounded.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

from lathe.engine.events import Event, JobProgressed, SampleTaken, Stale, TrafficChanged

MAX_PENDING = 1024


def _latest_key(event: Event) -> str | None:
    """Key under which only the newest event matters; None for lossless events."""
    match event:
        case SampleTaken():
            return "sample"
        case TrafficChanged():
            return "traffic"
        case JobProgressed(id=job_id):
            return f"progress {job_id}"
        case _:
            return None


class Subscription:
    """One subscriber's pending events."""

    def __init__(self, limit: int = MAX_PENDING) -> None:
        self._limit = limit
        self._ordered: deque[Event] = deque()
        self._latest: dict[str, Event] = {}
        self._missed = 0
        self._wake = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Take an event; never waits."""
        key = _latest_key(event)
        if key is not None:
            self._latest[key] = event
        elif len(self._ordered) < self._limit:
            self._ordered.append(event)
        else:
            self._missed += 1 + len(self._ordered)
            self._ordered.clear()
        self._wake.set()

    async def take(self) -> list[Event]:
        """Wait for events and return all that are pending, a `Stale` first if some were lost."""
        await self._wake.wait()
        self._wake.clear()
        events: list[Event] = [Stale(self._missed)] if self._missed else []
        events += self._ordered
        events += self._latest.values()
        self._missed = 0
        self._ordered.clear()
        self._latest.clear()
        return events


class Bus:
    """Fan-out within one event loop; any thread may publish."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()

    def publish(self, event: Event) -> None:
        """Hand an event to every subscriber."""
        if self._loop is None or threading.get_ident() == self._thread:
            self._hand_out(event)
            return
        with suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._hand_out, event)

    def _hand_out(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber.offer(event)

    async def subscribe(self) -> AsyncGenerator[Event, None]:
        """Yield events until the caller leaves."""
        subscription = Subscription()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._subscribers.add(subscription)
        try:
            while True:
                for event in await subscription.take():
                    yield event
        finally:
            self._subscribers.discard(subscription)

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._subscribers)
