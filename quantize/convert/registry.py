"""Which family converts which architecture, and what to say when none does."""

from __future__ import annotations

import difflib
import importlib

from lathe.quantize.checkpoint import Checkpoint, refuse_remote_code
from lathe.quantize.convert.family import Family
from lathe.quantize.errors import CheckpointError, UnsupportedError

ARCHITECTURES: dict[str, str] = {
    "BertForMaskedLM": "bert:BERT",
    "BertForSequenceClassification": "bert:BERT_SCORER",
    "BertModel": "bert:BERT",
    "GPT2LMHeadModel": "gpt2:GPT2",
    "Gemma2ForCausalLM": "gemma:GEMMA2",
    "Gemma3ForCausalLM": "gemma:GEMMA3",
    "Gemma3ForConditionalGeneration": "gemma:GEMMA3",
    "Gemma3TextModel": "gemma:EMBEDDING",
    "GemmaForCausalLM": "gemma:GEMMA",
    "LlamaForCausalLM": "llama:LLAMA",
    "LlamaModel": "llama:LLAMA",
    "MistralForCausalLM": "llama:MISTRAL",
    "NomicBertModel": "bert:NOMIC",
    "Phi3ForCausalLM": "phi:PHI3",
    "Qwen2ForCausalLM": "qwen:QWEN2",
    "Qwen2Model": "qwen:QWEN2",
    "Qwen3ForCausalLM": "qwen:QWEN3",
    "Qwen3Model": "qwen:QWEN3",
    "RobertaForSequenceClassification": "bert:ROBERTA_SCORER",
    "RobertaModel": "bert:ROBERTA",
    "SmolLM3ForCausalLM": "llama:SMOLLM3",
    "XLMRobertaForSequenceClassification": "bert:ROBERTA_SCORER",
    "XLMRobertaModel": "bert:ROBERTA",
}
"""Class name in config.json -> `module:NAME` below `families`."""
UNKNOWN_ARCHITECTURE = "E_ARCHITECTURE"
"""Code of the error that another converter may answer."""


def family_of(checkpoint: Checkpoint) -> Family:
    """Find the family of a checkpoint; name the nearest ones when there is none."""
    if quantized := checkpoint.config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UnsupportedError(
            f"{checkpoint.folder} is quantized already (by {str(method or 'an unnamed method')[:40]})",
            hint="convert the original checkpoint, then quantize the GGUF",
        )
    architecture = checkpoint.architecture
    if architecture is None:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} names no architecture")
    home = ARCHITECTURES.get(architecture)
    if home is None:
        refuse_remote_code(checkpoint)
        near = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.5)
        raise UnsupportedError(
            f"no converter here knows the architecture {architecture}",
            hint=(f"the nearest that are known: {', '.join(near)}; " if near else "")
            + "llama.cpp's own converter may know it: `lathe toolchain install`",
            code=UNKNOWN_ARCHITECTURE,
        )
    module, _, name = home.partition(":")
    family = getattr(importlib.import_module(f"lathe.quantize.convert.families.{module}"), name)
    assert isinstance(family, Family)
    return family
