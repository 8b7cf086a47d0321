"""Checkpoint folders: complete ones are read, incomplete and hostile ones named and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize.checkpoint import open_weights, read_checkpoint, refuse_remote_code
from lathe.quantize.errors import CheckpointError, InputMissing, QuantizeError, UnsafeError
from support.checkpoints import safetensors_bytes, write_checkpoint

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 4}
TENSORS = {"b": np.ones(2, np.float32), "a": np.full((2, 2), 0x3F80, np.uint16)}


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    files = {"generation_config.json": {"top_k": 5}, "tokenizer_config.json": {"bos_token": "<s>"}}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, CONFIG, TENSORS, files))
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.parameters == 6
    assert (checkpoint.generation, checkpoint.tokenizer) == ({"top_k": 5}, {"bos_token": "<s>"})
    with open_weights(checkpoint) as weights:
        np.testing.assert_array_equal(weights.read("a"), TENSORS["a"])


def test_shards_are_found_through_the_index_and_without_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS, shards=2)
    with_index = read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert read_checkpoint(tmp_path).home == with_index.home
    assert [path.name for path in with_index.shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS, shards=2)
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 .*model-00002-of-00002"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:\\x", "a\0b", 7])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: Any) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name, "b": name}}))
    with pytest.raises(UnsafeError, match="plain name"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"a": "model.safetensors", "b": "model.safetensors", "c": "model.safetensors"}, "'c'"),
        ({"a": "model.safetensors"}, "'b'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_must_agree_with_its_shards(tmp_path: Path, mapping: Any, reason: str) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model-extra.safetensors").write_bytes(safetensors_bytes({"a": TENSORS["a"]}))
    with pytest.raises(CheckpointError, match="both"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    pickled = tmp_path / name
    pickled.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for source in (tmp_path, pickled):
        with pytest.raises(UnsafeError, match="pickle") as caught:
            read_checkpoint(source)
        assert "safetensors" in caught.value.hint


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS, {"pytorch_model.bin": b"not read"})
    assert read_checkpoint(tmp_path).shards[0].name == "model.safetensors"


@pytest.mark.parametrize("field", ["_attn_implementation_internal", "custom_pipelines"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_exploit_fields_are_refused_at_any_depth(tmp_path: Path, field: str, file: str) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS)
    (tmp_path / file).write_text(json.dumps({**CONFIG, "text_config": [{"deep": {field: "x/y"}}]}))
    with pytest.raises(UnsafeError, match=field):
        read_checkpoint(tmp_path)


def test_remote_code_is_reported_and_refused_where_it_would_matter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**CONFIG, "auto_map": {"AutoModel": "modeling.Model"}}, TENSORS)
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.remote_code == ("config.json has auto_map",)
    with pytest.raises(UnsafeError, match="never runs"):
        refuse_remote_code(checkpoint)


def test_a_text_model_inside_a_multimodal_one_is_what_counts(tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"vocab_size": 9, "architectures": []},
    }
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, config, TENSORS))
    assert checkpoint.config["vocab_size"] == 9
    assert checkpoint.architecture == "Gemma3ForConditionalGeneration"


def test_chat_templates_come_from_their_file_first(tmp_path: Path) -> None:
    settings = {"tokenizer_config.json": {"chat_template": "old"}}
    assert read_checkpoint(write_checkpoint(tmp_path, CONFIG, TENSORS, settings)).chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_checkpoint(tmp_path).chat_template == "new"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("other")
    assert read_checkpoint(tmp_path).chat_template == [
        {"name": "default", "template": "new"},
        {"name": "rag", "template": "other"},
    ]


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("config.json", "{", CheckpointError),
        ("config.json", "[]", CheckpointError),
        ("config.json", "[" * 100_000, CheckpointError),
        ("tokenizer_config.json", '{"chat_template": 3}', CheckpointError),
        ("chat_template.jinja", "x" * (256 * 1024 + 1), CheckpointError),
        ("modules.json", "{}", CheckpointError),
    ],
)
def test_broken_documents_are_named(tmp_path: Path, file: str, content: str, error: type[QuantizeError]) -> None:
    write_checkpoint(tmp_path, CONFIG, TENSORS)
    (tmp_path / file).write_text(content)
    with pytest.raises(error, match=r"config|template|modules"):
        read_checkpoint(tmp_path)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no checkpoint folder"):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputMissing, match=r"config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputMissing, match="safetensors"):
        read_checkpoint(tmp_path)


def test_a_shard_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, CONFIG, TENSORS))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"a": np.ones(2, np.float32)}))
    with pytest.raises(CheckpointError, match="changed"), open_weights(checkpoint):
        pass
