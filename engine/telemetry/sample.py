"""The values of telemetry. Invariant: what cannot be read is `None`, never 0."""

from __future__ import annotations

import msgspec


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator at one moment."""

    id: str
    """`nvidia0`, `amd0`, `intel0`, `apple0`; MIG slices `nvidia0:1`."""
    name: str
    memory_used: int | None = None
    """Bytes."""
    memory_total: int | None = None
    utilization: float | None = None
    """0..1."""
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    processes: dict[int, int] = {}
    """pid -> bytes on this device, where the driver tells."""


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True):
    """One process of Lathe."""

    pid: int
    role: str
    """`engine`, `worker NAME`, `job ID`, `front`."""
    rss: int | None = None
    cpu: float | None = None
    """Cores in use, 1.0 is one whole core."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The machine at one moment of the monotonic clock."""

    t: float
    wall: float
    """Unix seconds, for display only."""
    cpu: float | None = None
    """0..1 over all cores."""
    load1: float | None = None
    cores: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    swap_used: int | None = None
    swap_total: int | None = None
    disk_used: int | None = None
    """Of the file system that holds the workspace."""
    disk_total: int | None = None
    disk_read_bps: float | None = None
    disk_write_bps: float | None = None
    cpu_power_w: float | None = None
    devices: tuple[DeviceSample, ...] = ()
    processes: tuple[ProcessSample, ...] = ()
