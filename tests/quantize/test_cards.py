"""Cards: what each kind of model says about itself, and nothing that it does not say."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.quantize.card import ModelCard
from lathe.quantize.cards import detect_format, read_card
from lathe.quantize.errors import CheckpointError, GgufError, InputMissing, UnsafeError, UnsupportedError
from lathe.quantize.gguf.types import ValueType
from support.checkpoints import safetensors_bytes, weights, write_checkpoint
from support.gguf_writer import Raw, array, text, tiny_adapter, tiny_imatrix, tiny_model, tiny_shards, u32
from support.onnx_writer import FLOAT16, external_tensor, graph, int_attribute, model, node, tensor

CONFIG = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96, "max_position_embeddings": 2048,
    "vocab_size": 1000, "sliding_window": 512, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def gguf(folder: Path, raw: Raw) -> ModelCard:
    path = folder / "a.gguf"
    path.write_bytes(raw.build())
    return read_card(path)


def test_gguf(tmp_path: Path) -> None:
    raw = tiny_model().put("general.license", text("apache-2.0")).put("llama.attention.sliding_window", u32(32))
    raw.put("llama.pooling_type", u32(3)).put("general.file_type", u32(15))
    card = gguf(tmp_path, raw)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    floats = sum(len(item.data) for item in raw.tensors)
    assert card == ModelCard(
        format="gguf",
        architecture="llama",
        name="tiny",
        parameters=floats // 4,
        bytes=(tmp_path / "a.gguf").stat().st_size,
        tensors=11,
        tensor_types={"F32": floats},
        file_type="Q4_K_M",
        bits_per_weight=32.0,
        context_length=64,
        embedding_length=32,
        feed_forward_length=64,
        layers=1,
        heads=2,
        kv_heads=2,
        key_length=16,
        value_length=16,
        sliding_window=32,
        vocabulary=263,
        tokenizer="llama",
        pre_tokenizer="default",
        chat_template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        licence="apache-2.0",
        pooling="last",
    )


def test_tensor_mix_in_bytes(tmp_path: Path) -> None:
    raw = tiny_model()
    last = raw.tensors[-1]
    last.type, last.data = 8, bytes(last.shape[0] // 32 * 34 * last.shape[1])
    card = gguf(tmp_path, raw)
    quantized = 64 // 32 * 34 * 32
    assert card.tensor_types["Q8_0"] == quantized
    assert list(card.tensor_types) == ["F32", "Q8_0"]
    assert card.parameters is not None
    assert card.bits_per_weight == pytest.approx(8 * sum(card.tensor_types.values()) / card.parameters)


def test_all_shards_count(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    card = read_card(paths[2])
    assert (card.shards, card.tensors, card.name) == (3, 11, "tiny")
    assert card.bytes == sum(path.stat().st_size for path in paths)


def test_experts_and_layers_that_differ(tmp_path: Path) -> None:
    raw = tiny_model().put("llama.block_count", u32(2))
    raw.put("llama.attention.head_count", array(ValueType.UINT32, [2, 4]))
    raw.put("llama.attention.head_count_kv", array(ValueType.UINT32, [1, 2]))
    raw.put("llama.expert_count", u32(8)).put("llama.expert_used_count", u32(2))
    card = gguf(tmp_path, raw)
    assert (card.heads, card.kv_heads, card.experts, card.experts_used) == (4, 2, 8, 2)


def test_gguf_files_that_are_no_models(tmp_path: Path) -> None:
    vocabulary = tiny_model()
    vocabulary.tensors = []
    projector = Raw().put("general.architecture", text("clip")).put("general.type", text("mmproj"))
    for raw, kind in (
        (tiny_adapter(), "adapter"),
        (tiny_imatrix(), "imatrix"),
        (vocabulary, "vocabulary"),
        (projector, "projector"),
    ):
        card = gguf(tmp_path, raw)
        assert card.kind == kind
        assert card.adapter is (kind == "adapter")
        assert card.architecture == {"imatrix": None, "projector": "clip"}.get(kind, "llama")


def test_oddities_are_warnings(tmp_path: Path) -> None:
    raw = tiny_model().put("general.file_type", u32(999)).put("tokenizer.ggml.padding_token_id", u32(0xFFFFFFFF))
    raw.put("tokenizer.ggml.scores", array(ValueType.FLOAT32, [0.0] * 263))
    raw.put("tokenizer.ggml.tokens", array(ValueType.STRING, [f"t{index}" for index in range(263)]))
    card = gguf(tmp_path, raw)
    assert card.file_type is None
    assert card.warnings == (
        "the file type 999 is unknown",
        "tokenizer.ggml.padding_token_id is 4294967295, outside of the vocabulary",
        "only 0 of 256 byte tokens: llama.cpp aborts on text outside of the vocabulary",
        "no licence is named",
    )


def test_names_in_gguf_are_cut(tmp_path: Path) -> None:
    card = gguf(tmp_path, tiny_model().put("general.name", text("n" * 100_000)))
    assert card.name == "n" * 200


def test_malformed_gguf(tmp_path: Path) -> None:
    with pytest.raises(GgufError):
        gguf(tmp_path, tiny_model().put("llama.block_count", u32(0)))


def test_the_embedded_checkpoint() -> None:
    card = read_card(CHECKPOINT)
    assert (card.format, card.architecture, card.file_type, card.shards) == ("safetensors", "llama", "BF16", 1)
    assert (card.parameters, card.layers, card.heads, card.kv_heads) == (4_196_608, 4, 8, 4)
    assert (card.context_length, card.key_length, card.vocabulary) == (1024, 32, 4096)
    assert card.bits_per_weight == 16.0
    assert card.chat_template
    assert "im_start" in card.chat_template


def test_checkpoint_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "mixtral",
        CONFIG | {"quantization_config": {"quant_method": "gptq"}},
        {"a": weights("a", (8, 4), "F16"), "b": weights("b", (8,), "F32")},
        {
            "README.md": "---\nlanguage: en\nlicense: 'mit'\n---\ntext\n",
            "merges.txt": "",
            "tokenizer_config.json": {
                "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
            },
        },
        shards=2,
    )
    assert read_card(folder) == ModelCard(
        format="safetensors",
        architecture="mixtral",
        name="mixtral",
        parameters=40,
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        tensors=2,
        tensor_types={"F16": 64, "F32": 32},
        file_type="GPTQ",
        bits_per_weight=8 * 96 / 40,
        context_length=2048,
        embedding_length=64,
        feed_forward_length=96,
        layers=3,
        heads=8,
        kv_heads=2,
        key_length=8,
        value_length=8,
        sliding_window=512,
        experts=8,
        experts_used=2,
        vocabulary=1000,
        tokenizer="gpt2",
        chat_template="D",
        template_sha256=hashlib.sha256(b"D").hexdigest(),
        licence="mit",
        shards=2,
    )


@pytest.mark.parametrize(("field", "pooling"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")])
def test_pooling_of_sentence_transformers(tmp_path: Path, field: str, pooling: str) -> None:
    folder = write_checkpoint(
        tmp_path / "embedder",
        {"model_type": "bert"},
        {"a": weights("a", (4,), "F32")},
        {
            "modules.json": [
                {"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            ],
            "1_Pooling/config.json": {f"pooling_mode_{field}": True, "pooling_mode_max_tokens": False},
        },
    )
    assert read_card(folder).pooling == pooling
    (folder / "1_Pooling" / "config.json").unlink()
    assert read_card(folder).pooling is None


def test_modules_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "embedder",
        {"model_type": "bert"},
        {"a": weights("a", (4,), "F32")},
        {"modules.json": [{"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}]},
    )
    with pytest.raises(UnsafeError):
        read_card(folder)


def test_numbers_that_make_no_sense_are_unknown(tmp_path: Path) -> None:
    config = {
        "model_type": ["llama"], "hidden_size": -1, "num_attention_heads": True, "num_hidden_layers": "3",
        "vocab_size": 1 << 60, "max_position_embeddings": 1.5, "use_sliding_window": False, "sliding_window": 128,
    }  # fmt: skip
    card = read_card(write_checkpoint(tmp_path / "odd", config, {"a": weights("a", (4,), "F32")}))
    facts = ("architecture", "embedding_length", "heads", "layers", "vocabulary", "context_length", "sliding_window")
    assert [getattr(card, name) for name in facts] == [None] * len(facts)


def test_texts_that_cannot_be_encoded(tmp_path: Path) -> None:
    """File names may hold any bytes: a card is sent as JSON all the same. JSON with lone surrogates is refused."""
    tensors = {"a": weights("a", (4,), "F32")}
    card = read_card(write_checkpoint(tmp_path / os.fsdecode(b"caf\xe9"), {"model_type": "x"}, tensors))
    assert msgspec.json.decode(msgspec.json.encode(card), type=ModelCard) == card
    assert (card.name, card.architecture) == ("caf?", "x")
    with pytest.raises(CheckpointError):
        read_card(write_checkpoint(tmp_path / "lone", {"model_type": "x\ud800"}, tensors))


def test_checkpoint_that_wants_to_run_code(tmp_path: Path) -> None:
    config = {"model_type": "evil", "auto_map": {"AutoModel": "modeling.Evil"}}
    card = read_card(write_checkpoint(tmp_path / "evil", config, {"a": weights("a", (4,), "F32")}))
    assert card.warnings == ("needs code of its own, which is never run: config.json has auto_map",)


def test_peft_adapter(tmp_path: Path) -> None:
    lora = {"base_model.model.q.lora_A.weight": weights("a", (4, 8), "F32")}
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(lora))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 4}))
    card = read_card(tmp_path)
    assert (card.format, card.kind, card.adapter, card.parameters) == ("safetensors", "adapter", True, 32)
    assert card.warnings == ("an adapter for org/base",)


def test_one_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_bytes({"a": np.zeros((4, 4), np.float16)}))
    card = read_card(path)
    assert (card.format, card.file_type, card.parameters, card.architecture) == ("safetensors", "F16", 16, None)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        assert detect_format(path) is None
        with pytest.raises(UnsafeError, match="pickle"):
            read_card(path)


def onnx_folder(folder: Path, name: str = "model.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx_data").write_bytes(bytes(400))
    data = model(graph([], [external_tensor("w", [10, 10], location="model.onnx_data"), tensor("b", [4], FLOAT16)]))
    (folder / name).write_bytes(data)
    return folder


def test_onnx_folder(tmp_path: Path) -> None:
    folder = onnx_folder(tmp_path / "exported")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text("T")
    card = read_card(folder)
    assert (card.format, card.architecture, card.name, card.file_type) == ("onnx", "mixtral", "exported", "F32")
    assert (card.parameters, card.tensors, card.tensor_types) == (104, 2, {"F32": 400, "F16": 8})
    assert card.bytes == (folder / "model.onnx").stat().st_size + 400
    assert (card.layers, card.kv_heads, card.context_length, card.chat_template) == (3, 2, 2048, "T")
    assert read_card(folder / "model.onnx").parameters == 104


def test_onnx_of_onnxruntime_genai(tmp_path: Path) -> None:
    quantized = node("MatMulNBits", ["x", "w", "s"], ["y"], int_attribute("K", 64), int_attribute("N", 8))
    packed = tensor("w", [8, 2, 16], 2)
    folder = tmp_path / "genai"
    folder.mkdir()
    (folder / "decoder.onnx").write_bytes(model(graph([quantized], [packed, tensor("s", [16])])))
    (folder / "other.onnx").write_bytes(model(graph()))
    decoder = {"filename": "decoder.onnx", "num_hidden_layers": 5, "num_attention_heads": 8, "head_size": 16}
    document = {"model": {"type": "phi3", "context_length": 4096, "vocab_size": 99, "decoder": decoder}}
    (folder / "genai_config.json").write_text(json.dumps(document))
    card = read_card(folder)
    assert (card.architecture, card.file_type, card.parameters) == ("phi3", "INT4", 512)
    assert (card.layers, card.heads, card.key_length, card.context_length, card.vocabulary) == (5, 8, 16, 4096, 99)
    assert card.bits_per_weight == 8 * (256 + 64) / 512
    assert card.warnings == ("not counted: other.onnx",)
    decoder["filename"] = "../decoder.onnx"
    (folder / "genai_config.json").write_text(json.dumps(document))
    with pytest.raises(UnsafeError):
        read_card(folder)


def test_onnx_encoder_and_decoder(tmp_path: Path) -> None:
    for name in ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"):
        (tmp_path / name).write_bytes(model(graph([], [tensor("w", [8])])))
    card = read_card(tmp_path)
    assert (card.parameters, card.shards) == (16, 2)
    assert card.warnings == ("not counted: decoder_with_past_model.onnx",)


def test_onnx_with_escaping_data(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(graph([], [external_tensor("w", [4], location="../../etc/passwd")])))
    with pytest.raises(UnsafeError):
        read_card(tmp_path)


def test_legacy_ggml(tmp_path: Path) -> None:
    header = b"tjgg" + struct.pack("<I", 3) + struct.pack("<7I", 2, 32, 256, 4, 1, 8, 0)
    vocabulary = b"".join(struct.pack("<I", 1) + word + bytes(4) for word in (b"a", b"b"))
    row = struct.pack("<3I", 1, 1, 0) + struct.pack("<I", 32) + b"w"
    body = header + vocabulary + row
    path = tmp_path / "old.bin"
    path.write_bytes(body + bytes(-len(body) % 32 + 128))
    card = read_card(path)
    assert (card.format, card.architecture, card.file_type, card.parameters) == ("ggml", "llama", "F32", 32)
    assert (card.tensor_types, card.bits_per_weight) == ({"F32": 128}, 32.0)
    path.write_bytes(b"lmgg" + bytes(64))
    assert "layout is unknown" in read_card(path).warnings[1]


def test_detection_goes_by_content(tmp_path: Path) -> None:
    blob = tmp_path / "sha256-0123"
    blob.write_bytes(tiny_model().build())
    assert detect_format(blob) == "gguf"
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("notes.txt", "empty", "pipe", "missing"):
        assert detect_format(tmp_path / name) is None
    both = write_checkpoint(tmp_path / "both", CONFIG, {"a": weights("a", (4,), "F32")})
    onnx_folder(both / "onnx")
    assert detect_format(both) == "safetensors"
    (both / "model.safetensors").unlink()
    assert detect_format(both) == "onnx"
    assert read_card(both).parameters == 104


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UnsupportedError):
            read_card(path)
    with pytest.raises(InputMissing):
        read_card(tmp_path / "missing")


@pytest.mark.shared
def test_shared_checkpoints(shared_data: Path) -> None:
    for name, parameters in (("stdlib-4m", 4_196_608), ("TinyStories-656K", 656_000)):
        card = read_card(shared_data / "models" / name)
        assert (card.format, card.architecture, card.parameters) == ("safetensors", "llama", parameters)
