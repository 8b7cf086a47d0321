"""The pulse of the engine: samples of the machine and traffic of requests, as the panels want them.

Joins the sampler's thread with the engine's loop. Invariant: everything here is touched by the loop's thread alone;
the sampler hands its samples over and reads a table of roles that is replaced, never changed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from lathe.engine.events import Event, SampleTaken, TrafficChanged, WorkerChanged
from lathe.engine.paths import Home
from lathe.engine.states import Traffic
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.host import HostReader
from lathe.engine.telemetry.sample import Sample
from lathe.engine.telemetry.sampler import Sampler
from lathe.engine.telemetry.traffic import Observation, TrafficMeter

_FIRST_SAMPLE_S = 1.0


class Pulse:
    """Sampler, traffic meter and the running requests."""

    def __init__(self, home: Home, period_s: float, publish: Callable[[Event], None]) -> None:
        self.devices = Devices()
        self._publish = publish
        self._meter = TrafficMeter()
        self._numbers = itertools.count(1)
        self._roles: Mapping[int, str] = {}
        self._find_roles: Callable[[], Mapping[int, str]] = dict
        self._seen = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sampler = Sampler(
            HostReader(home.root), self.devices, roles=lambda: self._roles, publish=self._hand_over, period_s=period_s
        )

    def start(self, roles: Callable[[], Mapping[int, str]]) -> None:
        """Begin to sample; `roles` names Lathe's processes and is called in the loop."""
        self._loop = asyncio.get_running_loop()
        self._find_roles = roles
        self._roles = roles()
        self._sampler.start()

    def stop(self) -> None:
        """End the sampler's thread; blocks for at most one reading."""
        self._sampler.stop()

    @property
    def latest(self) -> Sample | None:
        """The newest sample."""
        return self._sampler.latest

    async def first(self) -> None:
        """Wait until the machine was looked at once; not longer than it usually takes."""
        if self.latest is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._seen.wait(), _FIRST_SAMPLE_S)

    def history(self, seconds: float) -> list[Sample]:
        """Samples of the last while, oldest first."""
        return self._sampler.history(seconds)

    def traffic(self) -> Traffic:
        """Requests of the last window."""
        return self._meter.snapshot()

    def on_worker(self, event: WorkerChanged) -> None:
        """Learn what a worker says of itself."""
        self._meter.on_worker(event.worker)

    @contextmanager
    def observe(self, model: str, client: str) -> Iterator[Observation]:
        """Watch one request from its arrival to its end, whatever ends it."""
        observation = self._meter.observe(f"r-{next(self._numbers)}", model, client)
        try:
            yield observation
        except BaseException as error:
            observation.fail(error)
            raise
        finally:
            observation.finish()

    def _hand_over(self, sample: Sample) -> None:
        """Called in the sampler's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._taken, sample)
        except RuntimeError:
            pass  # the loop has ended; so will the sampler

    def _taken(self, sample: Sample) -> None:
        self._seen.set()
        self._roles = self._find_roles()
        self._publish(SampleTaken(sample))
        self._publish(TrafficChanged(self._meter.snapshot()))
