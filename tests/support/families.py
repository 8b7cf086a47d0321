"""One tiny checkpoint per model family: configuration, tensor shapes and tokenizer, as transformers lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import tokenizer_files as tokenizers
from support.checkpoints import weights, write_checkpoint

Shapes = dict[str, tuple[int, ...]]

WIDTH, HEADS, KV_HEADS, HEAD, FEED, LAYERS = 64, 4, 2, 16, 96, 2


@dataclass(frozen=True)
class Recipe:
    """How to make a checkpoint of one family."""

    config: Mapping[str, Any]
    shapes: Shapes
    files: Callable[[], dict[str, Any]]
    kind: str = "BF16"
    shards: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further files."""

    def write(self, folder: Path) -> Path:
        """Write the checkpoint folder."""
        tensors = {name: weights(name, shape, self.kind) for name, shape in self.shapes.items()}
        return write_checkpoint(folder, self.config, tensors, self.files() | dict(self.extra), self.shards)


def _vocabulary(document: dict[str, Any]) -> int:
    """Highest id plus one."""
    vocab = document["model"]["vocab"]
    largest = max(vocab.values()) if isinstance(vocab, dict) else len(vocab) - 1
    return max([largest, *(token["id"] for token in document["added_tokens"])]) + 1


def _bpe_files(pre: str, **settings: Any) -> Callable[[], dict[str, Any]]:
    def files() -> dict[str, Any]:
        specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": chat,
        }
        return {"tokenizer.json": tokenizers.byte_level_bpe(pre, specials, **settings), "tokenizer_config.json": config}

    return files


def _spm_files(*, model: bool, prefix: bool = True) -> Callable[[], dict[str, Any]]:
    def files() -> dict[str, Any]:
        number = len(tokenizers.spm_pieces())
        controls = ("<end_of_turn>", "<|endoftext|>")  # the second is what llama.cpp expects of any Phi-3
        more = [tokenizers.added(text, number + place) for place, text in enumerate(controls)]
        more.append(tokenizers.added("<tool>", number + len(controls), special=False))
        document = tokenizers.spm_json(prefix=prefix, extra=tuple(more))
        keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        decoder = {str(token["id"]): {key: token[key] for key in keys} for token in document["added_tokens"]}
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": decoder,
        }
        found: dict[str, Any] = {"tokenizer.json": document, "tokenizer_config.json": config}
        if model:
            found["tokenizer.model"] = tokenizers.spm_model(tokenizers.spm_pieces(), prefix=prefix)
        return found

    return files


def _bert_files() -> dict[str, Any]:
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    config |= {f"{role}_token": text for role, text in names.items()}
    return {"tokenizer.json": tokenizers.wordpiece_json(), "tokenizer_config.json": config}


def _roberta_files() -> dict[str, Any]:
    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    config: dict[str, Any] = {"tokenizer_class": "XLMRobertaTokenizer"}
    config |= {f"{role}_token": text for role, text in names.items()}
    return {"tokenizer.json": tokenizers.unigram_json(), "tokenizer_config.json": config}


def _decoder(vocabulary: int, *, tied: bool, biased: bool = False, normed: bool = False, norms: int = 2) -> Shapes:
    """Llama's layout and its variations."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, WIDTH)
    names = ["input", "post_attention", "pre_feedforward", "post_feedforward"][:norms]
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        rows = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD}
        shapes |= {f"{base}.{name}_layernorm.weight": (WIDTH,) for name in names}
        shapes |= {f"{base}.self_attn.{part}_proj.weight": (count, WIDTH) for part, count in rows.items()}
        if biased:
            shapes |= {f"{base}.self_attn.{part}_proj.bias": (count,) for part, count in rows.items()}
        if normed:
            shapes |= {f"{base}.self_attn.{part}_norm.weight": (HEAD,) for part in "qk"}
        shapes[f"{base}.self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD)
        shapes |= {f"{base}.mlp.{part}_proj.weight": (FEED, WIDTH) for part in ("gate", "up")}
        shapes[f"{base}.mlp.down_proj.weight"] = (WIDTH, FEED)
    return shapes


def _config(architecture: str, model_type: str, vocabulary: int, **values: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": WIDTH,
        "intermediate_size": FEED,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "vocab_size": vocabulary,
    } | values


def _phi(vocabulary: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (vocabulary, WIDTH)
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        shapes |= {f"{base}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= {
            f"{base}.self_attn.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH),
            f"{base}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
            f"{base}.mlp.gate_up_proj.weight": (2 * FEED, WIDTH),
            f"{base}.mlp.down_proj.weight": (WIDTH, FEED),
        }
    return shapes


def _gpt2(vocabulary: int) -> Shapes:
    shapes: Shapes = {"transformer.wte.weight": (vocabulary, WIDTH), "transformer.wpe.weight": (128, WIDTH)}
    shapes |= {f"transformer.ln_f.{part}": (WIDTH,) for part in ("weight", "bias")}
    for layer in range(LAYERS):
        base = f"transformer.h.{layer}"
        for name, rows, columns in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"{base}.{name}.weight": (rows, columns), f"{base}.{name}.bias": (columns,)}
        shapes |= {f"{base}.{name}.{part}": (WIDTH,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _layer_norm(name: str) -> Shapes:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _bert(vocabulary: int, *, prefix: str = "", positions: int = 128, segments: int = 2) -> Shapes:
    base = f"{prefix}embeddings"
    shapes: Shapes = {
        f"{base}.word_embeddings.weight": (vocabulary, WIDTH),
        f"{base}.position_embeddings.weight": (positions, WIDTH),
        f"{base}.token_type_embeddings.weight": (segments, WIDTH),
        **_layer_norm(f"{base}.LayerNorm"),
    }
    for layer in range(LAYERS):
        base = f"{prefix}encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{base}.attention.self.{part}", WIDTH, WIDTH)
        shapes |= _linear(f"{base}.attention.output.dense", WIDTH, WIDTH)
        shapes |= _layer_norm(f"{base}.attention.output.LayerNorm")
        shapes |= _linear(f"{base}.intermediate.dense", FEED, WIDTH) | _linear(f"{base}.output.dense", WIDTH, FEED)
        shapes |= _layer_norm(f"{base}.output.LayerNorm")
    return shapes


def _nomic(vocabulary: int) -> Shapes:
    shapes: Shapes = {"embeddings.word_embeddings.weight": (vocabulary, WIDTH)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, WIDTH), **_layer_norm("emb_ln")}
    for layer in range(LAYERS):
        base = f"encoder.layers.{layer}"
        shapes |= {f"{base}.attn.Wqkv.weight": (3 * WIDTH, WIDTH), f"{base}.attn.out_proj.weight": (WIDTH, WIDTH)}
        shapes |= {f"{base}.mlp.{name}.weight": (FEED, WIDTH) for name in ("fc11", "fc12")}
        shapes |= (
            {f"{base}.mlp.fc2.weight": (WIDTH, FEED)} | _layer_norm(f"{base}.norm1") | _layer_norm(f"{base}.norm2")
        )
    return shapes


_MEAN = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True},
}

_BPE = _vocabulary(_bpe_files("gpt-2")()["tokenizer.json"])
_SPM = _vocabulary(_spm_files(model=False)()["tokenizer.json"])
_WPM = _vocabulary(tokenizers.wordpiece_json())
_UGM = _vocabulary(tokenizers.unigram_json())
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + index / 8 for index in range(HEAD // 2)],
    "long_factor": [1.0 + index for index in range(HEAD // 2)],
}
_GEMMA3 = {
    "head_dim": HEAD,
    "sliding_window": 32,
    "query_pre_attn_scalar": HEAD,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA3_SHAPES = _decoder(_SPM, tied=True, normed=True, norms=4)
_GEMMA3_TEXT = {key: value for key, value in _config("", "gemma3_text", _SPM, **_GEMMA3).items() if value != [""]}
_BERT_VALUES = {"num_key_value_heads": None, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}

RECIPES: dict[str, Recipe] = {
    "llama2": Recipe(
        _config("LlamaForCausalLM", "llama", _SPM, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2),
        _decoder(_SPM, tied=False),
        _spm_files(model=True),
        kind="F16",
    ),
    "llama3": Recipe(
        _config(
            "LlamaForCausalLM",
            "llama",
            _BPE,
            rope_theta=500_000.0,
            rope_scaling=_LLAMA3_ROPE,
            tie_word_embeddings=True,
            head_dim=HEAD,
        ),
        _decoder(_BPE, tied=True),
        _bpe_files("llama-bpe", ignore_merges=True),
        shards=3,
    ),
    "tinyllama": Recipe(
        _config("LlamaForCausalLM", "llama", _SPM, rope_scaling={"type": "linear", "factor": 2.0}),
        _decoder(_SPM, tied=False),
        _spm_files(model=False),
        kind="F32",
    ),
    "smollm": Recipe(
        _config("LlamaForCausalLM", "llama", _BPE, tie_word_embeddings=True),
        _decoder(_BPE, tied=True),
        _bpe_files("smollm"),
    ),
    "smollm3": Recipe(
        _config("SmolLM3ForCausalLM", "smollm3", _BPE, tie_word_embeddings=True, pad_token_id=0),
        _decoder(_BPE, tied=True),
        _bpe_files("llama-bpe", ignore_merges=True),
    ),
    "mistral": Recipe(
        _config("MistralForCausalLM", "mistral", _SPM, sliding_window=64, head_dim=HEAD),
        _decoder(_SPM, tied=False),
        _spm_files(model=True),
    ),
    "qwen2": Recipe(
        _config(
            "Qwen2ForCausalLM",
            "qwen2",
            _BPE,
            rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        _decoder(_BPE, tied=False, biased=True),
        _bpe_files("qwen2"),
    ),
    "qwen3": Recipe(
        _config("Qwen3ForCausalLM", "qwen3", _BPE, head_dim=HEAD, tie_word_embeddings=True),
        _decoder(_BPE, tied=True, normed=True),
        _bpe_files("qwen2"),
    ),
    "gemma": Recipe(
        _config("GemmaForCausalLM", "gemma", _SPM, head_dim=HEAD, hidden_activation="gelu_pytorch_tanh"),
        _decoder(_SPM, tied=True),
        _spm_files(model=True, prefix=False),
    ),
    "gemma2": Recipe(
        _config(
            "Gemma2ForCausalLM",
            "gemma2",
            _SPM,
            head_dim=HEAD,
            sliding_window=32,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=HEAD,
            hidden_activation="gelu_pytorch_tanh",
        ),
        _decoder(_SPM, tied=True, norms=4),
        _spm_files(model=True, prefix=False),
    ),
    "gemma3": Recipe(
        _config("Gemma3ForCausalLM", "gemma3_text", _SPM, **_GEMMA3),
        _GEMMA3_SHAPES,
        _spm_files(model=True, prefix=False),
    ),
    "gemma3-vision": Recipe(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": _GEMMA3_TEXT,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
        {
            **{f"language_model.{name}": shape for name, shape in _GEMMA3_SHAPES.items()},
            "vision_tower.vision_model.post_layernorm.weight": (32,),
            "multi_modal_projector.mm_input_projection_weight": (32, WIDTH),
        },
        _spm_files(model=True, prefix=False),
    ),
    "embeddinggemma": Recipe(
        _config("Gemma3TextModel", "gemma3_text", _SPM, **_GEMMA3, use_bidirectional_attention=True),
        {name.removeprefix("model."): shape for name, shape in _GEMMA3_SHAPES.items()},
        _spm_files(model=True, prefix=False),
        extra=_MEAN,
    ),
    "phi3": Recipe(
        _config("Phi3ForCausalLM", "phi3", _SPM, sliding_window=64, pad_token_id=0),
        _phi(_SPM),
        _spm_files(model=True),
    ),
    "phi3-long": Recipe(
        _config(
            "Phi3ForCausalLM",
            "phi3",
            _SPM,
            max_position_embeddings=1024,
            original_max_position_embeddings=512,
            rope_scaling=_LONGROPE,
            pad_token_id=0,
        ),
        _phi(_SPM),
        _spm_files(model=True),
    ),
    "gpt2": Recipe(
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 128,
            "n_ctx": 128,
            "layer_norm_epsilon": 1e-5,
            "vocab_size": _BPE,
        },
        _gpt2(_BPE),
        _bpe_files("gpt-2"),
        kind="F32",
    ),
    "minilm": Recipe(
        _config("BertModel", "bert", _WPM, **_BERT_VALUES, max_position_embeddings=128),
        _bert(_WPM) | _linear("pooler.dense", WIDTH, WIDTH),
        _bert_files,
        kind="F32",
        extra=_MEAN,
    ),
    "reranker": Recipe(
        _config(
            "BertForSequenceClassification",
            "bert",
            _WPM,
            **_BERT_VALUES,
            max_position_embeddings=128,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
        ),
        _bert(_WPM, prefix="bert.") | _linear("bert.pooler.dense", WIDTH, WIDTH) | _linear("classifier", 1, WIDTH),
        _bert_files,
        kind="F32",
    ),
    "bge-m3": Recipe(
        _config(
            "XLMRobertaModel",
            "xlm-roberta",
            _UGM,
            **(_BERT_VALUES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
            max_position_embeddings=130,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        ),
        _bert(_UGM, positions=130, segments=1),
        _roberta_files,
        kind="F16",
        extra=_MEAN | {"1_Pooling/config.json": {"pooling_mode_cls_token": True}},
    ),
    "bge-reranker": Recipe(
        _config(
            "XLMRobertaForSequenceClassification",
            "xlm-roberta",
            _UGM,
            **(_BERT_VALUES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
            max_position_embeddings=130,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
        ),
        _bert(_UGM, prefix="roberta.", positions=130, segments=1)
        | _linear("classifier.dense", WIDTH, WIDTH)
        | _linear("classifier.out_proj", 1, WIDTH),
        _roberta_files,
        kind="F16",
    ),
    "roberta": Recipe(
        _config(
            "RobertaModel",
            "roberta",
            _BPE,
            **(_BERT_VALUES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
            max_position_embeddings=130,
            pad_token_id=1,
        ),
        _bert(_BPE, positions=130, segments=1),
        _bpe_files("gpt-2"),
        kind="F32",
        extra=_MEAN,
    ),
    "nomic": Recipe(
        {
            "architectures": ["NomicBertModel"],
            "model_type": "nomic_bert",
            "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
            "activation_function": "swiglu",
            "causal": False,
            "layer_norm_epsilon": 1e-12,
            "max_trained_positions": 2048,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "n_embd": WIDTH,
            "n_head": HEADS,
            "n_inner": FEED,
            "n_layer": LAYERS,
            "n_positions": 8192,
            "prenorm": False,
            "qkv_proj_bias": False,
            "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "type_vocab_size": 2,
            "vocab_size": _WPM,
        },
        _nomic(_WPM),
        _bert_files,
        kind="F32",
        extra=_MEAN,
    ),
}
