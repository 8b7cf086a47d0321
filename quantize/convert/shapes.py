"""Do the tensors fit the metadata? llama.cpp aborts or reads nonsense where they do not.

Sizes are written as products of what the metadata says: `v` vocabulary, `e` embedding, `f` feed-forward, `q`, `k` and
`w` the widths of all queries, keys and values, `c` context, `s` segments. Only tensors whose shape follows from the
metadata are listed; invariant: a plan that passes has the shapes that its own header announces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lathe.quantize.convert.writer import TensorEntry, Value
from lathe.quantize.errors import CheckpointError

_SHAPES: dict[str, str] = {
    "token_embd.weight": "v e",
    "output.weight": "v e",
    "position_embd.weight": "c e",
    "token_types.weight": "s e",
    "output_norm.weight": "e",
    "attn_norm.weight": "e",
    "ffn_norm.weight": "e",
    "attn_q.weight": "q e",
    "attn_k.weight": "k e",
    "attn_v.weight": "w e",
    "attn_q.bias": "q",
    "attn_k.bias": "k",
    "attn_v.bias": "w",
    "attn_qkv.weight": "q+k+w e",
    "attn_output.weight": "e q",
    "ffn_gate.weight": "f e",
    "ffn_up.weight": "f e|f+f e",
    "ffn_down.weight": "e f",
}
"""Tensor below its layer -> its shape; alternatives stand on both sides of `|`."""
_LAYER = re.compile(r"blk\.\d+\.")


def check_shapes(arch: str, metadata: Mapping[str, Value], entries: Iterable[TensorEntry], tokens: int) -> None:
    """Raise `CheckpointError` with the first tensor that does not fit."""
    sizes = _sizes(arch, metadata, tokens)
    for entry in entries:
        formula = _SHAPES.get(_LAYER.sub("", entry.name))
        if formula is None:
            continue
        expected = [_evaluate(variant, sizes) for variant in formula.split("|")]
        if entry.shape not in expected:
            wanted = " or ".join("x".join(map(str, shape)) for shape in expected)
            found = "x".join(map(str, entry.shape))
            raise CheckpointError(f"tensor {entry.name} has the shape {found}; config.json asks for {wanted}")


def _sizes(arch: str, metadata: Mapping[str, Value], tokens: int) -> dict[str, int]:
    def number(key: str, otherwise: int) -> int:
        value = metadata.get(f"{arch}.{key}")
        return int(value.data) if value is not None else otherwise

    embedding = number("embedding_length", 0)
    heads = number("attention.head_count", 1)
    kv_heads = number("attention.head_count_kv", heads)
    if not heads:
        raise CheckpointError("config.json gives a model without attention heads")
    segments = metadata.get("tokenizer.ggml.token_type_count")
    return {
        "v": tokens,
        "e": embedding,
        "f": number("feed_forward_length", 0),
        "q": heads * number("attention.key_length", embedding // heads),
        "k": kv_heads * number("attention.key_length", embedding // heads),
        "w": kv_heads * number("attention.value_length", embedding // heads),
        "c": number("context_length", 0),
        "s": int(segments.data) if segments is not None else 0,
    }


def _evaluate(formula: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sum(sizes[letter] for letter in term.split("+")) for term in formula.split())
