"""What llama.cpp's graphs cannot do is refused, what they do otherwise is said, and what they can is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize.checkpoint import read_checkpoint
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.convert.adapter import _means
from lathe.quantize.convert.convert import ConversionPlan, plan_conversion
from lathe.quantize.convert.dense import module_cautions
from lathe.quantize.convert.graph import cautions
from lathe.quantize.errors import CheckpointError, UnsafeError, UnsupportedError
from support.checkpoints import safetensors_bytes, weights, write_checkpoint
from support.families import RECIPES
from support.llama_values import computed_values


def written(folder: Path, name: str, **changes: Any) -> Path:
    """A recipe's checkpoint with other hyper-parameters."""
    recipe = RECIPES[name]
    tensors = {tensor: weights(tensor, shape, recipe.kind) for tensor, shape in recipe.shapes.items()}
    return write_checkpoint(folder, {**recipe.config, **changes}, tensors, recipe.files() | dict(recipe.extra))


def planned(folder: Path, name: str, **changes: Any) -> ConversionPlan:
    return plan_conversion(read_checkpoint(written(folder / name, name, **changes)))


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("llama2", {"hidden_act": "gelu"}, "hidden_act as 'gelu'; llama.cpp computes 'silu' or 'swish' only"),
        ("qwen2", {"hidden_act": "relu"}, "hidden_act"),
        ("phi3", {"hidden_act": "relu"}, "hidden_act"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("minilm", {"hidden_act": "relu"}, "hidden_act"),
        ("minilm", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("nomic", {"prenorm": True}, "prenorm"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layer_interval": 2}, "no_rope_layers"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar as 7"),
        ("gemma2", {"attn_logit_softcapping": None}, "switches attn_logit_softcapping off"),
        ("gemma3", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar as 7"),
        (
            "qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "beta_fast": 16}},
            "beta_fast as 16",
        ),
    ],
)
def test_what_the_graph_cannot_do_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        planned(tmp_path, name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistral", {"sliding_window": 64, "max_position_embeddings": 256}, True),
        ("mistral", {"sliding_window": 256, "max_position_embeddings": 256}, False),
        ("mistral", {"sliding_window": None}, False),
        ("phi3", {"sliding_window": 64, "max_position_embeddings": 256, "rope_scaling": None}, True),
        ("qwen2", {"sliding_window": 64, "max_position_embeddings": 256, "use_sliding_window": True}, True),
        ("qwen2", {"sliding_window": 64, "max_position_embeddings": 256, "use_sliding_window": False}, False),
        ("gemma2", {"max_position_embeddings": 256}, False),
    ],
)
def test_a_window_that_the_graph_ignores_is_told(
    tmp_path: Path, name: str, changes: dict[str, Any], said: bool
) -> None:
    plan = planned(tmp_path, name, **changes)
    assert [("looks back 64 tokens" in warning) for warning in cautions(plan.family, plan.hparams)] == [True] * said


@pytest.mark.parametrize(
    ("name", "changes", "sliding"),
    [
        ("gemma3", {}, None),
        ("gemma3", {"layer_types": ["sliding_attention"] * 2}, None),
        ("gemma3", {"sliding_window_pattern": 2}, [True, False]),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, [False, True]),
        ("gemma2", {}, None),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, [False, True]),
    ],
)
def test_another_order_of_sliding_layers_is_written(
    tmp_path: Path, name: str, changes: dict[str, Any], sliding: list[bool] | None
) -> None:
    metadata = planned(tmp_path, name, **changes).metadata
    assert metadata[f"{name}.attention.sliding_window"].data == 32
    pattern = metadata.get(f"{name}.attention.sliding_window_pattern")
    assert (None if pattern is None else [bool(one) for one in pattern.data]) == sliding


def test_a_model_whose_layers_all_see_everything_has_no_window(tmp_path: Path) -> None:
    for changes in ({"layer_types": ["full_attention"] * 2}, {"sliding_window_pattern": 1}):
        plan = planned(tmp_path / str(len(changes)) / next(iter(changes)), "gemma3", **changes)
        assert "gemma3.attention.sliding_window" not in plan.metadata


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention", "spiral"], "full"])
def test_layer_types_must_name_each_layer(tmp_path: Path, kinds: Any) -> None:
    with pytest.raises(CheckpointError, match="layer_types"):
        planned(tmp_path, "gemma3", layer_types=kinds)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"attention_factor": 2.0}, 2 / (1 + 0.1 * math.log(4))),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, (1 + 0.05 * math.log(4)) / (1 + 0.1 * math.log(4)) ** 2),
        ({"beta_fast": 32, "beta_slow": 1}, None),
        ({"attention_factor": 1 + 0.1 * math.log(4)}, None),
    ],
)
def test_yarns_attention_factor_is_written_where_llama_cpp_reads_it(
    tmp_path: Path, settings: dict[str, float], factor: float | None
) -> None:
    """It multiplies 0.1 ln(factor) + 1 by what is written."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **settings}
    value = planned(tmp_path, "qwen2", rope_scaling=scaling).metadata.get("qwen2.rope.scaling.attn_factor")
    assert (None if value is None else value.data) == (None if factor is None else pytest.approx(factor))


def test_a_head_that_is_tied_is_not_taken_from_the_file(tmp_path: Path) -> None:
    names = [tensor.entry.name for tensor in planned(tmp_path, "llama2", tie_word_embeddings=True).tensors]
    assert "output.weight" not in names and "token_embd.weight" in names


def test_labels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    labels = {str(number): f"L{number}" for number in range(12)}
    folder = written(tmp_path / "reranker", "reranker", id2label=labels)
    head = {
        name: np.zeros((12, *shape[1:]), np.float32)
        for name, shape in RECIPES["reranker"].shapes.items()
        if name.startswith("classifier")
    }
    tensors = {name: weights(name, shape, "F32") for name, shape in RECIPES["reranker"].shapes.items()}
    write_checkpoint(
        folder, json.loads((folder / "config.json").read_text()), tensors | head, RECIPES["reranker"].files()
    )
    metadata = plan_conversion(read_checkpoint(folder)).metadata
    assert list(metadata["bert.classifier.output_labels"].data) == list(labels.values())


def with_dense(folder: Path, recipe: str, *shapes: tuple[int, int], **config: Any) -> Path:
    """A checkpoint of sentence-transformers with Dense modules behind the pooled vector."""
    full = {"layer_types": ["sliding_attention", "full_attention"]} if recipe == "embeddinggemma" else {}
    written(folder, recipe, **full)
    modules = json.loads((folder / "modules.json").read_text())
    for number, shape in enumerate(shapes, 2):
        name = f"{number}_Dense"
        modules.append({"idx": number, "name": str(number), "path": name, "type": "sentence_transformers.models.Dense"})
        (folder / name).mkdir()
        facts = {"in_features": shape[1], "out_features": shape[0], "bias": False,
                 "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
        (folder / name / "config.json").write_text(json.dumps(facts | config))
        data = safetensors_bytes({"linear.weight": weights(name, shape, "F32")})
        (folder / name / "model.safetensors").write_bytes(data)
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_layers_after_pooling_that_are_left_out_are_named(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(RECIPES["minilm"].write(tmp_path / "plain"))
    family = plan_conversion(checkpoint).family
    assert list(module_cautions(checkpoint, family)) == []
    checkpoint = read_checkpoint(with_dense(tmp_path / "dense", "minilm", (64, 64)))
    (said,) = module_cautions(checkpoint, family)
    assert "a Dense layer" in said
    assert not any(tensor.entry.name.startswith("dense") for tensor in plan_conversion(checkpoint).tensors)


@pytest.mark.native
def test_embeddinggemmas_dense_layers_are_multiplied_by(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", "embeddinggemma", layer_types=["sliding_attention", "full_attention"])
    dense = with_dense(tmp_path / "dense", "embeddinggemma", (96, 64), (64, 96))
    vectors = []
    for folder in (plain, dense):
        report = convert_checkpoint(folder, folder.with_suffix(".gguf"), outtype="f32")
        assert not any("left out" in warning for warning in report.warnings)
        vectors.append(computed_values(folder.with_suffix(".gguf"), [1, 5, 9, 11, 7], pooled=True))
    expected = weights("3_Dense", (64, 96), "F32") @ (weights("2_Dense", (96, 64), "F32") @ vectors[0])
    np.testing.assert_allclose(vectors[1], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shapes", "config", "error", "match"),
    [
        (((64, 64),), {"bias": True}, UnsupportedError, "a bias"),
        (((64, 64),), {"activation_function": "torch.nn.modules.activation.Tanh"}, UnsupportedError, "Tanh"),
        (((64, 64),) * 3, {}, UnsupportedError, "3 Dense layers"),
        (((96, 64),), {}, UnsupportedError, "vectors of 96"),
        (((64, 32),), {}, CheckpointError, "takes 32"),
    ],
)
def test_dense_layers_that_llama_cpp_lacks_are_refused(
    tmp_path: Path, shapes: tuple[tuple[int, int], ...], config: dict[str, Any], error: type[Exception], match: str
) -> None:
    folder = with_dense(tmp_path / "dense", "embeddinggemma", *shapes, **config)
    with pytest.raises(error, match=match):
        plan_conversion(read_checkpoint(folder))


def test_a_dense_layer_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = with_dense(tmp_path / "dense", "embeddinggemma", (64, 64))
    text = (folder / "modules.json").read_text().replace('"2_Dense"', '"../dense"')
    (folder / "modules.json").write_text(text)
    with pytest.raises(UnsafeError, match="plain name"):
        plan_conversion(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("pattern", "name", "means"),
    [
        ("q_proj", "model.layers.1.self_attn.q_proj", True),
        ("q_proj", "model.layers.1.self_attn.eq_proj", False),
        (r"layers\.1\..*q_proj", "model.layers.1.self_attn.q_proj", True),
        (r"layers\.1\..*q_proj", "model.layers.11.self_attn.q_proj", False),
        ("^model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", True),
        ("^layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", False),
        ("q_proj|v_proj", "model.layers.1.self_attn.q_proj", True),
    ],
)
def test_an_adapters_patterns_are_regular_expressions_as_in_peft(pattern: str, name: str, means: bool) -> None:
    assert _means(pattern, name) is means


@pytest.mark.parametrize("pattern", ["(", "x" * 1000])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match="pattern"):
        _means(pattern, "q_proj")
