"""`ModelCard`: what a model file says about itself, whatever its format."""

from __future__ import annotations

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts read from a model's header; `None` is unknown."""

    format: str
    """`gguf`, `safetensors`, `onnx`, `ggml`."""
    architecture: str | None = None
    """llama.cpp's name (`llama`, `qwen3`, `bert`) for GGUF, `model_type` for checkpoints."""
    name: str | None = None
    parameters: int | None = None
    bytes: int = 0
    """Of tensor data and header together, over all shards."""
    tensors: int = 0
    tensor_types: dict[str, int] = {}
    """Type name -> bytes; the quant mix."""
    file_type: str | None = None
    """`Q4_K_M` and the like, from general.file_type or, for checkpoints, the dtype."""
    bits_per_weight: float | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    key_length: int | None = None
    """Per head; the head dimension of keys."""
    value_length: int | None = None
    sliding_window: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    vocabulary: int | None = None
    tokenizer: str | None = None
    """`gpt2`, `llama`, `bert`, ... as in tokenizer.ggml.model."""
    pre_tokenizer: str | None = None
    chat_template: str | None = None
    template_sha256: str | None = None
    licence: str | None = None
    pooling: str | None = None
    """For embedders: mean, cls, last, rank."""
    shards: int = 1
    adapter: bool = False
    """A LoRA adapter, not a model."""
    kind: str = "model"
    """`model`, `adapter`, `vocabulary`, `imatrix`, `projector` or `control-vector`: only the first loads by itself."""
    warnings: tuple[str, ...] = ()
    """Odd but not dangerous: unknown template, missing licence, ..."""
