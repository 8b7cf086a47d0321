"""LoRA adapters: a base with its adapter computes what the merged checkpoint computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize.convert import convert_adapter, convert_checkpoint
from lathe.quantize.convert.adapter import is_adapter
from lathe.quantize.errors import (
    CheckpointError,
    InputMissing,
    OutputError,
    QuantizeError,
    UnsafeError,
    UnsupportedError,
)
from support.adapters import pair, write_adapter
from support.checkpoints import weights, write_checkpoint
from support.families import RECIPES
from support.gguf_digest import digest
from support.llama_values import computed_values

TOKENS = [7, 44, 81, 118, 155, 192, 229, 266, 303, 340]
TARGETS = {
    "llama2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj"),
    "gemma2": ("self_attn.q_proj", "mlp.up_proj"),
    "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
    "gpt2": ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"),
}


@pytest.mark.native
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("rs", [False, True])
def test_base_and_adapter_compute_what_the_merged_checkpoint_does(tmp_path: Path, name: str, rs: bool) -> None:
    recipe = RECIPES[name]
    plain = {tensor: weights(tensor, shape, "F32") for tensor, shape in recipe.shapes.items()}
    base = write_checkpoint(tmp_path / "base", recipe.config, plain, recipe.files())
    upright = name != "gpt2"  # whose weights are stored the other way round, but not its adapters
    halves: dict[str, np.ndarray] = {}
    merged = dict(plain)
    for tensor in plain:
        stem = tensor.removesuffix(".weight")
        if not tensor.endswith(".weight") or not stem.endswith(TARGETS[name]):
            continue
        rows, columns = plain[tensor].shape if upright else plain[tensor].shape[::-1]
        rank = 8 if "1" in stem else 4
        found = pair(stem, rows, columns, rank)
        halves |= found
        down, up = found.values()
        alpha = 16 if stem.endswith(TARGETS[name][0]) else 8
        change = (up @ down) * np.float32(alpha / (rank**0.5 if rs else rank))
        merged[tensor] = plain[tensor] + (change if upright else change.T)
    source = write_adapter(
        tmp_path / "adapter", halves, use_rslora=rs, alpha_pattern={TARGETS[name][0].rpartition(".")[2]: 16}
    )
    whole = write_checkpoint(tmp_path / "merged", recipe.config, merged, recipe.files())
    for folder in (base, whole):
        convert_checkpoint(folder, folder.with_suffix(".gguf"), outtype="f32")
    report = convert_adapter(source, tmp_path / "adapter.gguf", base=base, outtype="f32")
    assert report.tensors == len(halves)
    expected = computed_values(whole.with_suffix(".gguf"), TOKENS)
    found_values = computed_values(base.with_suffix(".gguf"), TOKENS, adapter=tmp_path / "adapter.gguf")
    assert np.abs(expected - computed_values(base.with_suffix(".gguf"), TOKENS)).max() > 0.1
    np.testing.assert_allclose(found_values, expected, atol=0.02)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint folder for adapters."""
    return RECIPES["llama2"].write(tmp_path / "base")


HALVES = pair("model.layers.0.self_attn.q_proj", 64, 64)


def test_the_metadata_says_what_it_is(tmp_path: Path, base: Path) -> None:
    source = write_adapter(tmp_path / "tone-lora", HALVES, base_model_name_or_path=str(base))
    assert is_adapter(source)
    assert not is_adapter(base)
    convert_adapter(source, tmp_path / "out.gguf")
    found = digest(tmp_path / "out.gguf")
    assert found["metadata"]["general.type"] == ["STRING", "adapter"]
    assert found["metadata"]["adapter.type"] == ["STRING", "lora"]
    assert found["metadata"]["adapter.lora.alpha"] == ["FLOAT32", 8.0]
    assert {name: facts[:2] for name, facts in found["tensors"].items()} == {
        "blk.0.attn_q.weight.lora_a": ["F16", [64, 4]],
        "blk.0.attn_q.weight.lora_b": ["F16", [4, 64]],
    }


def test_embeddings_are_turned_for_lookup(tmp_path: Path, base: Path) -> None:
    rows = RECIPES["llama2"].shapes["model.embed_tokens.weight"][0]
    name = "base_model.model.model.embed_tokens"
    halves = {f"{name}.lora_embedding_A": np.ones((4, rows), np.float32)}
    halves |= {f"{name}.lora_embedding_B": np.ones((64, 4), np.float32)}
    convert_adapter(write_adapter(tmp_path / "adapter", halves), tmp_path / "out.gguf", base=base)
    tensors = digest(tmp_path / "out.gguf")["tensors"]
    assert tensors["token_embd.weight.lora_a"][1] == [4, rows]
    assert tensors["token_embd.weight.lora_b"][1] == [4, 64]


@pytest.mark.parametrize(
    ("halves", "match"),
    [
        (pair("model.layers.0.self_attn.q_proj", 128, 64), "has the shape 128x64"),
        (pair("model.layers.0.self_attn.q_proj", 64, 128), "has the shape 64x128"),
        (pair("model.layers.7.self_attn.q_proj", 64, 64), "the base has 2 layers"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, base: Path, halves: dict[str, np.ndarray], match: str
) -> None:
    with pytest.raises(CheckpointError, match=match):
        convert_adapter(write_adapter(tmp_path / "adapter", halves), tmp_path / "out.gguf", base=base)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "IA3"),
        ({"use_dora": True}, UnsupportedError, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "retrained"),
        ({"bias": "all"}, UnsupportedError, "biases"),
        ({"lora_alpha": "much"}, CheckpointError, "lora_alpha"),
        ({"lora_alpha": 0}, CheckpointError, "lora_alpha"),
    ],
)
def test_adapters_that_are_more_than_pairs_are_refused(
    tmp_path: Path, base: Path, change: dict[str, Any], error: type[QuantizeError], match: str
) -> None:
    with pytest.raises(error, match=match):
        convert_adapter(write_adapter(tmp_path / "adapter", HALVES, **change), tmp_path / "out.gguf", base=base)
    assert not (tmp_path / "out.gguf").exists()


A, B = HALVES


@pytest.mark.parametrize(
    ("tensors", "error", "match"),
    [
        ({}, CheckpointError, "no tensors"),
        ({A: HALVES[A]}, CheckpointError, "do not fit"),
        ({A: HALVES[A], B: np.ones((64, 5), np.float32)}, CheckpointError, "do not fit"),
        ({A: HALVES[A], B: np.ones(64, np.float32)}, CheckpointError, "no matrix"),
        ({A: HALVES[A], B: np.ones((64, 4), np.uint8)}, UnsupportedError, "U8"),
        ({"base_model.model.model.norm.weight": np.ones(64, np.float32)}, UnsupportedError, "no half"),
        (pair("model.layers.0.self_attn.strange", 4, 4), CheckpointError, "no place"),
        ({name: np.full_like(values, np.nan) for name, values in HALVES.items()}, CheckpointError, "no number"),
    ],
)
def test_matrices_that_do_not_fit_are_named(
    tmp_path: Path, base: Path, tensors: dict[str, np.ndarray], error: type[QuantizeError], match: str
) -> None:
    with pytest.raises(error, match=match):
        convert_adapter(write_adapter(tmp_path / "adapter", tensors), tmp_path / "out.gguf", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_is_missing_or_pickled_is_named(tmp_path: Path, base: Path) -> None:
    source = write_adapter(tmp_path / "adapter", HALVES, base_model_name_or_path="somebody/model")
    with pytest.raises(InputMissing, match="somebody/model"):
        convert_adapter(source, tmp_path / "out.gguf")
    with pytest.raises(InputMissing, match="adapter_config"):
        convert_adapter(base, tmp_path / "out.gguf", base=base)
    with pytest.raises(OutputError, match="is the input"):
        convert_adapter(source, source / "adapter_model.safetensors", base=base, force=True)
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(UnsafeError, match="pickle"):
        convert_adapter(source, tmp_path / "out.gguf", base=base)
