"""BERT and what descends from it: MiniLM, BGE, XLM-RoBERTa, Nomic; embedders, and rerankers with a scoring head."""

from __future__ import annotations

from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.graph import GELU
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.writer import Metadata, array, flag, u32
from lathe.quantize.gguf.types import ValueType
from lathe.quantize.safetensors import Array

_RANK = 4
"""`enum llama_pooling_type`: the scoring head's output instead of a vector."""

_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{n}.attention.self.query": "blk.{n}.attn_q",
    "encoder.layer.{n}.attention.self.key": "blk.{n}.attn_k",
    "encoder.layer.{n}.attention.self.value": "blk.{n}.attn_v",
    "encoder.layer.{n}.attention.output.dense": "blk.{n}.attn_output",
    "encoder.layer.{n}.attention.output.LayerNorm": "blk.{n}.attn_output_norm",
    "encoder.layer.{n}.intermediate.dense": "blk.{n}.ffn_up",
    "encoder.layer.{n}.output.dense": "blk.{n}.ffn_down",
    "encoder.layer.{n}.output.LayerNorm": "blk.{n}.layer_output_norm",
}
_PREFIXES = ("bert.", "roberta.")
_POSITIONS = r"embeddings\.position_ids"
_POOLER = r"pooler\.dense\..*"
_PRETRAINING = r"(cls\.predictions|cls\.seq_relationship|lm_head)\..*"
_DEFAULTS = {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": GELU,
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}


def _encoder_facts(hparams: Hparams) -> Metadata:
    return {"attention.causal": flag(False)}


def _scorer_facts(hparams: Hparams) -> Metadata:
    """Say that the model scores; its labels, where the checkpoint has real ones."""
    facts = _encoder_facts(hparams) | {"pooling_type": u32(_RANK)}
    labels = hparams.get("id2label")
    if isinstance(labels, dict) and not (len(labels) == 2 and "LABEL_0" in labels.values()):
        facts["classifier.output_labels"] = array(
            ValueType.STRING, [str(labels[key]) for key in sorted(labels, key=_number)]
        )
    return facts


def _number(label: object) -> tuple[int, str]:
    """JSON has its numbers as text, and `10` belongs behind `9`."""
    return (int(str(label)) if str(label).isdecimal() else 0), str(label)


BERT = Family(
    arch="bert",
    prefixes=_PREFIXES,
    tensors=_TENSORS,
    unused=(_POSITIONS, _POOLER, _PRETRAINING),
    defaults=_DEFAULTS,
    facts=_encoder_facts,
    fixed=_FIXED,
)
BERT_SCORER = Family(
    arch="bert",
    prefixes=_PREFIXES,
    tensors=_TENSORS | {"pooler.dense": "cls", "classifier": "cls.output"},
    unused=(_POSITIONS, _PRETRAINING),
    defaults=_DEFAULTS,
    facts=_scorer_facts,
    fixed=_FIXED,
)


def _offset(hparams: Hparams) -> int:
    """RoBERTa's positions start behind the padding token's id."""
    return 1 + (hparams.count("pad_token_id") or 0)


def _without_offset(stored: Array, hparams: Hparams) -> Array:
    return stored[_offset(hparams) :]


def _context(hparams: Hparams) -> Metadata:
    return {"context_length": u32(hparams.need("max_position_embeddings") - _offset(hparams))}


def _roberta_facts(hparams: Hparams) -> Metadata:
    return _encoder_facts(hparams) | _context(hparams)


def _roberta_scorer_facts(hparams: Hparams) -> Metadata:
    return _scorer_facts(hparams) | _context(hparams)


_ROBERTA_TENSORS = _TENSORS | {
    "embeddings.position_embeddings": Rule("position_embd", view=_without_offset),
}
_ROBERTA_DEFAULTS = _DEFAULTS | {"pad_token_id": 1}

ROBERTA = Family(
    arch="bert",
    prefixes=_PREFIXES,
    tensors=_ROBERTA_TENSORS,
    unused=(_POSITIONS, _POOLER, _PRETRAINING),
    defaults=_ROBERTA_DEFAULTS,
    facts=_roberta_facts,
    fixed=_FIXED,
)
ROBERTA_SCORER = Family(
    arch="bert",
    prefixes=_PREFIXES,
    tensors=_ROBERTA_TENSORS | {"classifier.dense": "cls", "classifier.out_proj": "cls.output"},
    unused=(_POSITIONS, _POOLER, _PRETRAINING),
    defaults=_ROBERTA_DEFAULTS,
    facts=_roberta_scorer_facts,
    fixed=_FIXED,
)

_NOMIC_FIXED: dict[str, tuple[object, ...]] = {
    "activation_function": ("swiglu",),
    "causal": (False,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
}


def _nomic_facts(hparams: Hparams) -> Metadata:
    trained = hparams.count("max_trained_positions") or 2048
    return _encoder_facts(hparams) | {"context_length": u32(min(hparams.need("n_positions"), trained))}


NOMIC = Family(
    arch="nomic-bert",
    tensors={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "emb_ln": "token_embd_norm",
        "encoder.layers.{n}.attn.Wqkv": "blk.{n}.attn_qkv",
        "encoder.layers.{n}.attn.out_proj": "blk.{n}.attn_output",
        "encoder.layers.{n}.norm1": "blk.{n}.attn_output_norm",
        "encoder.layers.{n}.mlp.fc11": "blk.{n}.ffn_up",
        "encoder.layers.{n}.mlp.fc12": "blk.{n}.ffn_gate",
        "encoder.layers.{n}.mlp.fc2": "blk.{n}.ffn_down",
        "encoder.layers.{n}.norm2": "blk.{n}.layer_output_norm",
    },
    unused=(_POSITIONS, _POOLER, _PRETRAINING),
    defaults={
        "activation_function": "swiglu",
        "causal": False,
        "prenorm": False,
        "rotary_emb_fraction": 1.0,
        "qkv_proj_bias": True,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
    },
    facts=_nomic_facts,
    fixed=_NOMIC_FIXED,
)
