"""What must not be converted: each case is a typed error that names its object, and nothing is left behind."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from lathe.quantize import artefact
from lathe.quantize.convert import convert as driver
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.convert.conformance.conform import Conformance
from lathe.quantize.convert.vocabulary.choose import Draft
from lathe.quantize.errors import (
    CheckpointError,
    GgufError,
    InputMissing,
    OutputError,
    QuantizeError,
    UnsafeError,
    UnsupportedError,
)
from support.checkpoints import safetensors_bytes, weights
from support.families import RECIPES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Llama that converts."""
    return RECIPES["smollm"].write(tmp_path / "source")


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the tokenizers alone: these cases are about something else."""

    def first(draft: Draft, metadata: object) -> object:
        return draft.vocabulary, Conformance()

    monkeypatch.setattr(driver, "settle", first)


def edit(path: Path, **values: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def rewrite(source: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the weights of the fixture."""
    recipe = RECIPES["smollm"]
    tensors = {name: weights(name, shape, "F32") for name, shape in recipe.shapes.items()}
    change(tensors)
    (source / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def refused(source: Path, error: type[QuantizeError], match: str, **options: Any) -> QuantizeError:
    """Convert, expect the error, and check that the folder holds what it held before."""
    output = source.parent / "out.gguf"
    before = sorted(source.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        convert_checkpoint(source, output, **options)
    assert sorted(source.parent.iterdir()) == before
    return caught.value


def test_an_unknown_architecture_gets_its_nearest_names(source: Path) -> None:
    edit(source / "config.json", architectures=["LlamaForCausalLn"])
    assert "LlamaForCausalLM" in refused(source, UnsupportedError, "LlamaForCausalLn").hint


def test_no_architecture_is_named(source: Path) -> None:
    edit(source / "config.json", architectures=None)
    refused(source, CheckpointError, "names no architecture")


def test_remote_code_for_an_unknown_architecture_is_unsafe(source: Path) -> None:
    edit(source / "config.json", architectures=["OwnForCausalLM"], auto_map={"AutoModel": "own.Model"})
    refused(source, UnsafeError, "never runs a model's code")


@pytest.mark.usefixtures("unsettled")
def test_remote_code_beside_a_known_architecture_is_named_and_not_run(source: Path) -> None:
    edit(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (source / "modeling.py").write_text("raise SystemExit('ran')")
    report = convert_checkpoint(source, source.parent / "out.gguf")
    assert any("auto_map" in warning for warning in report.warnings)


def test_a_quantized_checkpoint_is_refused_by_its_method(source: Path) -> None:
    edit(source / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(source, UnsupportedError, "gptq")


def test_integer_weights_are_refused(source: Path) -> None:
    def to_bytes(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((96, 64), np.uint8)

    rewrite(source, to_bytes)
    refused(source, UnsupportedError, r"up_proj\.weight' is stored as U8")


class Damage(NamedTuple):
    """A change to the weights and the words of its error."""

    tensor: str
    shape: tuple[int, ...] | None
    match: str


DAMAGES = [
    Damage("model.layers.1.self_attn.v_proj.weight", None, r"layer 1 lacks attn_v\.weight"),
    Damage("model.embed_tokens.weight", None, "no token embeddings"),
    Damage("model.embed_tokens.weight", (400, 64), r"token_embd\.weight has the shape 400x64"),
    Damage("model.layers.0.self_attn.q_proj.weight", (60, 64), r"q_proj\.weight' has the wrong shape|attn_q"),
    Damage("model.layers.0.self_attn.q_proj.weight", (32, 64), r"attn_q\.weight has the shape 32x64"),
    Damage("model.layers.0.self_attn.q_proj.weight", (63, 64), "q_proj.*wrong shape"),
    Damage("model.layers.0.mlp.down_proj.weight", (64, 95), r"ffn_down\.weight has the shape 64x95"),
    Damage("model.layers.0.input_layernorm.weight", (65,), r"attn_norm\.weight has the shape 65"),
    Damage("model.layers.0.mlp.up_proj.weight", (0, 64), "no weight's"),
    Damage("model.layers.0.mlp.up_proj.weight", (), "no weight's"),
    Damage("model.layers.2.mlp.up_proj.weight", (96, 64), "promises 2 layers"),
    Damage("model.layers.0.mlp.strange.weight", (4, 4), r"strange\.weight' has no place"),
    Damage("model.layers.0.mlp.up_proj.scale", (4,), r"up_proj\.scale' has no place"),
    Damage("layers.0.mlp.up_proj.weight", (96, 64), r"both become blk\.0\.ffn_up\.weight"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[f"{damage.tensor} {damage.shape}" for damage in DAMAGES])
@pytest.mark.usefixtures("unsettled")
def test_weights_that_do_not_fit_are_named(source: Path, damage: Damage) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if damage.shape is None:
            del tensors[damage.tensor]
        else:
            tensors[damage.tensor] = np.ones(damage.shape, np.float32)

    rewrite(source, change)
    refused(source, CheckpointError, damage.match)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("num_attention_heads", 10**8),
        ("num_key_value_heads", 3),
        ("hidden_size", 2**40),
        ("hidden_size", 64.5),
        ("hidden_size", True),
        ("head_dim", 2**31),
        ("vocab_size", 4_000_000_000),
        ("vocab_size", 3),
        ("max_position_embeddings", 2**31),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", 1e300),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "llama3", "factor": 0}),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("rope_theta", 1e300),
    ],
)
@pytest.mark.usefixtures("unsettled")
def test_absurd_hyper_parameters_are_refused(source: Path, field: str, value: Any) -> None:
    edit(source / "config.json", **{field: value})
    with pytest.raises((CheckpointError, GgufError)):
        convert_checkpoint(source, source.parent / "out.gguf")
    assert [path.name for path in source.parent.iterdir()] == ["source"]


def test_an_unknown_rope_scaling_is_named(source: Path) -> None:
    edit(source / "config.json", rope_scaling={"rope_type": "spiral"})
    refused(source, UnsupportedError, "spiral")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.usefixtures("unsettled")
def test_weights_that_are_no_numbers_are_refused_unless_forced(source: Path, value: float, outtype: Any) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = value

    rewrite(source, damage)
    refused(source, CheckpointError, r"blk\.1\.ffn_down\.weight has at least 1 values", outtype=outtype)
    report = convert_checkpoint(source, source.parent / "out.gguf", outtype=outtype, force=True)
    assert any("blk.1.ffn_down.weight" in warning for warning in report.warnings)


@pytest.mark.usefixtures("unsettled")
def test_values_beyond_half_precision_are_refused_where_they_would_overflow(source: Path) -> None:
    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000

    rewrite(source, enlarge)
    refused(source, CheckpointError, r"blk\.0\.ffn_up\.weight", outtype="f16")
    convert_checkpoint(source, source.parent / "out.gguf", outtype="bf16")


def test_a_missing_tokenizer_is_named(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    refused(source, InputMissing, r"tokenizer\.json")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{}", "no model"),
        ('{"model": {"type": "BPE"}}', "no vocabulary"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}', "same id"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "token id"),
        ('{"model": {"type": "BPE", "vocab": {"a": 3000000}, "merges": []}}', "token id"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x"]}}', "malformed merge"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "no merges"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": "x"}]}', "added token"),
        ('{"model": {"type": "Sudoku", "vocab": {"a": 0}}}', "Sudoku"),
        ('{"a":' * 100_000, "nests too deeply"),
        ("[]", "not laid out"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [7]}}', "not laid out"),
        ("nothing", "no valid JSON"),
    ],
)
def test_broken_tokenizers_are_refused(source: Path, content: str, match: str) -> None:
    (source / "tokenizer.json").write_text(content)
    refused(source, QuantizeError, match)


def test_duplicate_tokens_never_reach_llama_cpp(source: Path) -> None:
    document = json.loads((source / "tokenizer.json").read_text())
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 5})
    (source / "tokenizer.json").write_text(json.dumps(document))
    refused(source, CheckpointError, "are both")


def test_the_output_may_not_be_an_input(source: Path) -> None:
    weights_file = source / "model.safetensors"
    content = weights_file.read_bytes()
    with pytest.raises(OutputError, match="is the input"):
        convert_checkpoint(source, weights_file, force=True)
    link = source.parent / "link.gguf"
    link.hardlink_to(source / "config.json")
    with pytest.raises(OutputError, match="is the input"):
        convert_checkpoint(source, link, force=True)
    assert weights_file.read_bytes() == content


@pytest.mark.usefixtures("unsettled")
def test_an_existing_output_needs_force(source: Path) -> None:
    output = source / "model.gguf"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        convert_checkpoint(source, output)
    assert output.read_bytes() == b"precious"
    convert_checkpoint(source, output, force=True)
    convert_checkpoint(source, output, force=True)
    assert output.read_bytes()[:4] == b"GGUF"


@pytest.mark.usefixtures("unsettled")
def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int = 1 << 20
        used: int = 1 << 20
        free: int = 1000

    monkeypatch.setattr(artefact.shutil, "disk_usage", lambda path: Usage())
    refused(source, OutputError, "free")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Make writing beyond a size fail, as on a full disk; not a moment longer, for the test's own report is a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 20_000, 50_000, 100_000])
@pytest.mark.usefixtures("unsettled")
def test_a_disk_that_fills_up_leaves_no_part(source: Path, size: int) -> None:
    with small_files(size):
        error = refused(source, OutputError, "no space left")
    assert error.code == "E_DISK_FULL"


@pytest.mark.usefixtures("unsettled")
def test_an_interrupt_leaves_no_part(source: Path) -> None:
    def interrupt(label: str, done: float, total: float | None, unit: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, source.parent / "out.gguf", report=interrupt)
    assert [path.name for path in source.parent.iterdir()] == ["source"]
