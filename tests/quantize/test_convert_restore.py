"""GGUF back to checkpoints: what was converted without loss returns exactly, what was quantized returns close."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize.checkpoint import open_weights, read_checkpoint
from lathe.quantize.convert import convert_checkpoint, restore_checkpoint
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.restore.config import CHECKPOINTS, solve_llama3
from lathe.quantize.convert.restore.tokenizer import tokenizer_files
from lathe.quantize.convert.rope import llama3_factors
from lathe.quantize.errors import OutputError, UnsupportedError
from lathe.quantize.gguf.header import read_header
from lathe.quantize.quantizer import QuantizeOptions, quantize_gguf
from support.checkpoints import weights
from support.families import RECIPES
from support.gguf_digest import digest

IRREVERSIBLE = {"reranker", "bge-m3", "bge-reranker", "roberta", "nomic", "gemma3-vision", "embeddinggemma"}
"""Cut, or known to llama.cpp by another name than to transformers."""
RESTORABLE = [name for name in RECIPES if name not in IRREVERSIBLE]

pytestmark = pytest.mark.native


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint, widened."""
    checkpoint = read_checkpoint(folder)
    with open_weights(checkpoint) as opened:
        found = {}
        for name, info in checkpoint.tensors.items():
            values = opened.read(name).copy()
            wide = (values.astype(np.uint32) << 16).view(np.float32) if info.dtype == "BF16" else values
            found[name] = wide.astype(np.float32)
        return found


@pytest.mark.parametrize("name", RESTORABLE)
def test_what_was_converted_without_loss_comes_back(tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    source = recipe.write(tmp_path / name)
    convert_checkpoint(source, tmp_path / "one.gguf", outtype="f32")
    report = restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    assert report.architecture == CHECKPOINTS[read_header(tmp_path / "one.gguf").architecture or ""].name
    expected, found = stored(source), stored(tmp_path / "back")
    expected = {tensor: values for tensor, values in expected.items() if "pooler" not in tensor}
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=0, atol=1e-7, err_msg=tensor)


@pytest.mark.parametrize("name", RESTORABLE)
def test_a_restored_checkpoint_converts_to_the_same_model(tmp_path: Path, name: str) -> None:
    source = RECIPES[name].write(tmp_path / "model")
    convert_checkpoint(source, tmp_path / "one.gguf", outtype="f32")
    source.rename(tmp_path / "original")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "two.gguf", outtype="f32")
    one, two = digest(tmp_path / "one.gguf"), digest(tmp_path / "two.gguf")
    told_otherwise = {
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "llama.attention.key_length",
        "general.size_label",
    }
    for key in one["metadata"].keys() - told_otherwise:
        if key in two["metadata"] or not key.startswith("tokenizer."):
            assert two["metadata"].get(key) == one["metadata"][key], key
    if name == "llama3":  # too few frequencies to solve for its rotary scaling
        del one["tensors"]["rope_freqs.weight"]
    if not name.startswith("gemma"):  # one is added to their norms and taken away again
        assert two["tensors"] == one["tensors"]
    assert {key: facts[:2] for key, facts in two["tensors"].items()} == {
        key: facts[:2] for key, facts in one["tensors"].items()
    }


def test_gpt2_gets_the_name_that_transformers_reads(tmp_path: Path) -> None:
    convert_checkpoint(RECIPES["gpt2"].write(tmp_path / "gpt2"), tmp_path / "one.gguf")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["n_positions"] == 128


def test_quantized_weights_come_back_close(tmp_path: Path) -> None:
    source = RECIPES["llama2"].write(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "q8.gguf", outtype="q8_0")
    report = restore_checkpoint(tmp_path / "q8.gguf", tmp_path / "back")
    assert report.dtype == "F16"
    expected = stored(source)
    for tensor, values in stored(tmp_path / "back").items():
        np.testing.assert_allclose(values, expected[tensor], atol=0.003)


def test_every_quantization_that_is_made_here_can_be_undone(tmp_path: Path) -> None:
    recipe = RECIPES["llama2"]
    config = dict(recipe.config) | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    shapes = {
        name: tuple(256 if size in (64, 96) else 128 if size == 32 else size for size in shape)
        for name, shape in recipe.shapes.items()
    }
    from support.checkpoints import write_checkpoint

    tensors = {name: weights(name, shape, "F32") for name, shape in shapes.items()}
    source = write_checkpoint(tmp_path / "source", config, tensors, recipe.files())
    convert_checkpoint(source, tmp_path / "f32.gguf", outtype="f32")
    for kind in ("Q4_K_M", "Q5_0", "IQ4_XS"):
        quantize_gguf(tmp_path / "f32.gguf", tmp_path / f"{kind}.gguf", QuantizeOptions(type=kind))
        restore_checkpoint(tmp_path / f"{kind}.gguf", tmp_path / kind)
        for name, values in stored(tmp_path / kind).items():
            error = np.abs(values - tensors[name]).mean() / np.abs(tensors[name]).mean()
            assert error < 0.12, (kind, name)


@pytest.mark.parametrize(("context", "high", "factor"), [(8192, 4.0, 8.0), (8192, 4.0, 32.0), (4096, 3.0, 4.0)])
def test_rotary_scaling_is_solved_from_its_factors(context: int, high: float, factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    hparams = Hparams({"rope_theta": 500_000.0, "head_dim": 128, "rope_scaling": scaling}, {})
    divisors = llama3_factors(hparams)
    assert divisors is not None
    assert solve_llama3(divisors, hparams) == scaling


def test_what_cannot_be_told_is_a_warning_or_a_refusal(tmp_path: Path) -> None:
    source = RECIPES["bge-m3"].write(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "cut.gguf")
    convert_checkpoint(RECIPES["nomic"].write(tmp_path / "nomic"), tmp_path / "nomic.gguf")
    with pytest.raises(UnsupportedError, match="no way back"):
        restore_checkpoint(tmp_path / "nomic.gguf", tmp_path / "out")
    document = json.loads((source / "tokenizer.json").read_text())
    assert document["model"]["type"] == "Unigram"
    _, warnings = tokenizer_files(read_header(tmp_path / "cut.gguf"))
    assert "t5" in warnings[0]
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_replaced_only_by_force(tmp_path: Path) -> None:
    convert_checkpoint(RECIPES["smollm"].write(tmp_path / "source"), tmp_path / "one.gguf")
    with pytest.raises(OutputError, match="exists"):
        restore_checkpoint(tmp_path / "one.gguf", tmp_path / "source")
    other = tmp_path / "photos"
    other.mkdir()
    with pytest.raises(OutputError, match="no checkpoint folder"):
        restore_checkpoint(tmp_path / "one.gguf", other, force=True)
    (tmp_path / "source" / "notes.txt").write_text("old")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "source", force=True)
    assert not (tmp_path / "source" / "notes.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "photos", "source"]


def test_an_interrupted_restoration_leaves_nothing(tmp_path: Path) -> None:
    convert_checkpoint(RECIPES["smollm"].write(tmp_path / "source"), tmp_path / "one.gguf")

    def interrupt(label: str, done: float, total: float | None, unit: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_checkpoint(tmp_path / "one.gguf", tmp_path / "out", report=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "source"]
