"""The sampler: one daemon thread that looks at the machine on absolute deadlines and keeps an hour of samples.

Invariant: it never drifts, never runs two readings at once, survives every reader's failure, and `stop` returns only
when the thread is gone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.host import HostReader
from lathe.engine.telemetry.sample import Sample

PERIOD_S = 1.0
HISTORY_S = 3600

_log = logging.getLogger(__name__)

Roles = Callable[[], Mapping[int, str]]


class Sampler:
    """Takes a `Sample` every period.

    `roles` names Lathe's processes (pid -> role); `publish` hears of each sample. Both are called from the sampler's
    thread: a publisher that belongs to an event loop must hand over with `call_soon_threadsafe`.
    """

    def __init__(
        self,
        host: HostReader,
        devices: Devices,
        *,
        roles: Roles,
        publish: Callable[[Sample], None],
        period_s: float = PERIOD_S,
    ) -> None:
        self._host = host
        self._devices = devices
        self._roles = roles
        self._publish = publish
        self._period_s = period_s
        self._ring: deque[Sample] = deque(maxlen=max(1, round(HISTORY_S / period_s)))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._failed = ""

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and let go of the drivers; harmless when it never ran."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._devices.close()

    @property
    def latest(self) -> Sample | None:
        """The newest sample; None before the first."""
        return self._ring[-1] if self._ring else None

    def history(self, seconds: float) -> list[Sample]:
        """Samples of the last `seconds`, oldest first."""
        since = time.monotonic() - seconds
        return [sample for sample in self._ring.copy() if sample.t >= since]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._take()
            now = time.monotonic()
            # Deadlines that were missed (a suspended machine, a slow driver) are dropped, not caught up with.
            due += self._period_s * max(1, int((now - due) / self._period_s) + 1)
            self._stop.wait(max(0.0, due - now))

    def _take(self) -> None:
        try:
            roles = dict(self._roles())
            sample = self._host.read(roles)
            sample = msgspec.structs.replace(sample, devices=self._devices.read(roles))
            self._ring.append(sample)
            self._publish(sample)
            self._failed = ""
        except Exception as error:  # noqa: BLE001 - telemetry must not end because one reading failed
            if str(error) != self._failed:  # said once, not every second
                self._failed = str(error)
                _log.warning("telemetry: %s: %s", type(error).__name__, error)
