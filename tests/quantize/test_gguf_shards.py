"""Models in several files: found from any shard, refused when one is missing or foreign."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lathe.quantize.errors import GgufError, InputMissing
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.gguf.types import ValueType
from support.gguf_writer import Raw, array, float_tensor, scalar, tiny_model, tiny_shards


def test_all_shards_from_any_of_them(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    names = [tensor.name.decode() for tensor in tiny_model().tensors]
    for path in paths:
        headers = read_sharded(path)
        assert [header.path for header in headers] == paths
        assert [tensor.name for header in headers for tensor in header.tensors] == names
    assert [header.kind for header in headers] == ["model", "shard", "shard"]
    assert headers[0].architecture == "llama"


def test_a_single_file_is_its_own_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(tiny_model().build())
    assert read_sharded(path) == (read_header(path),)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path, 4)
    paths[1].unlink()
    paths[3].unlink()
    with pytest.raises(InputMissing, match=r"2 of 4 shards .* tiny-00002-of-00004.gguf, tiny-00004-of-00004.gguf"):
        read_sharded(paths[0])


def test_renamed_shard_says_what_its_name_must_be(tmp_path: Path) -> None:
    renamed = tiny_shards(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GgufError, match="shard 1 of 3, but its name does not say so") as caught:
        read_sharded(renamed)
    assert "NAME-00001-of-00003.gguf" in caught.value.hint


def test_shards_in_the_wrong_order(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    shutil.copy(paths[1], paths[2])
    with pytest.raises(GgufError, match=r"'split\.no' is 1; 2 was expected"):
        read_sharded(paths[0])


def _rewrite(path: Path, index: int, raw: Raw, total: int) -> None:
    raw.put("split.no", scalar(ValueType.UINT16, index)).put("split.count", scalar(ValueType.UINT16, 3))
    raw.put("split.tensors.count", scalar(ValueType.INT32, total))
    path.write_bytes(raw.build())


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    model = tiny_model()
    _rewrite(paths[2], 2, Raw(tensors=model.tensors[:1]), len(model.tensors))
    with pytest.raises(GgufError, match=r"'token_embd\.weight' is in both") as caught:
        read_sharded(paths[0])
    assert caught.value.code == "E_GGUF_TENSOR"


def test_tensors_that_are_in_no_shard(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    _rewrite(paths[2], 2, Raw(tensors=[float_tensor("x", 4)]), 11)
    with pytest.raises(GgufError, match=r"'split\.tensors\.count' is 11; the shards hold 7"):
        read_sharded(paths[0])


def test_vocabulary_and_embeddings_in_different_shards_must_agree(tmp_path: Path) -> None:
    paths = tiny_shards(tmp_path)
    first = tiny_model()
    for key in ("scores", "token_type"):
        first.drop(f"tokenizer.ggml.{key}")
    first.put("tokenizer.ggml.tokens", array(ValueType.STRING, [b"a", b"b", b"c"]))
    count = len(first.tensors)
    first.tensors = []
    _rewrite(paths[0], 0, first, count)
    with pytest.raises(GgufError, match=r"'token_embd\.weight' has 263 rows for 3 tokens"):
        read_sharded(paths[1])


def test_absurd_number_of_shards(tmp_path: Path) -> None:
    path = tmp_path / "a-00001-of-60000.gguf"
    path.write_bytes(tiny_model().put("split.count", scalar(ValueType.UINT16, 60_000)).build())
    with pytest.raises(GgufError) as caught:
        read_sharded(path)
    assert caught.value.code == "E_GGUF_LIMIT"
