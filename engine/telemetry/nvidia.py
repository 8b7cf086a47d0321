"""NVIDIA devices through NVML (nvidia-ml-py), never by parsing nvidia-smi.

Invariant: `read` never raises and never invents: a field the device does not tell is None, a device that fell off the
bus keeps its row without figures, a driver that has gone leaves no rows and is looked for every `RETRY_S` seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from lathe.engine.telemetry.sample import DeviceSample

TTL_S = 0.5
"""Readings younger than this are used again: sampler, planner and panels ask at the same time."""
RETRY_S = 30.0
_MIB_UNKNOWN = (1 << 64) - 1
"""NVML's `not available` for the memory of a process (WDDM, some containers)."""


def load_nvml() -> Any:
    """Import the binding; it finds libnvidia-ml only when it is initialised."""
    import pynvml

    return pynvml


class _Device(msgspec.Struct, frozen=True):
    """A device or MIG slice with what never changes."""

    handle: Any
    id: str
    name: str
    bus: str | None
    power_limit_w: float | None


class NvidiaReader:
    """Reads every visible NVIDIA device; safe to call from several threads."""

    def __init__(self, load: Callable[[], Any] = load_nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._retry_at = float("-inf")
        self._read_at = float("-inf")
        self._rows: tuple[DeviceSample, ...] = ()
        self.problem = ""
        """Why there are no devices, in the driver's words; empty when there are some, or none is installed."""
        self.driver: str | None = None

    def read(self) -> tuple[DeviceSample, ...]:
        """Sample all devices; nothing where there is no driver."""
        with self._lock:
            now = self._clock()
            if now - self._read_at < TTL_S:
                return self._rows
            self._read_at = now
            self._rows = self._sample(now)
            return self._rows

    def close(self) -> None:
        """Let go of the driver."""
        with self._lock:
            self._forget("")
            self._retry_at = float("inf")

    def _sample(self, now: float) -> tuple[DeviceSample, ...]:
        if self._nvml is None and not (now >= self._retry_at and self._start(now)):
            return ()
        try:
            return tuple(map(self._row, self._devices))
        except _DriverLost as lost:
            self._forget(str(lost))
            self._retry_at = now + RETRY_S
            return ()

    def _start(self, now: float) -> bool:
        self._retry_at = now + RETRY_S
        try:
            nvml = self._load()
            nvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - no binding, no library, no driver, a mismatch: all mean no devices
            self.problem = "" if type(error).__name__ == "NVMLError_LibraryNotFound" else str(error)
            return False
        self._nvml = nvml
        try:
            self.driver = self._ask(nvml.nvmlSystemGetDriverVersion)
            count = self._ask(nvml.nvmlDeviceGetCount) or 0
            self.problem = ""
            self._devices = [device for index in range(count) for device in self._describe(index)]
        except _DriverLost as lost:
            self._forget(str(lost))
            return False
        return True

    def _describe(self, index: int) -> list[_Device]:
        try:
            return self._opened(index)
        except _DeviceLost as lost:
            self.problem = f"nvidia{index}: {lost}"
            return []

    def _opened(self, index: int) -> list[_Device]:
        nvml = self._nvml
        handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return []
        name = _string(self._ask(nvml.nvmlDeviceGetName, handle)) or "NVIDIA"
        limit = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        bus = self._ask(nvml.nvmlDeviceGetPciInfo, handle)
        whole = _Device(
            handle,
            f"nvidia{index}",
            name,
            _string(getattr(bus, "busId", None)),
            None if limit is None else limit / 1000,
        )
        return [whole, *self._slices(whole)]

    def _slices(self, whole: _Device) -> list[_Device]:
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, whole.handle)
        if not mode or mode[0] != 1:
            return []
        slices = []
        for place in range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, whole.handle) or 0):
            handle = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, whole.handle, place)
            if handle is not None:
                name = _string(self._ask(nvml.nvmlDeviceGetName, handle)) or f"{whole.name} MIG"
                slices.append(_Device(handle, f"{whole.id}:{place}", name, whole.bus, None))
        return slices

    def _row(self, device: _Device) -> DeviceSample:
        try:
            return self._measured(device)
        except _DeviceLost as lost:
            self.problem = f"{device.id}: {lost}"
            return DeviceSample(id=device.id, name=device.name)

    def _measured(self, device: _Device) -> DeviceSample:
        nvml, handle, ask = self._nvml, device.handle, self._ask
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return DeviceSample(
            id=device.id,
            name=device.name,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            utilization=None if rates is None else rates.gpu / 100,
            temperature_c=self._temperature(handle),
            power_w=None if power is None else power / 1000,
            power_limit_w=device.power_limit_w,
            clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            processes=self._processes(handle),
        )

    def _temperature(self, handle: Any) -> float | None:
        value = self._ask(self._nvml.nvmlDeviceGetTemperatureV, handle, self._nvml.NVML_TEMPERATURE_GPU)
        if value is None:  # drivers before 560
            value = self._ask(self._nvml.nvmlDeviceGetTemperature, handle, self._nvml.NVML_TEMPERATURE_GPU)
        return None if value is None else float(value)

    def _processes(self, handle: Any) -> dict[int, int]:
        used: dict[int, int] = {}
        for ask in (self._nvml.nvmlDeviceGetComputeRunningProcesses, self._nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in self._ask(ask, handle) or ():
                memory = process.usedGpuMemory
                if memory is not None and memory != _MIB_UNKNOWN:
                    used[process.pid] = max(used.get(process.pid, 0), int(memory))  # one process may be in both lists
        return used

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call NVML: None where this device does not answer that.

        Raises:
            _DriverLost: nothing can be asked any more.
            _DeviceLost: this device cannot.
        """
        nvml = self._nvml
        try:
            return function(*arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_UNINITIALIZED,
                nvml.NVML_ERROR_DRIVER_NOT_LOADED,
                nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            ):
                raise _DriverLost(str(error)) from error
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                raise _DeviceLost(str(error)) from error
            return None

    def _forget(self, problem: str) -> None:
        nvml, self._nvml = self._nvml, None
        self._devices, self._rows, self.problem = [], (), problem
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                pass  # it is gone already


class _DriverLost(Exception):
    """The driver was unloaded, replaced or never fully there."""


class _DeviceLost(Exception):
    """One device fell off the bus or needs a reset."""


def _string(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
