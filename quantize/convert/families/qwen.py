"""Qwen 2, 2.5 and 3: Llama's layout without its order of rows; Qwen 3 normalizes queries and keys."""

from __future__ import annotations

from lathe.quantize.convert.families.llama import FIXED, LAYOUT, chosen_window
from lathe.quantize.convert.family import Family
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.writer import Metadata, u32


def _facts(hparams: Hparams) -> Metadata:
    return {"attention.head_count_kv": u32(hparams.kv_heads)}


_DEFAULTS = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}

QWEN2 = Family(
    arch="qwen2", tensors=LAYOUT, defaults=_DEFAULTS, facts=_facts, fixed=FIXED, ignored_window=chosen_window
)
QWEN3 = Family(
    arch="qwen3",
    tensors=LAYOUT
    | {
        "layers.{n}.self_attn.q_norm": "blk.{n}.attn_q_norm",
        "layers.{n}.self_attn.k_norm": "blk.{n}.attn_k_norm",
    },
    defaults=_DEFAULTS | {"head_dim": 128},
    facts=_facts,
    fixed=FIXED | {"attention_bias": (False,)},
    ignored_window=chosen_window,
)
