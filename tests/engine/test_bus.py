"""The bus: order kept, newest kept, memory bounded, losses told."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest
from lathe.engine import bus as bus_module
from lathe.engine.bus import MAX_PENDING, Bus, Subscription
from lathe.engine.events import Event, JobProgressed, LogLine, SampleTaken, Stale
from lathe.engine.jobs.values import Progress
from lathe.engine.telemetry.sample import Sample


def _line(number: int) -> LogLine:
    return LogLine(ts=float(number), level="info", source="test", text=str(number))


async def test_lossless_events_keep_their_order_and_latest_ones_only_the_newest() -> None:
    subscription = Subscription()
    for number in range(5):
        subscription.offer(_line(number))
        subscription.offer(SampleTaken(Sample(t=float(number), wall=0.0)))
        subscription.offer(JobProgressed(f"j-{number % 2}", Progress(done=number)))
    events = await subscription.take()
    assert [event.text for event in events if isinstance(event, LogLine)] == ["0", "1", "2", "3", "4"]
    assert [event.sample.t for event in events if isinstance(event, SampleTaken)] == [4.0]
    progress = {event.id: event.progress.done for event in events if isinstance(event, JobProgressed)}
    assert progress == {"j-0": 4, "j-1": 3}


async def test_a_slow_subscriber_is_told_what_it_missed_and_memory_stays_bounded() -> None:
    subscription = Subscription()
    for number in range(MAX_PENDING * 3):
        subscription.offer(_line(number))
    events = await subscription.take()
    assert isinstance(events[0], Stale)
    assert events[0].missed + len(events) - 1 == MAX_PENDING * 3
    assert len(events) <= MAX_PENDING + 1


async def test_leaving_the_loop_unsubscribes() -> None:
    bus = Bus()
    async with aclosing(bus.subscribe()) as events:
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        assert bus.subscribers == 1
        bus.publish(_line(1))
        assert await first == _line(1)
    assert bus.subscribers == 0


async def test_what_another_thread_publishes_is_handed_out_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    class Watched(Subscription):
        def offer(self, event: Event) -> None:
            threads.append(threading.get_ident())
            super().offer(event)

    monkeypatch.setattr(bus_module, "Subscription", Watched)
    bus = Bus()
    async with aclosing(bus.subscribe()) as events:
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await asyncio.to_thread(bus.publish, _line(1))
        assert await first == _line(1)
    assert threads == [threading.get_ident()]
