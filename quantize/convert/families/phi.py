"""Phi-3 and Phi-4: Llama's layout with fused projections, and LongRoPE's two sets of factors."""

from __future__ import annotations

import math

import numpy as np
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.families.llama import FIXED, window
from lathe.quantize.convert.family import Family
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.rope import rope_parameters, yarn_magnitude
from lathe.quantize.convert.writer import LARGEST_FLOAT, Metadata, f32, u32
from lathe.quantize.errors import CheckpointError, UnsupportedError


def _rotated(hparams: Hparams) -> int:
    """Values per head that are rotated."""
    part = rope_parameters(hparams).number("partial_rotary_factor")
    return int((1.0 if part is None else part) * hparams.width) // hparams.heads


def _facts(hparams: Hparams) -> Metadata:
    facts = {
        "rope.scaling.original_context_length": u32(hparams.need("original_max_position_embeddings")),
        "attention.head_count_kv": u32(hparams.kv_heads),
        "rope.dimension_count": u32(_rotated(hparams)),
        "attention.sliding_window": u32(hparams.count("sliding_window") or 0),  # 0 tells Phi-4 from Phi-3
    }
    if rope_parameters(hparams).get("long_factor"):
        facts["rope.scaling.attn_factor"] = f32(_attention_factor(hparams))
    return facts


def _attention_factor(hparams: Hparams) -> float:
    """How much attention is scaled for the longer context."""
    original = hparams.need("original_max_position_embeddings")
    scale = hparams.need("max_position_embeddings") / original
    match kind := rope_parameters(hparams).get("rope_type"):
        case "su" | "longrope":
            return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        case "yarn":
            return yarn_magnitude(scale)
        case _:
            raise UnsupportedError(f"config.json asks for the rope scaling {kind!r:.40}, which Phi-3 does not have")


def _computed(hparams: Hparams) -> dict[str, Floats]:
    rope = rope_parameters(hparams)
    if not rope.get("long_factor"):
        return {}
    return {f"rope_factors_{word}.weight": _factors(rope, word, _rotated(hparams)) for word in ("long", "short")}


def _factors(rope: Hparams, word: str, rotated: int) -> Floats:
    values = rope.get(f"{word}_factor")
    if not isinstance(values, list) or len(values) * 2 != rotated or not all(_is_factor(value) for value in values):
        raise CheckpointError(f"rope_scaling.{word}_factor must hold {rotated // 2} positive numbers")
    return np.array(values, np.float32)


def _is_factor(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < LARGEST_FLOAT  # type: ignore[operator]


PHI3 = Family(
    arch="phi3",
    tensors={
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "lm_head": "output",
        "layers.{n}.input_layernorm": "blk.{n}.attn_norm",
        "layers.{n}.self_attn.qkv_proj": "blk.{n}.attn_qkv",
        "layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
        "layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm",
        "layers.{n}.mlp.gate_up_proj": "blk.{n}.ffn_up",
        "layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
    },
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    },
    facts=_facts,
    silent=frozenset({"rope.scaling.type"}),
    computed=_computed,
    fixed=FIXED,
    ignored_window=window,
)
