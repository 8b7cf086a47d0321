"""Checkpoints as transformers runs them, in 32 bits on the CPU: the truth that conversions are compared with.

Only ever imported in a process of its own or a job's child: torch is heavy. Invariant: no code of a checkpoint runs, no
pickle is read, no network is asked, and no weight is left as chance made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lathe.quantize.errors import UnsupportedError

_TIED = "lm_head.weight"
"""Where checkpoints that share one matrix may keep it under the name of the output alone."""


def load(source: Path, loader: Any, **options: Any) -> Any:
    """Load with one of transformers' classes.

    Raises:
        UnsupportedError: transformers cannot load it, or weights are missing.
    """
    import torch

    try:
        model = loader.from_pretrained(
            str(source), dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            **options,
        )  # fmt: skip
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0][:300]
        raise UnsupportedError(f"transformers cannot load {source.name}: {line}") from error
    _give_tied_weights(model, source)
    return model.eval()


def _give_tied_weights(model: Any, source: Path) -> None:
    """transformers looks for a shared matrix under the embedding's name only, and leaves it empty otherwise."""
    import torch
    from safetensors import safe_open

    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if not empty:
        return
    embedding = model.get_input_embeddings()
    shard = next((path for path in sorted(source.glob("*.safetensors")) if _holds(path, _TIED)), None)
    if shard is None or not embedding.weight.is_meta:
        raise UnsupportedError(f"{source.name} has no weights for {', '.join(empty[:3])}")
    with safe_open(str(shard), framework="pt") as tensors:
        embedding.weight = torch.nn.Parameter(tensors.get_tensor(_TIED).float(), requires_grad=False)
    model.tie_weights()
    if left := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise UnsupportedError(f"{source.name} has no weights for {', '.join(left[:3])}")


def _holds(path: Path, name: str) -> bool:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as tensors:
        return name in tensors.keys()  # noqa: SIM118 - it is no dict
