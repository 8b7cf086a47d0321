"""config.json from a GGUF's metadata: the same table that conversion reads, backwards."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.family import Family
from lathe.quantize.convert.hparams import SHARED, Hparams
from lathe.quantize.convert.registry import ARCHITECTURES
from lathe.quantize.convert.rope import YARN, llama3_factors, yarn_magnitude
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.gguf.header import GgufHeader


class Counterpart(NamedTuple):
    """What transformers calls an architecture of llama.cpp."""

    name: str
    """Class name in config.json."""
    model_type: str
    prefix: str = "model."
    """Of the weights' names, but for the head's."""
    biases: tuple[str, ...] = ()
    """Settings that say whether layers have biases; see `_BIASES`."""


CHECKPOINTS: dict[str, Counterpart] = {
    "bert": Counterpart("BertModel", "bert", ""),
    "gemma": Counterpart("GemmaForCausalLM", "gemma", biases=("attention_bias",)),
    "gemma2": Counterpart("Gemma2ForCausalLM", "gemma2", biases=("attention_bias",)),
    "gemma3": Counterpart("Gemma3ForCausalLM", "gemma3_text", biases=("attention_bias",)),
    "gpt2": Counterpart("GPT2LMHeadModel", "gpt2", "transformer."),
    "llama": Counterpart("LlamaForCausalLM", "llama", biases=("attention_bias", "mlp_bias")),
    "phi3": Counterpart("Phi3ForCausalLM", "phi3"),
    "qwen2": Counterpart("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Counterpart("Qwen3ForCausalLM", "qwen3", biases=("attention_bias",)),
    "smollm3": Counterpart("SmolLM3ForCausalLM", "smollm3", biases=("attention_bias", "mlp_bias")),
}
"""Architectures with a way back; where several checkpoints became one, the plainest."""
SCORER = Counterpart("BertForSequenceClassification", "bert", "bert.")
"""What `bert` is with a scoring head."""

_HEAD = {"cls.weight", "cls.output.weight"}
_BIASES = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}
"""Setting -> the matrices that have a bias with it."""
_MORE = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
_SPECIALS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_DTYPES = {Encoding.F32: "float32", Encoding.F16: "float16", Encoding.BF16: "bfloat16"}
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which scale attention by the width of the model instead of the head's."""


def counterpart_of(headers: Sequence[GgufHeader]) -> Counterpart | None:
    """Find what transformers calls the model; None where there is no way back."""
    architecture = headers[0].architecture or ""
    return SCORER if architecture == "bert" and _names(headers) >= _HEAD else CHECKPOINTS.get(architecture)


def family_of(counterpart: Counterpart) -> Family:
    """Return the table that converted the model."""
    module, _, name = ARCHITECTURES[counterpart.name].partition(":")
    family = getattr(importlib.import_module(f"lathe.quantize.convert.families.{module}"), name)
    assert isinstance(family, Family)
    return family


def hparams_of(header: GgufHeader, family: Family) -> Hparams:
    """Read the hyper-parameters that the layout of weights depends on."""
    return Hparams(_shared(header, family), {})


def config_of(
    headers: Sequence[GgufHeader], counterpart: Counterpart, dtype: Encoding
) -> tuple[dict[str, Any], list[str]]:
    """Make config.json, and say what could not be told."""
    first, names = headers[0], _names(headers)
    tokens = first.array("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "architectures": [counterpart.name],
        "model_type": counterpart.model_type,
        **_shared(first, family_of(counterpart)),
        **{name: value for key, name in _MORE.items() if (value := first.hyper(key)) is not None},
        "tie_word_embeddings": "output.weight" not in names,
        "dtype": _DTYPES[dtype],
        **{key: any(f"blk.0.{part}.bias" in names for part in _BIASES[key]) for key in counterpart.biases},
    }
    if tokens is not None:
        config["vocab_size"] = len(tokens)
    if (segments := first.number("tokenizer.ggml.token_type_count")) is not None:
        config["type_vocab_size"] = segments
    for role, name in _SPECIALS.items():
        if (number := first.number(f"tokenizer.ggml.{role}_token_id")) is not None:
            config[name] = number
    if first.architecture in _LARGEST_GEMMA:
        largest = config["num_hidden_layers"] == _LARGEST_GEMMA[first.architecture]
        width = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = width if largest else config["head_dim"]
        config |= _layer_types(first, config)
    if first.architecture == "gpt2":  # the ones that transformers reads
        config |= {"n_positions": config["n_ctx"], "n_inner": config.pop("intermediate_size")}
    if first.architecture == "phi3":
        config["sliding_window"] = config.get("sliding_window") or None  # 0 stands for none
    if counterpart is SCORER:
        config |= _labels(headers)
    hparams = Hparams(config, {})
    rotated = first.hyper("rope.dimension_count")
    if isinstance(rotated, int) and rotated != hparams.head_width:
        config["partial_rotary_factor"] = rotated / hparams.head_width
    scaling, doubts = _rope_scaling(headers, hparams)
    return config | scaling, doubts


def _names(headers: Sequence[GgufHeader]) -> set[str]:
    return {tensor.name for header in headers for tensor in header.tensors}


def _layer_types(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    """Tell which layers look at a window only, where they are not those that transformers expects."""
    pattern = header.array(f"{header.architecture}.attention.sliding_window_pattern")
    if pattern is not None:
        sliding = pattern.tolist()
    elif header.architecture == "gemma3" and not config.get("sliding_window"):
        sliding = [False] * config["num_hidden_layers"]
    else:
        return {}
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in sliding]}


def _labels(headers: Sequence[GgufHeader]) -> dict[str, Any]:
    """Name a classifier's outputs: transformers counts them by their names."""
    (head,) = (tensor for header in headers for tensor in header.tensors if tensor.name == "cls.output.weight")
    stored = headers[0].array("bert.classifier.output_labels")
    rows = math.prod(head.shape[1:])
    labels = stored.tolist() if stored is not None else [f"LABEL_{number}" for number in range(rows)]
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _shared(header: GgufHeader, family: Family) -> dict[str, Any]:
    """Name the shared hyper-parameters as the family's checkpoints do."""
    return {
        next((name for name in names if name in family.defaults), names[0]): value
        for key, (_, names) in SHARED.items()
        if (value := header.hyper(key)) is not None
    }


def _rope_scaling(headers: Sequence[GgufHeader], hparams: Hparams) -> tuple[dict[str, Any], list[str]]:
    first = headers[0]
    kind, factor = first.hyper("rope.scaling.type"), first.hyper("rope.scaling.factor")
    if kind in ("linear", "yarn") and isinstance(factor, float):
        scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = first.hyper("rope.scaling.original_context_length")
            if isinstance(attention := first.hyper("rope.scaling.attn_factor"), float):
                # Here a factor of YaRN's own, there the product.
                scaling["attention_factor"] = attention * yarn_magnitude(factor)
            given = {names[0]: first.hyper(f"rope.scaling.{key}") for key, names in YARN.items()}
            scaling |= {name: value for name, value in given.items() if value is not None}
        return {"rope_scaling": scaling}, []
    long, short = _values(headers, "rope_factors_long.weight"), _values(headers, "rope_factors_short.weight")
    if long is not None and short is not None:
        factors = {"long_factor": long.tolist(), "short_factor": short.tolist()}
        return {"rope_scaling": {"type": "longrope", **factors}}, []
    divisors = _values(headers, "rope_freqs.weight")
    if divisors is None:
        return {}, []
    if (found := solve_llama3(divisors, hparams)) is not None:
        return {"rope_scaling": found}, []
    return {}, ["the rope scaling could not be told from its factors: long texts will be read differently"]


def solve_llama3(divisors: Floats, hparams: Hparams) -> dict[str, Any] | None:
    """Find the settings that give these divisors: published ones, else from two interpolated frequencies.

    Between its bounds, 1/divisor is linear in the frequency: two points give the original context and the upper bound
    when the lower bound is 1, as in every published model.
    """
    factor = float(divisors.max())
    tried = [(8192.0, 4.0)]
    inside = np.flatnonzero((divisors > 1) & (divisors < factor))
    if len(inside) > 1:
        base, width = hparams.number("rope_theta") or 10_000.0, hparams.head_width
        wavelengths = 2 * np.pi * base ** (2 * inside / width)
        smooth = (1 / divisors[inside].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, shift = np.polyfit(1 / wavelengths, smooth, 1)
        tried.append((float(round(-slope / shift)), round(float(1 - 1 / shift), 2)))
    for context, high in tried:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(context),
        }
        if context > 0 and high > 1:
            outer = {"rope_theta": hparams.get("rope_theta"), "head_dim": hparams.head_width}
            found = llama3_factors(Hparams({"rope_scaling": scaling, **outer}, {}))
            if found is not None and np.allclose(found, divisors, rtol=1e-5):
                return scaling
    return None


def _values(headers: Sequence[GgufHeader], name: str) -> Floats | None:
    """Read a small F32 tensor."""
    for header in headers:
        for tensor in header.tensors:
            if tensor.name == name and tensor.type.name == "F32":
                with header.path.open("rb") as file:
                    file.seek(header.position(tensor))
                    return np.frombuffer(file.read(tensor.nbytes), np.float32)
    return None
