"""Llama 1 to 3, and the families that kept its layout: Mistral, TinyLlama, SmolLM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.graph import SILU, all_but_each
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.rope import llama3_factors
from lathe.quantize.convert.writer import Metadata, u32
from lathe.quantize.errors import UnsupportedError

LAYOUT = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
    "layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm",
    "layers.{n}.mlp.gate_proj": "blk.{n}.ffn_gate",
    "layers.{n}.mlp.up_proj": "blk.{n}.ffn_up",
    "layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
}
"""The names most decoders since Llama share."""


def _interleaved(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Order rows so that rotated pairs are neighbours.

    Checkpoints keep the two halves of each rotary pair half a head apart, llama.cpp's `llama` graph side by side.
    """
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _query_rows(rows: int, hparams: Hparams) -> npt.NDArray[np.intp]:
    return _interleaved(rows, hparams.heads)


def _key_rows(rows: int, hparams: Hparams) -> npt.NDArray[np.intp]:
    return _interleaved(rows, hparams.kv_heads)


def _rotary_facts(hparams: Hparams) -> Metadata:
    return {
        "attention.head_count_kv": u32(hparams.kv_heads),
        "vocab_size": u32(hparams.need("vocab_size")),
        "rope.dimension_count": u32(hparams.head_width),
    }


def _facts(hparams: Hparams) -> Metadata:
    width = u32(hparams.head_width)
    return _rotary_facts(hparams) | {"attention.key_length": width, "attention.value_length": width}


def _computed(hparams: Hparams) -> dict[str, Floats]:
    factors = llama3_factors(hparams)
    return {} if factors is None else {"rope_freqs.weight": factors}


_TENSORS = LAYOUT | {
    "layers.{n}.self_attn.q_proj": Rule("blk.{n}.attn_q", rows=_query_rows),
    "layers.{n}.self_attn.k_proj": Rule("blk.{n}.attn_k", rows=_key_rows),
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
FIXED: dict[str, tuple[object, ...]] = {"hidden_act": SILU}


def window(hparams: Hparams) -> int | None:
    return hparams.count("sliding_window")


def chosen_window(hparams: Hparams) -> int | None:
    """Some checkpoints state a window and do not use it."""
    return window(hparams) if hparams.get("use_sliding_window") else None


def _smollm3_facts(hparams: Hparams) -> Metadata:
    """Every fourth layer has no positions: llama.cpp knows no other arrangement."""
    rotated = hparams.get("no_rope_layers")  # 1 where there are positions
    if rotated is None:
        rotated = all_but_each(hparams.count("no_rope_layer_interval") or 4, hparams.layers)
    if rotated != all_but_each(4, hparams.layers):
        raise UnsupportedError(
            "config.json gives no_rope_layers other than each fourth, which llama.cpp cannot compute"
        )
    return _rotary_facts(hparams)


LLAMA = Family(
    arch="llama",
    tensors=_TENSORS,
    defaults=_DEFAULTS | {"max_position_embeddings": 2048},
    facts=_facts,
    computed=_computed,
    fixed=FIXED,
)
MISTRAL = Family(
    arch="llama",
    tensors=_TENSORS,
    defaults=_DEFAULTS | {"max_position_embeddings": 131_072, "num_key_value_heads": 8},
    facts=_facts,
    computed=_computed,
    fixed=FIXED,
    ignored_window=window,
)
SMOLLM3 = Family(
    arch="smollm3",
    tensors=_TENSORS,
    defaults=_DEFAULTS | {"max_position_embeddings": 32_768, "num_key_value_heads": 4, "rope_theta": 2_000_000.0},
    facts=_smollm3_facts,
    computed=_computed,
    fixed=FIXED,
    ignored_window=chosen_window,
)

BEFORE_GGUF = Family(
    arch="llama",
    prefixes=(),
    tensors={
        "tok_embeddings": "token_embd",
        "norm": "output_norm",
        "output": "output",
        "layers.{n}.attention_norm": "blk.{n}.attn_norm",
        "layers.{n}.attention.wq": "blk.{n}.attn_q",
        "layers.{n}.attention.wk": "blk.{n}.attn_k",
        "layers.{n}.attention.wv": "blk.{n}.attn_v",
        "layers.{n}.attention.wo": "blk.{n}.attn_output",
        "layers.{n}.ffn_norm": "blk.{n}.ffn_norm",
        "layers.{n}.feed_forward.w1": "blk.{n}.ffn_gate",
        "layers.{n}.feed_forward.w2": "blk.{n}.ffn_down",
        "layers.{n}.feed_forward.w3": "blk.{n}.ffn_up",
    },
)
"""Meta's own names, which llama.cpp's first formats kept, rows in llama.cpp's order already."""
