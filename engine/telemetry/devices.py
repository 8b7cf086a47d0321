"""Every accelerator of this machine, whoever made it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from lathe.engine.telemetry.amd import AmdReader
from lathe.engine.telemetry.apple import AppleReader
from lathe.engine.telemetry.intel import IntelReader
from lathe.engine.telemetry.nvidia import NvidiaReader
from lathe.engine.telemetry.sample import DeviceSample


class Devices:
    """All readers together; safe to call from several threads."""

    def __init__(
        self,
        *,
        nvidia: NvidiaReader | None = None,
        amd: AmdReader | None = None,
        intel: IntelReader | None = None,
        apple: AppleReader | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.nvidia = nvidia or NvidiaReader()
        self._amd = amd or AmdReader(root)
        self._intel = intel or IntelReader(root)
        self._apple = apple or AppleReader()
        self._lock = threading.Lock()

    def read(self, pids: Iterable[int] = ()) -> tuple[DeviceSample, ...]:
        """Sample every device; `pids` are our processes, for drivers that tell memory only per process."""
        watched = tuple(pids)
        with self._lock:
            return (*self.nvidia.read(), *self._amd.read(watched), *self._intel.read(watched), *self._apple.read())

    def close(self) -> None:
        """Let go of the drivers."""
        self.nvidia.close()
