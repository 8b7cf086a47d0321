"""GGUF back to checkpoints: what was converted without loss returns exactly, what was quantized returns close."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize.checkpoint import open_weights, read_checkpoint
from lathe.quantize.convert import convert_checkpoint, restore_checkpoint
from lathe.quantize.convert.convert import plan_conversion
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.restore.config import solve_llama3
from lathe.quantize.convert.restore.restore import plan_restoration
from lathe.quantize.convert.restore.tokenizer import tokenizer_files
from lathe.quantize.convert.rope import llama3_factors
from lathe.quantize.convert.writer import Metadata, TensorEntry, f32, write_gguf
from lathe.quantize.errors import OutputError, UnsupportedError
from lathe.quantize.gguf.header import read_header
from lathe.quantize.quantizer import QuantizeOptions, quantize_gguf
from support.checkpoints import weights, write_checkpoint
from support.families import FEED, HEAD, HEADS, KV_HEADS, LAYERS, RECIPES, WIDTH, Recipe
from support.gguf_digest import digest

IRREVERSIBLE = {"bge-m3", "bge-reranker", "roberta", "nomic", "gemma3-vision", "embeddinggemma"}
"""Cut, or known to llama.cpp by another name than to transformers."""
RESTORABLE = [name for name in RECIPES if name not in IRREVERSIBLE]

pytestmark = pytest.mark.native

ATTENTION = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD, "o": WIDTH}
MLP = {"gate": FEED, "up": FEED, "down": WIDTH}
LONGROPE = {"type": "longrope", "short_factor": [1 + n / 8 for n in range(6)], "long_factor": [1 + n for n in range(6)]}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 2.0}


def variant(name: str, config: dict[str, Any], **biases: dict[str, int]) -> Recipe:
    """A recipe with other settings, and with biases for some matrices of a block."""
    recipe = RECIPES[name]
    more = {
        f"model.layers.{layer}.{block}.{part}_proj.bias": (size,)
        for layer in range(LAYERS)
        for block, parts in biases.items()
        for part, size in parts.items()
    }
    return replace(recipe, config={**recipe.config, **config}, shapes={**recipe.shapes, **more})


VARIANTS = {
    "attention_bias": variant("llama2", {"attention_bias": True}, self_attn=ATTENTION),
    "mlp_bias": variant("llama2", {"mlp_bias": True}, mlp=MLP),
    "few rotated": variant("phi3", {"partial_rotary_factor": 0.75}),
    "few rotated, long": variant("phi3-long", {"partial_rotary_factor": 0.75, "rope_scaling": LONGROPE}),
    "yarn": variant("qwen2", {"rope_scaling": YARN}),
    "wide gpt2": replace(
        RECIPES["gpt2"],
        config={**RECIPES["gpt2"].config, "n_inner": FEED},
        shapes={
            name: tuple(FEED if size == 4 * WIDTH else size for size in shape)
            for name, shape in RECIPES["gpt2"].shapes.items()
        },
    ),
    "window everywhere": variant("gemma3", {"layer_types": ["sliding_attention"] * LAYERS, "sliding_window": 4}),
    "window nowhere": variant("gemma3", {"layer_types": ["full_attention"] * LAYERS, "sliding_window": 4}),
}


def hollow(
    recipe: Recipe, target: Path, facts: Metadata, changed: Callable[[TensorEntry], TensorEntry] = lambda entry: entry
) -> Path:
    """The GGUF of a recipe with other facts and tensors, whose weights are zeros."""
    plan = plan_conversion(read_checkpoint(recipe.write(target.with_suffix(""))), "f32")
    entries = [changed(entry) for entry in plan.entries]
    pieces = ((index, np.zeros(entry.shape, np.float32)) for index, entry in enumerate(entries))
    write_gguf(target, dict(plan.metadata) | facts, entries, pieces)
    return target


def settings(gguf: Path) -> dict[str, Any]:
    """config.json of what a GGUF becomes."""
    config: dict[str, Any] = json.loads(plan_restoration(gguf).documents["config.json"])
    return config


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
    assert report.architecture == ("LlamaForCausalLM" if name == "mistral" else recipe.config["architectures"][0])
    expected, found = stored(source), stored(tmp_path / "back")
    expected = {tensor: values for tensor, values in expected.items() if "pooler" not in tensor or name == "reranker"}
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
    (tmp_path / "source" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        restore_checkpoint(tmp_path / "one.gguf", tmp_path / "source", force=True)
    (tmp_path / "source" / "notes.txt").unlink()
    (tmp_path / "source" / "old.json").write_text("old")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "source", force=True)
    assert not (tmp_path / "source" / "old.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "photos", "source"]


def test_a_folder_that_holds_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = RECIPES["smollm"].write(tmp_path / "source")
    convert_checkpoint(source, source / "one.gguf")
    with pytest.raises(OutputError, match=r"holds the input one\.gguf"):
        restore_checkpoint(source / "one.gguf", source, force=True)
    assert (source / "one.gguf").exists()


def test_an_interrupted_restoration_leaves_nothing(tmp_path: Path) -> None:
    convert_checkpoint(RECIPES["smollm"].write(tmp_path / "source"), tmp_path / "one.gguf")

    def interrupt(label: str, done: float, total: float | None, unit: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_checkpoint(tmp_path / "one.gguf", tmp_path / "out", report=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "source"]


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_variants_come_back_too(tmp_path: Path, name: str) -> None:
    source = VARIANTS[name].write(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "one.gguf", outtype="f32")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    expected, found = stored(source), stored(tmp_path / "back")
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=0, atol=1e-7, err_msg=tensor)


@pytest.mark.parametrize(
    "name", [*VARIANTS, "llama2", "tinyllama", "qwen2", "gemma2", "gemma3", "phi3-long", "reranker"]
)
def test_a_restored_model_computes_what_the_original_does(tmp_path: Path, name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source = (VARIANTS.get(name) or RECIPES[name]).write(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "one.gguf", outtype="f32")
    report = restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    assert report.warnings == ()

    def computed(folder: Path) -> np.ndarray:
        loader = getattr(transformers, report.architecture)
        model, loaded = loader.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
        assert not any(loaded.values())
        with torch.no_grad():
            logits: np.ndarray = model.eval()(input_ids=torch.tensor([[5, 9, 12, 7, 20, 3, 30, 8] * 4])).logits.numpy()
        return logits

    original = computed(source)
    assert np.abs(computed(tmp_path / "back") - original).max() < 1e-3 * np.abs(original).max()


def test_a_restored_decoder_generates_from_what_its_tokenizer_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    convert_checkpoint(RECIPES["llama2"].write(tmp_path / "source"), tmp_path / "one.gguf")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    given = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")("the cat", return_tensors="pt")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.generate(**given, max_new_tokens=2, do_sample=False).shape[1] > given["input_ids"].shape[1]


def test_only_an_encoder_is_given_segments(tmp_path: Path) -> None:
    for name, inputs in (("qwen2", ["input_ids", "attention_mask"]), ("minilm", None)):
        gguf = hollow(RECIPES[name], tmp_path / f"{name}.gguf", {})
        config = json.loads(plan_restoration(gguf).documents["tokenizer_config.json"])
        assert config.get("model_input_names") == inputs


@pytest.mark.parametrize("name", ["llama2", "phi3", "gemma"])
def test_a_restored_tokenizer_decodes_what_was_encoded(tmp_path: Path, name: str) -> None:
    from tokenizers import Tokenizer

    gguf = hollow(RECIPES[name], tmp_path / "one.gguf", {})
    tokenizer = Tokenizer.from_str(plan_restoration(gguf).documents["tokenizer.json"].decode())
    for text in ("the cat and the dog", " two  blanks"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_pairs_for_a_restored_reranker_have_two_segments(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    gguf = hollow(RECIPES["reranker"], tmp_path / "one.gguf", {})
    pair = Tokenizer.from_str(plan_restoration(gguf).documents["tokenizer.json"].decode()).encode("the cat", "the dog")
    assert pair.tokens[0] == "[CLS]"
    assert [index for index, token in enumerate(pair.tokens) if token == "[SEP]"] == [
        pair.type_ids.index(1) - 1,
        len(pair) - 1,
    ]


def test_experts_are_not_left_out_of_a_checkpoint(tmp_path: Path) -> None:
    def routed(entry: TensorEntry) -> TensorEntry:
        if "ffn_" not in entry.name or "norm" in entry.name:
            return entry
        return TensorEntry(entry.name.replace(".weight", "_exps.weight"), (4, *entry.shape), entry.type)

    gguf = hollow(RECIPES["llama2"], tmp_path / "moe.gguf", {}, routed)
    with pytest.raises(
        UnsupportedError, match=r"6 tensors .* LlamaForCausalLM: blk\.0\.ffn_\w+_exps\.weight, .*"
    ) as raised:
        restore_checkpoint(gguf, tmp_path / "out")
    assert "use the checkpoint" in raised.value.hint
    assert not (tmp_path / "out").exists()


def test_half_a_scoring_head_is_refused(tmp_path: Path) -> None:
    def headless(entry: TensorEntry) -> TensorEntry:
        return TensorEntry(entry.name.replace("cls.output", "cls.other"), entry.shape, entry.type)

    gguf = hollow(RECIPES["reranker"], tmp_path / "one.gguf", {}, headless)
    with pytest.raises(UnsupportedError, match=r"BertModel: cls\."):
        restore_checkpoint(gguf, tmp_path / "out")


def test_a_scale_beside_a_weight_is_refused(tmp_path: Path) -> None:
    def scaled(entry: TensorEntry) -> TensorEntry:
        return TensorEntry(entry.name.replace("ffn_norm.weight", "ffn_up.scale"), entry.shape, entry.type)

    with pytest.raises(UnsupportedError, match=r"2 tensors .*: blk\.0\.ffn_up\.scale"):
        restore_checkpoint(hollow(RECIPES["llama2"], tmp_path / "one.gguf", {}, scaled), tmp_path / "out")


def test_a_reranker_keeps_its_labels_and_a_head_of_one_row(tmp_path: Path) -> None:
    def flat(entry: TensorEntry) -> TensorEntry:
        return TensorEntry(entry.name, (WIDTH,), entry.type) if entry.name == "cls.output.weight" else entry

    plan = plan_restoration(hollow(RECIPES["reranker"], tmp_path / "one.gguf", {}, flat))
    assert {tensor.name: tensor.shape for tensor in plan.tensors}["classifier.weight"] == (1, WIDTH)
    assert settings(tmp_path / "one.gguf")["id2label"] == {"0": "LABEL_0"}


def test_every_setting_of_yarn_is_told(tmp_path: Path) -> None:
    facts = {f"qwen2.rope.scaling.yarn_{key}": f32(value) for key, value in (("beta_fast", 16), ("beta_slow", 2))}
    scaling = settings(hollow(RECIPES["qwen2"], tmp_path / "one.gguf", facts))["rope_scaling"]
    assert scaling == {
        "rope_type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 64,
        "beta_fast": 16,
        "beta_slow": 2,
    }
    facts = {"qwen2.rope.scaling.attn_factor": f32(0.5)}
    scaling = settings(hollow(RECIPES["qwen2"], tmp_path / "two.gguf", facts))["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(0.5 * (1 + 0.1 * np.log(4)))


def test_a_value_too_large_for_half_precision_is_no_infinity(tmp_path: Path) -> None:
    recipe, name = RECIPES["llama2"], "model.layers.0.mlp.down_proj.weight"
    tensors = {tensor: weights(tensor, shape, "F32") for tensor, shape in recipe.shapes.items()}
    tensors[name][0, 0] = 1e6
    source = write_checkpoint(tmp_path / "source", recipe.config, tensors, recipe.files())
    convert_checkpoint(source, tmp_path / "q8.gguf", outtype="q8_0")
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_down\.weight .* too large for its type") as raised:
        restore_checkpoint(tmp_path / "q8.gguf", tmp_path / "back")
    assert "bf16" in raised.value.hint
    assert not (tmp_path / "back").exists()
    assert restore_checkpoint(tmp_path / "q8.gguf", tmp_path / "back", outtype="bf16").warnings == ()
    assert stored(tmp_path / "back")[name][0, 0] == pytest.approx(1e6, rel=0.01)
    kept = restore_checkpoint(tmp_path / "q8.gguf", tmp_path / "back", force=True)
    assert "blk.0.ffn_down.weight" in kept.warnings[0]
