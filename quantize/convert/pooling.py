"""How an embedder makes one vector of many: what sentence-transformers' modules say."""

from __future__ import annotations

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
