"""`Board`: what the app knows of the engine at this moment, as immutable values in one place.

`link` writes it, screens read it. Invariant: everything in it is bounded, and a snapshot is replaced, never changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.events import (
    Event,
    JobChanged,
    JobProgressed,
    LogLine,
    SampleTaken,
    ServerChanged,
    TrafficChanged,
    WorkerChanged,
)
from lathe.engine.jobs.values import Job
from lathe.engine.states import Fit, Snapshot, WorkerState
from lathe.engine.telemetry.sample import Sample
from lathe.engine.workbench import ModelAlias, SettingValue
from lathe.store.models import ModelEntry

KEPT_S = 3600
"""Seconds of history behind the graphs."""
KEPT_LINES = 5000
WINDOWS = (60, 300, 3600)
SERIES = ("decode", "prefill", "queue", "cpu", "memory", "device", "ttft", "itl")
_REPLACE = msgspec.structs.replace


def apply(snapshot: Snapshot, event: Event) -> Snapshot:
    """The snapshot after one event."""
    match event:
        case JobChanged(job=job):
            others = tuple(old for old in snapshot.jobs if old.id != job.id)
            return _REPLACE(snapshot, jobs=tuple(sorted((*others, job), key=_age)))
        case JobProgressed(id=job_id, progress=progress):
            jobs = tuple(_REPLACE(job, progress=progress) if job.id == job_id else job for job in snapshot.jobs)
            return _REPLACE(snapshot, jobs=jobs)
        case WorkerChanged(worker=worker):
            others_ = tuple(old for old in snapshot.workers if old.model_id != worker.model_id)
            here = () if worker.phase == "stopped" else (worker,)
            return _REPLACE(snapshot, workers=tuple(sorted((*others_, *here), key=lambda w: w.name)))
        case ServerChanged(server=server):
            return _REPLACE(snapshot, server=server)
        case SampleTaken(sample=sample):
            return _REPLACE(snapshot, sample=sample)
        case TrafficChanged(traffic=traffic):
            return _REPLACE(snapshot, traffic=traffic)
        case _:
            return snapshot


def _age(job: Job) -> float:
    return -job.created_at


class Board:
    """The newest snapshot, and what was seen before it."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.lost: Failure | None = None
        self.attached = False
        """False until the engine answered for the first time."""
        self.models: tuple[ModelEntry, ...] = ()
        self.aliases: tuple[ModelAlias, ...] = ()
        """Other names for models, remote models among them."""
        self.settings: tuple[SettingValue, ...] = ()
        self.fits: dict[str, Fit] = {}
        """Model id -> verdict with default options."""
        self.log: deque[LogLine] = deque(maxlen=KEPT_LINES)
        self.log_count = 0
        """Lines ever added: readers remember how far they came."""
        self.series: dict[str, deque[float]] = {name: deque(maxlen=KEPT_S) for name in SERIES}
        self.window_s = 300
        self._last_t: float | None = None

    @property
    def phase(self) -> int:
        """Number of the newest value in the series; keeps graphs from flickering."""
        return int(self._last_t or 0)

    def take(self, snapshot: Snapshot) -> None:
        """Keep a new snapshot and add its figures to the series."""
        first = self.snapshot is None
        self.snapshot = snapshot
        sample, traffic = snapshot.sample, snapshot.traffic
        if first:
            self.series["decode"].extend(traffic.decode_history)
            self.series["prefill"].extend(traffic.prefill_history)
            self.series["queue"].extend(traffic.queue_history)
        elif sample is None or sample.t != self._last_t:
            self.series["decode"].append(traffic.decode_tps)
            self.series["prefill"].append(traffic.prefill_tps)
            self.series["queue"].append(float(traffic.waiting))
        for name, value in (("ttft", traffic.ttft.p95), ("itl", traffic.itl.p50)):
            if value is not None:
                self.series[name].append(value)
        if sample is not None and sample.t != self._last_t:
            self._sampled(sample)

    def past(self, samples: Iterable[Sample]) -> None:
        """Fill the machine's series from the engine's history."""
        for name in ("cpu", "memory", "device"):
            self.series[name].clear()
        for sample in samples:
            self._sampled(sample)

    def _sampled(self, sample: Sample) -> None:
        self._last_t = sample.t
        if sample.cpu is not None:
            self.series["cpu"].append(sample.cpu)
        if sample.memory_used is not None:
            self.series["memory"].append(float(sample.memory_used))
        if sample.devices and sample.devices[0].memory_used is not None:
            self.series["device"].append(float(sample.devices[0].memory_used))

    def recent(self, name: str) -> list[float]:
        """A series over the chosen window, oldest first."""
        values = self.series[name]
        return list(values)[-self.window_s :]

    def note(self, line: LogLine) -> None:
        """Add a line to the log."""
        self.log.append(line)
        self.log_count += 1

    def model(self, reference: str | None) -> ModelEntry | None:
        """A model by id, name or alias."""
        found = next((entry for entry in self.models if reference in (entry.id, entry.name)), None)
        target = next((alias.target for alias in self.aliases if alias.name == reference), None)
        return (
            found if found is not None or target is None else next((e for e in self.models if e.name == target), None)
        )

    def aliases_of(self, entry: ModelEntry) -> list[str]:
        """Other names of a model."""
        return [alias.name for alias in self.aliases if alias.target == entry.name]

    def worker(self, model_id: str) -> WorkerState | None:
        """The worker of a model, where it has one."""
        workers = self.snapshot.workers if self.snapshot else ()
        return next((worker for worker in workers if worker.model_id == model_id), None)

    def setting(self, key: str) -> SettingValue | None:
        """One setting."""
        return next((setting for setting in self.settings if setting.key == key), None)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Jobs, newest first."""
        return self.snapshot.jobs if self.snapshot else ()

    @property
    def first_run(self) -> bool:
        """Nothing but the embedded model is here, and nothing was ever done."""
        if not self.attached or self.snapshot is None:
            return False
        return not self.snapshot.jobs and all(entry.origin == "embedded" for entry in self.models)
