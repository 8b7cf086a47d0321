"""Apple silicon: one device that shares the machine's memory.

Only `sysctl`, which is documented and needs no rights, is asked. Utilisation, power and temperature need `powermetrics`
as root, so they stay None. Memory stays None as well: it is the host's, and would be counted twice.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable

from lathe.engine.telemetry.sample import DeviceSample


def sysctl(name: str) -> str | None:
    """One value of the kernel's state."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class AppleReader:
    """Names the GPU of an Apple chip; asks once."""

    def __init__(
        self,
        ask: Callable[[str], str | None] = sysctl,
        system: str = platform.system(),
        machine: str = platform.machine(),
    ) -> None:
        self._rows: tuple[DeviceSample, ...] = ()
        if system == "Darwin" and machine == "arm64":
            self._rows = (DeviceSample(id="apple0", name=ask("machdep.cpu.brand_string") or "Apple GPU"),)

    def read(self) -> tuple[DeviceSample, ...]:
        """The one device, or none."""
        return self._rows
