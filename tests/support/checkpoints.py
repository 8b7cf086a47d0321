"""Tiny deterministic checkpoints, made with numpy alone: every family's layout without torch or downloads.

`Recipe`s are data; the same recipe gives the same bytes on every machine, so that results can be pinned by hash.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "uint8": "U8"}
"""numpy's name -> safetensors' name; uint16 stands for the bits of bfloat16."""


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Lay tensors out as a safetensors file, in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_TYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in tensors.values())


def weights(name: str, shape: tuple[int, ...], kind: str = "BF16") -> np.ndarray:
    """Make values that depend on the tensor's name and shape alone; norms lie around one."""
    seed = int.from_bytes(hashlib.sha256(f"{name}{shape}".encode()).digest()[:8], "little")
    bits = np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 16, math.prod(shape), np.uint16)
    # exact arithmetic on integers and powers of two: no libm, the same everywhere
    values = (bits.astype(np.float32) / np.float32(1 << 16) - np.float32(0.5)) * np.float32(0.5)
    if len(shape) == 1 and "norm" in name.lower():
        values += np.float32(1)
    values = values.reshape(shape)
    match kind:
        case "F32":
            return values
        case "F16":
            return values.astype(np.float16)
        case "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16)
    raise ValueError(kind)


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Write a checkpoint folder; `files` are further documents (a dict or list becomes JSON), `shards` > 1 splits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    names = list(tensors)
    mapping: dict[str, str] = {}
    for index in range(shards):
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in part}))
        mapping |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return folder
