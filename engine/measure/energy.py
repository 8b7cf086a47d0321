"""Joules that this machine spent, where it reports them: the processor packages by RAPL, NVIDIA devices by NVML.

Counters, not samples of power, so short tests are measured exactly. Invariant: what no counter tells is `None`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules since the machine started, at one moment; `None`: not reported."""

    cpu_j: float | None = None
    gpu_j: float | None = None

    def since(self, before: Energy) -> float | None:
        """Joules spent between two readings by all that is reported; None where nothing is, or a counter wrapped."""
        spent = [
            after - earlier
            for after, earlier in ((self.cpu_j, before.cpu_j), (self.gpu_j, before.gpu_j))
            if after is not None and earlier is not None
        ]
        return sum(spent) if spent and all(part >= 0 for part in spent) else None


class EnergyMeter:
    """Reads the counters."""

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        # Sub-zones (intel-rapl:0:1) are contained in their package; `psys` contains the packages.
        self._zones = [zone for zone in zones if zone.name.count(":") == 1 and _text(zone / "name") != "psys"]

    def read(self) -> Energy:
        """The counters now."""
        joules = [_number(zone / "energy_uj") for zone in self._zones]
        known = [value / 1e6 for value in joules if value is not None]
        return Energy(cpu_j=sum(known) if known and len(known) == len(joules) else None, gpu_j=_nvidia())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _nvidia() -> float | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) for device in devices) / 1e3 or None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
