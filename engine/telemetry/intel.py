"""Intel devices through the files of i915 and xe in sysfs.

Sources: the kernel's ABI documents sysfs-driver-intel-i915-hwmon, -xe-hwmon and -xe.
Neither driver publishes how busy the device is or how much of its memory is used in total, so those stay None; the
memory of our own processes comes from the DRM client statistics.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from lathe.engine.telemetry.drm import device_memory, pci_address
from lathe.engine.telemetry.files import entries, first, integer, number, text
from lathe.engine.telemetry.sample import DeviceSample

_VENDOR = "0x8086"


class IntelReader:
    """Reads every i915 and xe card below `root`; remembers energy counters to tell power."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        cards = entries(root / "sys/class/drm", "card[0-9]*")
        self._cards = [card for card in cards if text(card / "device/vendor") == _VENDOR]
        self._energy: dict[Path, tuple[float, float]] = {}

    def read(self, pids: Iterable[int] = ()) -> tuple[DeviceSample, ...]:
        """Sample all cards; `pids` are the processes whose memory is wanted."""
        if not self._cards:
            return ()
        graphics = device_memory(pids, self._root)
        return tuple(self._row(index, card, graphics) for index, card in enumerate(self._cards))

    def _row(self, index: int, card: Path, graphics: dict[str, dict[int, int]]) -> DeviceSample:
        device = card / "device"
        hwmon = next(iter(entries(device / "hwmon", "hwmon*")), device / "hwmon/none")
        processes = {pid: used for pid, used in graphics.get(pci_address(device) or "", {}).items() if used}
        return DeviceSample(
            id=f"intel{index}",
            name=f"Intel {text(device / 'device') or 'GPU'}",
            memory_total=_integer_of(
                card / "lmem_total_bytes", device / "tile0/physical_vram_size_bytes", card / "device/lmem_total_bytes"
            ),
            temperature_c=first(number(hwmon / "temp2_input", 1e-3), number(hwmon / "temp1_input", 1e-3)),
            power_w=self._power(hwmon),
            power_limit_w=first(number(hwmon / "power1_max", 1e-6), number(hwmon / "power1_rated_max", 1e-6)),
            clock_mhz=first(
                number(device / "tile0/gt0/freq0/act_freq"),
                number(card / "gt/gt0/rps_act_freq_mhz"),
                number(card / "gt_act_freq_mhz"),
            ),
            processes=processes,
        )

    def _power(self, hwmon: Path) -> float | None:
        """Watts since the last reading, from microjoules; xe counts the card in energy1, i915 the device."""
        energy, now = number(hwmon / "energy1_input", 1e-6), time.monotonic()
        if energy is None:
            return None
        last = self._energy.get(hwmon)
        self._energy[hwmon] = (now, energy)
        if last is None or now <= last[0] or energy < last[1]:
            return None
        return (energy - last[1]) / (now - last[0])


def _integer_of(*paths: Path) -> int | None:
    return next((value for path in paths if (value := integer(path)) is not None), None)
