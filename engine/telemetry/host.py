"""Processor, memory, disk and power of this machine, and what Lathe's own processes take of it.

Rates are differences between two readings, so the first one has none. Invariant: no reading raises; a field that a
platform does not tell is None.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from lathe.engine.telemetry.files import entries, integer, text
from lathe.engine.telemetry.memory import read_memory
from lathe.engine.telemetry.sample import ProcessSample, Sample


class HostReader:
    """Reads the host; one instance per sampler, since it remembers the last counters."""

    def __init__(self, workspace: Path, root: Path = Path("/")) -> None:
        self._workspace = workspace
        self._root = root
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[float, int, int] | None = None
        self._power = PackagePower(root)
        self._processes = ProcessReader()

    def read(self, roles: Mapping[int, str]) -> Sample:
        """Take a sample without devices; `roles` names Lathe's processes."""
        memory = read_memory(self._root)
        swap = _quietly(psutil.swap_memory)
        disk = _quietly(shutil.disk_usage, _existing(self._workspace))
        read_bps, write_bps = self._disk_rates()
        load = _quietly(os.getloadavg)
        return Sample(
            t=time.monotonic(),
            wall=time.time(),
            cpu=self._cpu_share(),
            load1=load[0] if load else None,
            cores=usable_cores(),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            memory_available=memory.available,
            swap_used=int(swap.used) if swap else None,
            swap_total=int(swap.total) if swap else None,
            disk_used=disk.used if disk else None,
            disk_total=disk.total if disk else None,
            disk_read_bps=read_bps,
            disk_write_bps=write_bps,
            cpu_power_w=self._power.read(time.monotonic()),
            processes=self._processes.read(roles),
        )

    def _cpu_share(self) -> float | None:
        times = _quietly(psutil.cpu_times)
        if times is None:
            return None
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is contained in user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        last, self._cpu = self._cpu, (total, idle)
        if last is None or total <= last[0]:
            return None
        return float(min(1.0, max(0.0, 1.0 - (idle - last[1]) / (total - last[0]))))

    def _disk_rates(self) -> tuple[float | None, float | None]:
        counters = _quietly(psutil.disk_io_counters, False)
        if counters is None:
            return None, None
        now = (time.monotonic(), int(counters.read_bytes), int(counters.write_bytes))
        last, self._disk = self._disk, now
        if last is None or now[0] <= last[0]:
            return None, None
        span = now[0] - last[0]
        return max(0.0, (now[1] - last[1]) / span), max(0.0, (now[2] - last[2]) / span)


class ProcessReader:
    """Resident memory and processor use of single processes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[psutil.Process, tuple[float, float] | None]] = {}

    def read(self, roles: Mapping[int, str]) -> tuple[ProcessSample, ...]:
        """Sample the processes of `roles` (pid -> role); those that are gone are left out."""
        self._known = {pid: known for pid, known in self._known.items() if pid in roles}
        return tuple(sample for pid, role in roles.items() if (sample := self._one(pid, role)))

    def _one(self, pid: int, role: str) -> ProcessSample | None:
        try:
            process, last = self._known.get(pid) or (psutil.Process(pid), None)
            with process.oneshot():
                times = process.cpu_times()
                rss = int(process.memory_info().rss)
        except psutil.AccessDenied:
            return ProcessSample(pid=pid, role=role)
        except psutil.Error:
            self._known.pop(pid, None)
            return None
        now = (time.monotonic(), float(times.user + times.system))
        self._known[pid] = (process, now)
        cores = (now[1] - last[1]) / (now[0] - last[0]) if last and now[0] > last[0] else None
        return ProcessSample(pid=pid, role=role, rss=rss, cpu=None if cores is None else max(0.0, cores))


class PackagePower:
    """Watts of the processor packages by RAPL's energy counters (kernel: power/powercap). Often for root only."""

    def __init__(self, root: Path = Path("/")) -> None:
        zones = entries(root / "sys/class/powercap", "intel-rapl:*")
        # Sub-zones (intel-rapl:0:1) are contained in their package; `psys` contains the packages.
        self._zones = [zone for zone in zones if (text(zone / "name") or "").startswith("package")]
        self._wraps = [integer(zone / "max_energy_range_uj") for zone in self._zones]
        self._last: tuple[float, list[int]] | None = None

    def read(self, now: float) -> float | None:
        """Mean power since the last call."""
        if not self._zones:
            return None
        energies = [integer(zone / "energy_uj") for zone in self._zones]
        known = [energy for energy in energies if energy is not None]
        last = self._last
        self._last = (now, known) if len(known) == len(energies) else None
        if last is None or self._last is None or now <= last[0]:
            return None
        joules = 0.0
        for energy, before, wrap in zip(known, last[1], self._wraps, strict=True):
            spent = energy - before
            if spent < 0:  # the counter wrapped
                spent += wrap or 0
            joules += max(0, spent) / 1e6
        return joules / (now - last[0])


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _quietly(read: Any, *arguments: Any) -> Any:
    """What the platform answers, or None; psutil raises a different error for every way of not knowing."""
    try:
        return read(*arguments)
    except (psutil.Error, OSError, NotImplementedError, RuntimeError, ValueError):
        return None
