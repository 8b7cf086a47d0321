"""`MemoryPlanner`: the estimate against what this machine has free now; the effects around `estimate`.

Reads the model's header, main memory and devices, and accounts for models that are still loading (their memory is
promised, not yet taken) and for models imagined gone (theirs comes back). Invariant: a device counts only if the
installed llama.cpp can offload to it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import msgspec
from lathe.engine.estimate import estimate
from lathe.engine.states import Fit, WorkerState
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.memory import HostMemory, read_memory
from lathe.engine.telemetry.sample import DeviceSample
from lathe.engine.worker.messages import LOOKUP, LoadOptions
from lathe.quantize.card import ModelCard
from lathe.quantize.cards import read_card
from lathe.store.models import ModelEntry

_HOST = "cpu"
_OFFLOADS = {
    "nvidia": ("cuda", "vulkan"), "amd": ("hip", "vulkan"), "intel": ("sycl", "vulkan"), "apple": ("metal",)
}  # fmt: skip
"""Kind of device -> the ggml backends that can use it."""
_DISCRETE = ("nvidia", "amd", "apple")
"""Kinds worth a word when they lie idle; integrated graphics rarely beat the processor."""


class MemoryPlanner:
    """Called by the pool, in a thread, for every load and estimate."""

    def __init__(self, devices: Devices, reserve: int) -> None:
        self._devices = devices
        self._reserve = reserve
        """Bytes kept free on each device."""

    def __call__(
        self,
        entry: ModelEntry,
        options: LoadOptions,
        held: tuple[WorkerState, ...],
        gone: tuple[WorkerState, ...],
    ) -> Fit:
        """Predict the load of a model beside `held` and without `gone`.

        Raises:
            QuantizeError: the file must not reach native code.
        """
        return self.imagine(_card(entry), options, held, gone)

    def imagine(
        self,
        card: ModelCard,
        options: LoadOptions,
        held: tuple[WorkerState, ...] = (),
        gone: tuple[WorkerState, ...] = (),
    ) -> Fit:
        """Predict the load of a model that need not exist yet."""
        change = _change(held, gone)
        memory = read_memory()
        devices = self._devices.read()
        beside = _beside(options)
        usable = [self._adjusted(device, change, beside) for device in devices if _can_offload(device)]
        free = memory.available + change.get(_HOST, 0) - self._reserve - (0 if usable else beside)
        host = HostMemory(memory.total, max(0, min(free, memory.total)))
        fit = estimate(card, options, usable, host)
        if usable or options.gpu_layers == 0 or not any(device.id.startswith(_DISCRETE) for device in devices):
            return fit
        # Never a silent fall to the CPU: whoever has a GPU and does not use it is told.
        idle = "runs on the CPU: this build of llama.cpp cannot use the GPU (`lathe doctor` has the command)"
        return msgspec.structs.replace(fit, reason="; ".join(filter(None, (fit.reason, idle))))

    def _adjusted(self, device: DeviceSample, change: dict[str, int], beside: int) -> DeviceSample:
        if device.memory_used is None:
            return device
        used = max(0, device.memory_used - change.get(device.id, 0)) + self._reserve + beside
        return msgspec.structs.replace(device, memory_used=used)


def _card(entry: ModelEntry) -> ModelCard:
    if entry.path.startswith("scripted:") or entry.format == "remote":
        return ModelCard(format=entry.format)
    return read_card(Path(entry.path))


def _beside(options: LoadOptions) -> int:
    """Bytes of what is loaded with the model: its draft model and its adapters."""
    files = [*options.adapters, *([options.draft] if options.draft not in (None, LOOKUP) else [])]
    return sum(path.stat().st_size for path in map(Path, filter(None, files)) if path.is_file())


def _change(held: tuple[WorkerState, ...], gone: tuple[WorkerState, ...]) -> dict[str, int]:
    """Bytes per device that become free (or are promised: negative).

    Weights on the CPU are mapped from their file: page cache, which the kernel counts as available although a worker
    reads all of it for every token. So those of workers that stay are taken off here, or two models that fit one by
    one would evict each other's pages for ever.
    """
    change: dict[str, int] = {}
    for state in (*held, *gone):
        if state.predicted is None:
            continue
        for device, size in state.predicted.devices.items():
            mapped = state.predicted.mapped if device == _HOST else 0
            if state in gone:
                effect = size - mapped
            elif state.phase == "starting":
                effect = -size
            else:
                effect = -mapped
            change[device] = change.get(device, 0) + effect
    return change


def _can_offload(device: DeviceSample) -> bool:
    kind = device.id.rstrip("0123456789:")
    return bool(set(_OFFLOADS.get(kind, ())) & offload_backends())


@cache
def offload_backends() -> frozenset[str]:
    """GPU backends of the installed llama.cpp, told by its libraries' names: importing it here is out of bounds."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return frozenset()
    library = Path(spec.origin).parent / "lib"
    names = [path.name for path in library.glob("*ggml-*")] if library.is_dir() else []
    known = {backend for backends in _OFFLOADS.values() for backend in backends}
    return frozenset(backend for backend in known if any(f"ggml-{backend}" in name for name in names))
