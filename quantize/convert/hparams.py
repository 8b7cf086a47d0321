"""A checkpoint's hyper-parameters: typed access, and the metadata that every architecture shares.

Checkpoints say the same thing under different names; `SHARED` lists the names. Invariant: a value that reaches the
metadata has been checked for type and range, whatever config.json claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lathe.quantize.convert.writer import LARGEST_FLOAT, Metadata, Value, f32, u32
from lathe.quantize.errors import CheckpointError

MAX_UINT32 = 2**32 - 1
MAX_HEAD_WIDTH = 1 << 16


class Hparams:
    """config.json over a family's defaults."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
        self._switched_off = frozenset(key for key, value in config.items() if value is None)

    def get(self, *names: str) -> Any:
        """Return the first of `names` that is set, else None."""
        return next((self._values[name] for name in names if self._values.get(name) is not None), None)

    def switched_off(self, name: str) -> bool:
        """Whether config.json gives a name as null, which for some is not the same as leaving it out."""
        return name in self._switched_off

    def number(self, *names: str) -> float | None:
        """Return a number that fits into 32 bits; None when it is missing."""
        value = self.get(*names)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) < LARGEST_FLOAT:
            raise CheckpointError(f"config.json gives {names[0]} as {value!r:.60}, which is no number")
        return float(value)

    def count(self, *names: str) -> int | None:
        """Return an integer of 0 or more; None when it is missing."""
        value = self.get(*names)
        if value is None:
            return None
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= MAX_UINT32:
            raise CheckpointError(f"config.json gives {names[0]} as {value!r:.60}, which is no count")
        return value

    def need(self, *names: str) -> int:
        """Return a count that the conversion cannot do without; it is at least 1."""
        value = self.count(*names)
        if not value:
            raise CheckpointError(f"config.json needs {names[0]} of 1 or more, and gives {value}")
        return value

    @property
    def layers(self) -> int:
        return self.need("num_hidden_layers", "n_layer", "num_layers", "n_layers")

    @property
    def width(self) -> int:
        return self.need("hidden_size", "n_embd", "dim")

    @property
    def heads(self) -> int:
        return self.need("num_attention_heads", "n_head", "n_heads")

    @property
    def kv_heads(self) -> int:
        return self.need("num_key_value_heads", "n_kv_heads", "num_attention_heads", "n_head", "n_heads")

    @property
    def head_width(self) -> int:
        """Values per attention head."""
        width = self.count("head_dim") or self.width // self.heads
        if not 0 < width <= MAX_HEAD_WIDTH:
            raise CheckpointError(f"config.json gives heads of {width:,} values; 1 to {MAX_HEAD_WIDTH:,} are possible")
        return width


Maker = Callable[[Any], Value]

SHARED: Mapping[str, tuple[Maker, tuple[str, ...]]] = {
    "block_count": (u32, ("num_hidden_layers", "n_layer", "num_layers", "n_layers")),
    "context_length": (u32, ("max_position_embeddings", "n_ctx", "n_positions", "max_length")),
    "embedding_length": (u32, ("hidden_size", "n_embd", "dim")),
    "feed_forward_length": (u32, ("intermediate_size", "n_inner", "hidden_dim")),
    "attention.head_count": (u32, ("num_attention_heads", "n_head", "n_heads")),
    "attention.head_count_kv": (u32, ("num_key_value_heads", "n_kv_heads")),
    "attention.layer_norm_rms_epsilon": (f32, ("rms_norm_eps", "norm_eps")),
    "attention.layer_norm_epsilon": (f32, ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    "attention.key_length": (u32, ("head_dim",)),
    "attention.value_length": (u32, ("head_dim",)),
}
"""Metadata key below the architecture's name -> its type and the names it goes by in checkpoints."""


def shared_facts(hparams: Hparams) -> Metadata:
    """Read what `SHARED` lists; a name the checkpoint lacks gives no key."""
    facts: Metadata = {}
    for key, (make, names) in SHARED.items():
        value = hparams.count(*names) if make is u32 else hparams.number(*names)
        if value is not None:
            facts[key] = make(value)
    return facts
