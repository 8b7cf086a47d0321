"""Whether a header makes sense: hyper-parameters in range, adapters and importance matrices in pairs.

llama.cpp checks most of this too, but with assertions that end the process. What it reports politely by itself (a
missing tensor, an unknown pre-tokenizer) is left to it. Invariant: no number of an accepted model reaches an
assertion of llama.cpp's loader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.parser import quoted
from lathe.quantize.gguf.types import MAX_ITEMS, ValueType
from lathe.quantize.gguf.values import GgufArray, GgufHeader, GgufTensor
from lathe.quantize.gguf.vocabulary import check_vocabulary

MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_HEADS = 4096
MAX_ARCHITECTURE = 64
"""Characters of its name."""
_LENGTH = 1 << 20
_POSITIONS = 1 << 28

_RANGES: dict[str, tuple[int, int]] = {
    "attention.head_count": (0, MAX_HEADS),  # 0: recurrent models
    "attention.head_count_kv": (0, MAX_HEADS),
    "attention.key_length": (1, _LENGTH),
    "attention.key_length_swa": (1, _LENGTH),
    "attention.sliding_window": (0, _POSITIONS),
    "attention.value_length": (1, _LENGTH),
    "attention.value_length_swa": (1, _LENGTH),
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, _POSITIONS),
    "embedding_length": (1, _LENGTH),
    "embedding_length_out": (1, _LENGTH),
    "expert_count": (0, MAX_EXPERTS),
    "expert_group_count": (0, MAX_EXPERTS),
    "expert_group_used_count": (0, MAX_EXPERTS),
    "expert_used_count": (0, MAX_EXPERTS),
    "feed_forward_length": (0, 1 << 24),
    "nextn_predict_layers": (0, MAX_LAYERS),
    "pooling_type": (0, 4),
    "rope.dimension_count": (0, _LENGTH),
    "rope.dimension_count_swa": (0, _LENGTH),
    "rope.scaling.original_context_length": (1, _POSITIONS),
    "vocab_size": (1, MAX_ITEMS),
}
"""Inclusive; all of type uint32, far beyond what exists and far below what overflows."""

_PER_LAYER = {"attention.head_count", "attention.head_count_kv", "expert_used_count", "feed_forward_length"}
"""May be an array with one number per layer."""

_REQUIRED = ("block_count", "context_length", "embedding_length")

_POSITIVE = ("rope.freq_base", "rope.freq_base_swa")
_FRACTIONS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon")

_STRINGS = (
    "general.architecture",
    "general.license",
    "general.name",
    "general.type",
    "tokenizer.chat_template",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
)
_SPLIT_TYPES = {
    "split.no": ValueType.UINT16,
    "split.count": ValueType.UINT16,
    "split.tensors.count": ValueType.INT32,
}
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_OWN_EMBEDDINGS = ("eagle3", "dflash")
"""Draft models, whose embeddings have the target's vocabulary."""


def check_header(header: GgufHeader) -> None:
    """Raise `GgufError` (E_GGUF_METADATA, E_GGUF_TENSOR, E_GGUF_MODEL) when the header makes no sense."""
    for key in _STRINGS:
        _require_type(header, key, ValueType.STRING)
    for key, kind in _SPLIT_TYPES.items():
        _require_type(header, key, kind)
    _require_type(header, "general.file_type", ValueType.UINT32)
    match header.kind:
        case "model" | "vocabulary":
            _check_model(header)
        case "adapter":
            _check_adapter(header)
        case "imatrix":
            _check_imatrix(header)
        case "projector" | "control-vector" | "shard":
            pass


def check_embedding(header: GgufHeader, tensors: Sequence[GgufTensor]) -> None:
    """Raise unless the token embeddings, wherever they are among the shards, have a row for each token."""
    tokens = header.array("tokenizer.ggml.tokens")
    if tokens is None or header.architecture in _OWN_EMBEDDINGS:
        return
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and math.prod(tensor.shape[1:]) != len(tokens):
            raise _error(
                header,
                f"tensor 'token_embd.weight' has {math.prod(tensor.shape[1:]):,} rows for {len(tokens):,} tokens",
                "E_GGUF_MODEL",
            )


def _check_model(header: GgufHeader) -> None:
    architecture = header.architecture
    if not architecture or len(architecture) > MAX_ARCHITECTURE:
        raise _error(header, "key 'general.architecture' is missing, empty or no name", "E_GGUF_MODEL")
    if header.kind == "model":
        for name in _REQUIRED:
            if header.hyper(name) is None:
                raise _error(header, f"key '{architecture}.{name}' is missing", "E_GGUF_MODEL")
    for name in _RANGES:
        _check_range(header, name)
    _check_floats(header)
    _check_heads(header)
    _check_experts(header)
    _check_rope_scaling(header)
    check_vocabulary(header)
    check_embedding(header, header.tensors)


def _check_range(header: GgufHeader, name: str) -> None:
    key = f"{header.architecture}.{name}"
    value = header.metadata.get(key)
    if value is None:
        return
    low, high = _RANGES[name]
    if isinstance(value, GgufArray):
        layers = header.hyper("block_count")
        if name not in _PER_LAYER or value.items not in (ValueType.UINT32, ValueType.INT32):
            raise _error(header, f"key {quoted(key)} must not be an array of {value.items.name.lower()}")
        if layers is not None and len(value) != layers:
            raise _error(header, f"key {quoted(key)} has {len(value):,} items for {layers} layers", "E_GGUF_MODEL")
    else:
        _require_type(header, key, ValueType.UINT32)
    numbers = per_layer(header, name)
    if wrong := [number for number in numbers if not low <= number <= high]:
        raise _error(header, f"key {quoted(key)} is {wrong[0]:,}; {low} to {high:,} makes sense", "E_GGUF_MODEL")


def per_layer(header: GgufHeader, name: str) -> list[int]:
    """Return a hyper-parameter as a list: one number, one per layer, or nothing."""
    value = header.hyper(name)
    if value is None:
        return []
    return value.tolist() if isinstance(value, GgufArray) else [int(value)]


def _check_floats(header: GgufHeader) -> None:
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        if key.startswith(prefix) and isinstance(value, float) and not math.isfinite(value):
            raise _error(header, f"key {quoted(key)} is {value}", "E_GGUF_MODEL")
    for names, low, high in ((_POSITIVE, 1e-30, math.inf), (_FRACTIONS, 0.0, 1.0)):
        for name in names:
            _require_type(header, prefix + name, ValueType.FLOAT32)
            number = header.hyper(name)
            if isinstance(number, float) and not low <= number <= high:
                raise _error(header, f"key {quoted(prefix + name)} is {number}", "E_GGUF_MODEL")


def _check_heads(header: GgufHeader) -> None:
    heads, shared = per_layer(header, "attention.head_count"), per_layer(header, "attention.head_count_kv")
    layers = max(len(heads), len(shared))
    if not heads or not shared:
        return
    for query, key_value in zip(_stretch(heads, layers), _stretch(shared, layers), strict=True):
        if key_value and query % key_value:
            raise _error(
                header, f"{query} attention heads cannot share {key_value} key-value heads evenly", "E_GGUF_MODEL"
            )


def _stretch(numbers: list[int], count: int) -> list[int]:
    return numbers * count if len(numbers) == 1 else numbers


def _check_experts(header: GgufHeader) -> None:
    def first(name: str) -> int:
        return max(per_layer(header, name), default=0)

    experts, used, groups = first("expert_count"), first("expert_used_count"), first("expert_group_count")
    used_groups, ahead = first("expert_group_used_count"), first("nextn_predict_layers")
    problem = ""
    if (header.architecture or "").startswith("hunyuan") and experts <= 1:
        return  # dense models of this family say so with one expert
    if used > experts or (experts and not used):
        problem = f"uses {used} of {experts} experts"
    elif groups and groups >= experts:
        problem = f"has {groups} groups of {experts} experts"
    elif groups > 1 and (experts % groups or not 0 < used_groups < groups):
        problem = f"uses {used_groups} of {groups} groups of {experts} experts"
    elif ahead > first("block_count"):
        problem = f"has {ahead} prediction layers among {first('block_count')} layers"
    if problem:
        raise _error(header, f"the model {problem}", "E_GGUF_MODEL")


def _check_rope_scaling(header: GgufHeader) -> None:
    key = f"{header.architecture}.rope.scaling.type"
    _require_type(header, key, ValueType.STRING)
    value = header.text(key)
    if value is not None and value not in _ROPE_SCALINGS:
        raise _error(
            header, f"key {quoted(key)} is {quoted(value)}; known: {', '.join(_ROPE_SCALINGS)}", "E_GGUF_MODEL"
        )


def _check_adapter(header: GgufHeader) -> None:
    for key in ("general.architecture", "adapter.type"):
        if not header.text(key):
            raise _error(header, f"key {key!r} is missing or no string")
    _require_type(header, "adapter.lora.alpha", ValueType.FLOAT32)
    alpha = header.metadata.get("adapter.lora.alpha")
    if isinstance(alpha, float) and not math.isfinite(alpha):
        raise _error(header, f"key 'adapter.lora.alpha' is {alpha}", "E_GGUF_MODEL")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    for name, shape in shapes.items():
        stem, _, half = name.rpartition(".")
        if half not in ("lora_a", "lora_b"):
            continue
        other = shapes.get(f"{stem}.lora_{'b' if half == 'lora_a' else 'a'}")
        if other is None:
            raise _error(header, f"tensor {quoted(name)} has no counterpart", "E_GGUF_TENSOR")
        rank = 0 if stem == "token_embd.weight" else 1  # rows are looked up there: the first half lies on its side
        if half == "lora_a" and (len(shape) < 2 or len(other) < 2 or shape[rank] != other[0]):
            raise _error(header, f"the ranks of {quoted(stem)} differ: {shape} and {other}", "E_GGUF_TENSOR")


def _check_imatrix(header: GgufHeader) -> None:
    names = {tensor.name for tensor in header.tensors}
    for tensor in header.tensors:
        stem, _, half = tensor.name.rpartition(".")
        if half not in ("in_sum2", "counts") or tensor.type.name != "F32":
            raise _error(header, f"tensor {quoted(tensor.name)} does not belong into an imatrix", "E_GGUF_TENSOR")
        if f"{stem}.{'counts' if half == 'in_sum2' else 'in_sum2'}" not in names:
            raise _error(header, f"tensor {quoted(tensor.name)} has no counterpart", "E_GGUF_TENSOR")


def _require_type(header: GgufHeader, key: str, kind: ValueType) -> None:
    found = header.value_types.get(key, kind)
    if found is not kind:
        raise _error(header, f"key {quoted(key)} is of type {found.name.lower()}; {kind.name.lower()} is needed")


def _error(header: GgufHeader, message: str, code: str = "E_GGUF_METADATA") -> GgufError:
    return GgufError(f"{header.path}: {message}", code=code)
