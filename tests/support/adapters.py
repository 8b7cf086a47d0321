"""PEFT adapters of made-up weights, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from support.checkpoints import safetensors_bytes, weights


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    """Write a PEFT folder."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def pair(name: str, rows: int, columns: int, rank: int = 4) -> dict[str, np.ndarray]:
    """The two halves for one weight."""
    return {
        f"base_model.model.{name}.lora_A.weight": weights(f"{name}.A", (rank, columns), "F32"),
        f"base_model.model.{name}.lora_B.weight": weights(f"{name}.B", (rows, rank), "F32"),
    }
