"""An NVML that tests can break: same functions and errors as nvidia-ml-py, devices from a table."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """`devices`: one dict per device, key -> value, missing keys are not supported; `fault` fails every call."""

    NVMLError = NVMLError
    NVML_ERROR_UNINITIALIZED, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_DRIVER_NOT_LOADED = 1, 3, 9
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED, NVML_ERROR_LIB_RM_VERSION_MISMATCH = 15, 16, 18
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices = list(devices)
        self.fault: int | None = None
        self.inits = self.shutdowns = self.calls = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.fault:
            raise NVMLError(self.fault)

    def nvmlShutdown(self) -> None:
        self.shutdowns += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self.devices[index].get("lost"):
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return self.devices[index]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], place: int) -> dict[str, Any]:
        return self._get(handle, "slices")[place]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return len(self._get(handle, "slices"))

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        self._get(handle, "slices")
        return [1, 1]

    def nvmlDeviceGetClockInfo(self, handle: dict[str, Any], kind: int) -> int:
        return self._get(handle, "sm_clock" if kind == self.NVML_CLOCK_SM else "mem_clock")

    def nvmlDeviceGetTemperatureV(self, handle: dict[str, Any], sensor: int) -> int:
        return self._get(handle, "temperature_v")

    def nvmlDeviceGetTemperature(self, handle: dict[str, Any], sensor: int) -> int:
        return self._get(handle, "temperature")

    def __getattr__(self, name: str) -> Callable[[dict[str, Any]], Any]:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda handle: self._get(handle, name.removeprefix("nvmlDeviceGet"))

    def _get(self, handle: dict[str, Any], key: str) -> Any:
        self.calls += 1
        if self.fault:
            raise NVMLError(self.fault)
        if handle.get("lost"):
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        if key not in handle:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return handle[key]


def h100(**changes: Any) -> dict[str, Any]:
    """A data-centre card that answers everything."""
    return {
        "Name": "NVIDIA H100 80GB HBM3",
        "EnforcedPowerLimit": 700_000,
        "PciInfo": SimpleNamespace(busId=b"00000000:18:00.0"),
        "MemoryInfo": SimpleNamespace(total=85_520_809_984, used=1_073_741_824, free=84_447_068_160),
        "UtilizationRates": SimpleNamespace(gpu=42, memory=10),
        "PowerUsage": 123_456,
        "temperature_v": 51,
        "sm_clock": 1980,
        "mem_clock": 2619,
        "ComputeRunningProcesses": [SimpleNamespace(pid=11, usedGpuMemory=500_000_000)],
        "GraphicsRunningProcesses": [],
    } | changes
