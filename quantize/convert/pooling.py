"""How an embedder makes one vector of many: what sentence-transformers' modules say."""

from __future__ import annotations

from typing import Any

from lathe.quantize.checkpoint import Checkpoint, plain_name, read_json
from lathe.quantize.convert.writer import Metadata, u32
from lathe.quantize.errors import UnsupportedError

_MODES = {"mean": 1, "cls": 2, "lasttoken": 3}
"""Mode -> `enum llama_pooling_type`."""
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_facts(checkpoint: Checkpoint) -> Metadata:
    """Read the pooling module; nothing for a model that has none."""
    owner = checkpoint.folder / "modules.json"
    for module in checkpoint.modules:
        if not str(module.get("type", "")).endswith("Pooling"):
            continue
        path = checkpoint.folder / plain_name(module.get("path"), owner) / "config.json"
        config = read_json(path)
        mode = next((mode for name, mode in _FLAGS.items() if config.get(name)), config.get("pooling_mode"))
        if mode not in _MODES:
            raise UnsupportedError(f"{path} asks for a pooling that llama.cpp does not have: {mode!r:.40}")
        return {"pooling_type": u32(_MODES[mode])}
    return {}


def pooling_documents(kind: int | None) -> dict[str, Any]:
    """Write the modules of an embedder back: file name -> document; nothing for a model that makes no vectors."""
    mode = next((mode for mode, number in _MODES.items() if number == kind), None)
    if mode is None:
        return {}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    return {"modules.json": modules, "1_Pooling/config.json": {name: mode == other for name, other in _FLAGS.items()}}
