"""Gemma 1 to 3 and EmbeddingGemma: norms are stored as differences from one, and layers have up to four of them."""

from __future__ import annotations

import numpy as np
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.families.llama import LAYOUT
from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.graph import GELU, all_but_each, sliding_layers
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.rope import rope_parameters
from lathe.quantize.convert.writer import Metadata, array, f32, u32
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.gguf.types import ValueType


def _plus_one(values: Floats) -> Floats:
    return values + np.float32(1)


def _minus_one(values: Floats) -> Floats:
    return values - np.float32(1)


def _norm(to: str) -> Rule:
    return Rule(to, value=_plus_one, undo=_minus_one)


_GEMMA1 = LAYOUT | {
    "norm": _norm("output_norm"),
    "layers.{n}.input_layernorm": _norm("blk.{n}.attn_norm"),
    "layers.{n}.post_attention_layernorm": _norm("blk.{n}.ffn_norm"),
}
_GEMMA2 = _GEMMA1 | {
    "layers.{n}.post_attention_layernorm": _norm("blk.{n}.post_attention_norm"),
    "layers.{n}.pre_feedforward_layernorm": _norm("blk.{n}.ffn_norm"),
    "layers.{n}.post_feedforward_layernorm": _norm("blk.{n}.post_ffw_norm"),
}
_GEMMA3 = _GEMMA2 | {
    "layers.{n}.self_attn.q_norm": _norm("blk.{n}.attn_q_norm"),
    "layers.{n}.self_attn.k_norm": _norm("blk.{n}.attn_k_norm"),
}
_TIED = (r"lm_head\.weight",)
"""Embeddings are tied in every Gemma; some tools save the head again."""
_VISION = (r"(vision_tower|multi_modal_projector)\..*",)


def _facts(hparams: Hparams) -> Metadata:
    width = u32(hparams.head_width)
    return {
        "attention.head_count_kv": u32(hparams.kv_heads),
        "attention.key_length": width,
        "attention.value_length": width,
    }


def _window_facts(hparams: Hparams, period: int) -> Metadata:
    """Say which layers look at a window only, where they are not those that llama.cpp expects."""
    sliding = sliding_layers(hparams, period)
    facts = {"attention.sliding_window": u32(hparams.need("sliding_window"))}
    if sliding != all_but_each(period, hparams.layers):
        facts["attention.sliding_window_pattern"] = array(ValueType.BOOL, sliding)
    return facts


def _check_scale(hparams: Hparams, largest: int) -> None:
    """llama.cpp scales queries by the width of a head, and by the share of a head in the family's largest model."""
    scalar = hparams.number("query_pre_attn_scalar")
    used = hparams.width // hparams.heads if hparams.layers == largest else hparams.head_width
    if scalar is not None and scalar != used:
        raise UnsupportedError(
            f"config.json gives query_pre_attn_scalar as {scalar:g}; llama.cpp computes {used} for such a model"
        )


def _facts2(hparams: Hparams) -> Metadata:
    _check_scale(hparams, largest=46)
    facts = _facts(hparams) | _window_facts(hparams, 2)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if hparams.switched_off(name):
            raise UnsupportedError(f"config.json switches {name} off, which llama.cpp cannot for this architecture")
        if (cap := hparams.number(name)) is not None:
            facts[name] = f32(cap)
    return facts


def _facts3(hparams: Hparams) -> Metadata:
    _check_scale(hparams, largest=62)
    facts = _facts(hparams)
    if any(sliding_layers(hparams, 6)):
        facts |= _window_facts(hparams, 6)
    if (cap := hparams.number("final_logit_softcapping")) is not None:
        facts["final_logit_softcapping"] = f32(cap)
    local = rope_parameters(hparams, "sliding_attention").number("rope_theta")
    facts["rope.freq_base_swa"] = f32(local or 10_000.0)
    return facts


_ROPE = frozenset({"rope.freq_base"})
_FIXED: dict[str, tuple[object, ...]] = {"hidden_activation": GELU, "attention_bias": (False,)}
_DEFAULTS = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 256}
_DEFAULTS3 = {
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "vocab_size": 262_208,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 4096,
}
"""A multimodal config.json of Gemma 3 leaves out whatever is as in the 4B model's text part."""

GEMMA = Family(arch="gemma", tensors=_GEMMA1, unused=_TIED, defaults=_DEFAULTS, facts=_facts, silent=_ROPE)
GEMMA2 = Family(
    arch="gemma2",
    tensors=_GEMMA2,
    unused=_TIED,
    defaults=_DEFAULTS | {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    facts=_facts2,
    silent=_ROPE,
    fixed=_FIXED,
)
GEMMA3 = Family(
    arch="gemma3",
    tensors=_GEMMA3,
    unused=_TIED + _VISION,
    defaults=_DEFAULTS3,
    facts=_facts3,
    fixed=_FIXED,
)
EMBEDDING = Family(
    arch="gemma-embedding",
    dense=True,
    tensors=_GEMMA3,
    unused=_TIED,
    defaults=_DEFAULTS3,
    facts=_facts3,
    fixed=_FIXED,
)
