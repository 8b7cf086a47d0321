"""Facts that go up from the engine to every front: one closed union.

`JobChanged`, `WorkerChanged`, `ServerChanged`, `ModelsChanged` and `LogLine` are lossless (in order, a slow subscriber
is marked stale and told so by `Stale`); `SampleTaken`, `TrafficChanged` and `JobProgressed` keep the newest per key.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.states import ServerState, Traffic, WorkerState
from lathe.engine.telemetry.sample import Sample


class JobChanged(msgspec.Struct, frozen=True, tag=True):
    job: Job


class JobProgressed(msgspec.Struct, frozen=True, tag=True):
    id: str
    progress: Progress


class WorkerChanged(msgspec.Struct, frozen=True, tag=True):
    worker: WorkerState


class ServerChanged(msgspec.Struct, frozen=True, tag=True):
    server: ServerState


class ModelsChanged(msgspec.Struct, frozen=True, tag=True):
    """The catalogue changed; read it again."""

    ids: tuple[str, ...] = ()


class SettingsChanged(msgspec.Struct, frozen=True, tag=True):
    keys: tuple[str, ...]


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """One line of the engine's log."""

    ts: float
    level: Literal["debug", "info", "warn", "error"]
    source: str
    """`engine`, `job j-118`, `worker NAME`, `http`."""
    text: str


class SampleTaken(msgspec.Struct, frozen=True, tag=True):
    sample: Sample


class TrafficChanged(msgspec.Struct, frozen=True, tag=True):
    traffic: Traffic


class Stale(msgspec.Struct, frozen=True, tag=True):
    """The subscriber fell behind and missed events: reload from `snapshot()`."""

    missed: int


Event = (
    JobChanged | JobProgressed | WorkerChanged | ServerChanged | ModelsChanged | SettingsChanged | LogLine
    | SampleTaken | TrafficChanged | Stale
)  # fmt: skip
