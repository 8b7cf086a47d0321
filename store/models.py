"""The registry of models: `ModelEntry` and its repository."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelFormat = Literal["gguf", "safetensors", "onnx", "ggml", "remote"]


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model the workspace knows."""

    id: str
    """First 12 hex digits of sha256 over (path, size, mtime); stable while the file is untouched."""
    name: str
    path: str
    """File, or folder for checkpoints; the first shard for sharded GGUF."""
    format: ModelFormat
    bytes: int
    sha256: str | None = None
    """None until hashed in the background; for folders the hash over its sorted (name, sha256) list."""
    origin: Literal["made", "embedded", "linked", "hf-cache", "ollama", "lm-studio", "remote"] = "linked"
    """`made`: Lathe wrote it, and `rm` may delete it."""
    parent: str | None = None
    """Id of the model it was converted or quantized from."""
    recipe: dict[str, float | int | str | bool | None] = {}
    added_at: float = 0.0
    verified_at: float | None = None
    missing: bool = False
    """The file was not there at the last look."""
    card: dict[str, object] = {}
    """`lathe.quantize.card.ModelCard` as plain data: a cache of the header, rebuilt by scan."""
    measured: dict[str, float | int | str | None] = {}
    """Figures measured on this machine: perplexity, tokens_per_s, ttft_s, ..."""
    tags: tuple[str, ...] = ()
