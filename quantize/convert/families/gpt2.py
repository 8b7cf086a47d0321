"""GPT-2: learned positions, one matrix for queries, keys and values, and weights stored the other way round."""

from __future__ import annotations

from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.graph import GELU
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.writer import Metadata, u32
from lathe.quantize.safetensors import Array


def _transposed(stored: Array, hparams: Hparams) -> Array:
    return stored.T


def _conv1d(to: str) -> Rule:
    """GPT-2's layers multiply from the left; a bias is its own transpose."""
    return Rule(to, view=_transposed, view_back=_transposed)


def _facts(hparams: Hparams) -> Metadata:
    return {"feed_forward_length": u32(hparams.count("n_inner") or 4 * hparams.width)}


GPT2 = Family(
    arch="gpt2",
    prefixes=("transformer.",),
    tensors={
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "lm_head": "output",
        "h.{n}.ln_1": "blk.{n}.attn_norm",
        "h.{n}.attn.c_attn": _conv1d("blk.{n}.attn_qkv"),
        "h.{n}.attn.c_proj": _conv1d("blk.{n}.attn_output"),
        "h.{n}.ln_2": "blk.{n}.ffn_norm",
        "h.{n}.mlp.c_fc": _conv1d("blk.{n}.ffn_up"),
        "h.{n}.mlp.c_proj": _conv1d("blk.{n}.ffn_down"),
    },
    defaults={
        "n_ctx": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 50_257,
        "tie_word_embeddings": True,
    },
    facts=_facts,
    fixed={
        "activation_function": GELU,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
)
