"""`estimate`: will this model fit, how much of it on which device, and with how much context. Pure.

What the caller left open is chosen here: first as many layers on GPUs as fit, then as much context as memory allows
with a tenth left free. What the caller asked for is never changed: it fits or it does not, short by so much.
Invariant: the bytes per device sum to the footprint's total, and the verdict follows from them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from lathe.engine import footprint as need
from lathe.engine.footprint import MIB, Shape
from lathe.engine.states import Fit, Footprint
from lathe.engine.telemetry.memory import HostMemory
from lathe.engine.telemetry.sample import DeviceSample
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard

MIN_CONTEXT = 2048
"""Tokens below which an automatic context does not shrink."""
SMALL_CONTEXT = 8192
"""Tokens beyond which an automatic context does not push layers off a GPU."""
FREE_SHARE = 0.10
"""Of a device's memory; a load that leaves less is `tight`."""
KV_FLOOR = 2 * 1024 * MIB
"""An automatic KV cache may always grow to this, and beyond it to the size of the weights."""
UNIFIED_SHARE = 0.75
"""Of its memory that an Apple chip gives to one process's GPU buffers."""
HOST = "cpu"
_HOST_PART = 8
"""Of the compute buffer, what stays in main memory when every layer runs on GPUs: inputs and embeddings."""


class Gpu(msgspec.Struct, frozen=True):
    """A device that layers can go to."""

    id: str
    free: int
    total: int


def estimate(card: ModelCard, options: LoadOptions, devices: Sequence[DeviceSample], host: HostMemory) -> Fit:
    """Predict the memory of a load and choose what `options` leave open.

    Args:
        devices: accelerators that the inference library can use; none for a build without GPU support.
        host: main memory as it is now.
    """
    shape = need.shape_of(card)
    if shape is None:
        return _by_size(card, options, host)
    unified = any(device.id.startswith("apple") for device in devices)
    gpus = usable(devices)
    if unified:
        options = _with(options, gpu_layers=_all(shape) if options.gpu_layers in (None, -1) else options.gpu_layers)
        host = HostMemory(host.total, min(host.available, int(host.total * UNIFIED_SHARE)))
    elif not gpus:
        options = _with(options, gpu_layers=0 if options.gpu_layers in (None, -1) else options.gpu_layers)
    plans = [_plan(shape, sized, gpus, host) for sized in _sizes(shape, options, host)]
    return _best(plans, gpus).fit(card, options)


def usable(devices: Sequence[DeviceSample]) -> list[Gpu]:
    """Devices with known memory; a GPU that is cut into slices counts by its slices."""
    sliced = {device.id.partition(":")[0] for device in devices if ":" in device.id}
    return [
        Gpu(device.id, max(0, device.memory_total - device.memory_used), device.memory_total)
        for device in devices
        if device.memory_total and device.memory_used is not None and device.id not in sliced
    ]


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One way to load the model, and whether it fits."""

    footprint: Footprint
    options: LoadOptions
    available: dict[str, int]
    total: dict[str, int]
    layers: int
    asked_layers: int | None

    @property
    def short(self) -> int:
        """Bytes missing on the device that misses most."""
        return max(0, max(used - self.available[device] for device, used in self.footprint.devices.items()))

    @property
    def shortest(self) -> str:
        """That device."""
        return max(self.footprint.devices, key=lambda device: self.footprint.devices[device] - self.available[device])

    @property
    def comfortable(self) -> bool:
        """A tenth of every device that it uses would stay free."""
        return all(
            self.available[device] - used >= FREE_SHARE * self.total[device]
            for device, used in self.footprint.devices.items()
        )

    @property
    def complete(self) -> bool:
        """Every layer and the output are on GPUs."""
        return self.footprint.gpu_layers > self.layers

    def fit(self, card: ModelCard, asked: LoadOptions) -> Fit:
        """Judge."""
        on_gpu = len(self.available) > 1
        partial = on_gpu and self.asked_layers is None and not self.complete
        reasons = []
        if self.short:
            where = "RAM" if self.shortest == HOST else f"memory on {self.shortest}"
            reasons.append(f"does not fit: short by {size(self.short)} of {where}")
        elif not self.comfortable:
            free = min(self.available[device] - used for device, used in self.footprint.devices.items())
            reasons.append(f"fits, but leaves only {size(free)} free")
        if partial and not self.short:
            count = f"{self.footprint.gpu_layers} of {self.layers + 1}"
            reasons.append(f"{count} layers fit on the GPU, the rest runs on the CPU")
        wished = asked.context or card.context_length
        if not self.short and wished and self.options.context and self.options.context < wished:
            reasons.append(f"memory limits the context to {self.options.context:,} of {wished:,} tokens")
        wanted = (asked.context or 0) * asked.slots
        held = self.options.kv_tokens or wanted
        if not self.short and asked.kv_tokens is None and held < wanted:
            reasons.append(f"memory limits what {asked.slots} slots hold together to {held:,} of {wanted:,} tokens")
        verdict = "no" if self.short else "partial" if partial else "fits" if self.comfortable else "tight"
        return Fit(
            footprint=self.footprint,
            options=self.options,
            verdict=verdict,  # type: ignore[arg-type]  # one of the literals
            short=self.short,
            available=self.available,
            reason="; ".join(reasons),
        )


def _sizes(shape: Shape, options: LoadOptions, host: HostMemory) -> Iterator[LoadOptions]:
    """Context and cache sizes worth trying, largest first; what was asked for is the only one."""
    if shape.encoder:
        context = min(options.context or shape.context, shape.context)
        yield _with(options, context=context, kv_tokens=context)
        return
    if options.kv_tokens is not None:
        yield _with(options, context=min(options.context or shape.context, options.kv_tokens))
        return
    least = options.context or min(MIN_CONTEXT, shape.context)
    tokens = need.pad((options.context or shape.context) * options.slots)
    if options.context is None:
        tokens = max(need.pad(least), min(tokens, _modest(shape, options, host)))
    while True:
        context = options.context or min(shape.context, tokens)
        yield _with(options, context=context, kv_tokens=tokens)
        if tokens <= need.pad(least):
            return
        tokens = max(need.pad(least), need.pad(tokens // 2))


def _modest(shape: Shape, options: LoadOptions, host: HostMemory) -> int:
    """Tokens of an automatic cache: not more than the weights take, and never all that is free."""
    per_cell = max(1, need.kv_cache(shape, need.CELL_PAD, options.kv_type, options.slots))
    budget = max(KV_FLOOR, shape.weights)
    return need.CELL_PAD * max(1, min(budget, host.total) // per_cell)


def _plan(shape: Shape, options: LoadOptions, gpus: list[Gpu], host: HostMemory) -> _Plan:
    """Lay out one size; where the number of GPU layers is open, as many as fit."""
    if options.gpu_layers is not None:
        layers = _all(shape) if options.gpu_layers < 0 else min(options.gpu_layers, _all(shape))
        return _lay_out(shape, options, layers, gpus, host)
    low, high = 0, _all(shape)
    while low < high:  # what a GPU holds only grows with its layers, so bisection finds the most
        middle = (low + high + 1) // 2
        tried = _lay_out(shape, options, middle, gpus, host)
        if any(used > tried.available[device] for device, used in tried.footprint.devices.items() if device != HOST):
            high = middle - 1
        else:
            low = middle
    return _lay_out(shape, options, low, gpus, host)


def _lay_out(shape: Shape, options: LoadOptions, gpu_layers: int, gpus: list[Gpu], host: HostMemory) -> _Plan:
    """Bytes per device and kind with this many layers on the GPUs."""
    tokens = options.kv_tokens or shape.context
    cache = need.kv_cache(shape, tokens, options.kv_type, options.slots) / shape.layers
    scratch = need.compute(shape, tokens, options)
    offloaded = min(gpu_layers, shape.layers) if gpus else 0
    output_on_gpu = bool(gpus) and gpu_layers > shape.layers
    stay = shape.layers - offloaded
    # The token embedding stays in main memory; where it is the output matrix as well, the GPU gets a copy of it.
    mapped = shape.words + shape.layer * stay + (0 if output_on_gpu else shape.output)
    book = _Book()
    book.add(HOST, "overhead", need.process(shape))
    book.add(HOST, "weights", mapped)
    book.add(HOST, "kv_cache", cache * stay)
    book.add(HOST, "compute", scratch / _HOST_PART if output_on_gpu else scratch)
    for gpu, layers in _split(offloaded, gpus):
        book.add(gpu, "overhead", need.DEVICE_CONTEXT)
        book.add(gpu, "weights", shape.layer * layers)
        book.add(gpu, "kv_cache", cache * layers)
        book.add(gpu, "compute", scratch)
    if output_on_gpu:
        last, _ = _split(offloaded, gpus)[-1]
        book.add(last, "weights", shape.output or shape.words)
    return _Plan(
        footprint=Footprint(
            **book.kinds, devices=book.devices, gpu_layers=gpu_layers if gpus else 0, mapped=round(mapped)
        ),
        options=_with(options, gpu_layers=gpu_layers),
        available={HOST: host.available, **{gpu.id: gpu.free for gpu in gpus}},
        total={HOST: host.total, **{gpu.id: gpu.total for gpu in gpus}},
        layers=shape.layers,
        asked_layers=options.gpu_layers,
    )


class _Book:
    """Sums by kind and by device, so that they agree."""

    def __init__(self) -> None:
        self.kinds = {"weights": 0, "kv_cache": 0, "compute": 0, "overhead": 0}
        self.devices: dict[str, int] = {}

    def add(self, device: str, kind: str, amount: float) -> None:
        whole = round(amount)
        self.kinds[kind] += whole
        self.devices[device] = self.devices.get(device, 0) + whole


def _split(layers: int, gpus: list[Gpu]) -> list[tuple[str, int]]:
    """Layers per GPU in proportion to free memory, as llama.cpp splits them; GPUs that get none are left out."""
    free = sum(gpu.free for gpu in gpus)
    if not layers or not free:
        return [(gpus[0].id, layers)] if layers else []
    parts, given, seen = [], 0, 0
    for gpu in gpus:
        seen += gpu.free
        upto = round(layers * seen / free)
        if upto > given:
            parts.append((gpu.id, upto - given))
        given = upto
    return parts


def _best(plans: list[_Plan], gpus: list[Gpu]) -> _Plan:
    """The largest that leaves memory free, all on GPUs if a smaller context makes that possible; else the smallest."""
    if gpus:
        whole = next((plan for plan in plans if plan.comfortable and plan.complete), None)
        if whole is not None:
            return whole
        small = [plan for plan in plans if (plan.options.kv_tokens or 0) <= SMALL_CONTEXT]
        plans = small or plans[-1:]
    return next((plan for plan in plans if plan.comfortable), None) or plans[-1]


def _all(shape: Shape) -> int:
    """llama.cpp's count: every layer, and the output as one more."""
    return shape.layers + 1


def _with(options: LoadOptions, **changes: object) -> LoadOptions:
    return msgspec.structs.replace(options, **changes)


def _by_size(card: ModelCard, options: LoadOptions, host: HostMemory) -> Fit:
    """All that can be said of a model whose dimensions are unknown: whether its bytes fit."""
    used = card.bytes + need.PROCESS
    short = max(0, used - host.available)
    return Fit(
        footprint=Footprint(
            weights=card.bytes, kv_cache=0, compute=0, overhead=need.PROCESS, devices={HOST: used}, mapped=card.bytes
        ),
        options=options,
        verdict="no" if short else "unknown",
        short=short,
        available={HOST: host.available},
        reason=f"does not fit: short by {size(short)} of RAM" if short else "only the size of its weights is known",
    )


def size(amount: int) -> str:
    """Bytes for people: `1.2 GiB`, `340 MiB`."""
    return f"{amount / 1024**3:.1f} GiB" if amount >= 1024**3 else f"{amount / MIB:.0f} MiB"
