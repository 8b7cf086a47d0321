"""Loading a model in a job: on the accelerator where it fits, with progress, after the preflight."""

from __future__ import annotations

from pathlib import Path

from lathe.engine.errors import DataError
from lathe.engine.jobs.values import JobContext
from lathe.engine.native.devices import devices
from lathe.engine.native.llama import LlamaModel
from lathe.quantize.gguf.header import read_sharded


def load(path: Path, gpu_layers: int | None, context: JobContext) -> LlamaModel:
    """Load `path`; with `gpu_layers` None, all of it on the accelerator, or none of it where that fails."""
    read_sharded(path)
    accelerated = any(device.kind in ("gpu", "igpu") for device in devices())
    if gpu_layers is None and accelerated:
        try:
            return LlamaModel(path, gpu_layers=-1)
        except DataError as error:
            context.log(f"{error.message}; trying without the accelerator", "warn")
    return LlamaModel(path, gpu_layers=gpu_layers or 0)
