"""AMD devices through amdgpu's files in sysfs, and ROCm's memory per process through kfd's.

Sources: the kernel's documentation of amdgpu's driver-misc, thermal and amdkfd interfaces. Invariant: a card is listed
when the amdgpu driver owns it; each figure it does not offer is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lathe.engine.telemetry.drm import device_memory, pci_address
from lathe.engine.telemetry.files import entries, first, integer, number, text
from lathe.engine.telemetry.sample import DeviceSample

_VENDOR = "0x1002"


class AmdReader:
    """Reads every amdgpu card below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        cards = entries(root / "sys/class/drm", "card[0-9]*")
        self._devices = [card / "device" for card in cards if text(card / "device/vendor") == _VENDOR]
        self._devices = [device for device in self._devices if (device / "mem_info_vram_total").exists()]
        self._kfd = _kfd_ids(root) if self._devices else {}

    def read(self, pids: Iterable[int] = ()) -> tuple[DeviceSample, ...]:
        """Sample all cards; `pids` are the processes whose memory is wanted."""
        if not self._devices:
            return ()
        watched = tuple(pids)
        graphics = device_memory(watched, self._root)
        return tuple(self._row(index, device, graphics, watched) for index, device in enumerate(self._devices))

    def _row(
        self, index: int, device: Path, graphics: dict[str, dict[int, int]], watched: tuple[int, ...]
    ) -> DeviceSample:
        hwmon = next(iter(entries(device / "hwmon", "hwmon*")), device / "hwmon/none")
        busy = number(device / "gpu_busy_percent", 0.01)
        return DeviceSample(
            id=f"amd{index}",
            name=text(device / "product_name") or f"AMD {text(device / 'device') or 'GPU'}",
            memory_used=integer(device / "mem_info_vram_used"),
            memory_total=integer(device / "mem_info_vram_total"),
            utilization=busy,
            temperature_c=number(hwmon / "temp1_input", 1e-3),
            power_w=first(number(hwmon / "power1_average", 1e-6), number(hwmon / "power1_input", 1e-6)),
            power_limit_w=number(hwmon / "power1_cap", 1e-6),
            clock_mhz=number(hwmon / "freq1_input", 1e-6),
            memory_clock_mhz=number(hwmon / "freq2_input", 1e-6),
            processes=self._processes(device, graphics, watched),
        )

    def _processes(self, device: Path, graphics: dict[str, dict[int, int]], watched: tuple[int, ...]) -> dict[int, int]:
        used = dict(graphics.get(pci_address(device) or "", {}))
        for gpu in (self._kfd[minor] for minor in _render_minors(device) if minor in self._kfd):
            for pid in watched:
                compute = integer(self._root / f"sys/class/kfd/kfd/proc/{pid}/vram_{gpu}")
                if compute:
                    used[pid] = max(used.get(pid, 0), compute)  # the same memory, seen from two sides
        return {pid: amount for pid, amount in used.items() if amount}


def _render_minors(device: Path) -> list[int]:
    names = [entry.name.removeprefix("renderD") for entry in entries(device / "drm", "renderD*")]
    return [int(name) for name in names if name.isdigit()]


def _kfd_ids(root: Path) -> dict[int, str]:
    """ROCm's GPU id by the minor number of the card's render node."""
    found: dict[int, str] = {}
    for node in entries(root / "sys/class/kfd/kfd/topology/nodes", "*"):
        gpu = text(node / "gpu_id")
        for line in (text(node / "properties") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "drm_render_minor" and value.isdigit() and gpu and gpu != "0":
                found[int(value)] = gpu
    return found
