"""Which files make which model."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.catalogue.recognise import Candidate, recognise
from lathe.engine.catalogue.walk import Problem, list_folder


def found(folder: Path, *names: str, content: bytes = b"x") -> tuple[list[Candidate], list[Problem]]:
    for name in names:
        (folder / name).write_bytes(content)
    all_found = list(recognise(list_folder(folder)))
    return (
        [each for each in all_found if isinstance(each, Candidate)],
        [each for each in all_found if isinstance(each, Problem)],
    )


def names(candidate: Candidate) -> list[str]:
    return [file.path.name for file in candidate.files]


def test_each_gguf_is_a_model(tmp_path: Path) -> None:
    candidates, problems = found(tmp_path, "a.gguf", "B.GGUF", "a.gguf.part")
    assert [(each.path.name, each.format, each.size) for each in candidates] == [
        ("B.GGUF", "gguf", 1),
        ("a.gguf", "gguf", 1),
    ]
    assert problems == []


def test_shards_are_one_model_with_the_first_as_its_path(tmp_path: Path) -> None:
    shards = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    candidates, problems = found(tmp_path, *shards, "m-00001-of-00001.gguf", "single.gguf")
    by_name = {each.path.name: each for each in candidates}
    assert set(by_name) == {"m-00001-of-00003.gguf", "m-00001-of-00001.gguf", "single.gguf"}
    assert names(by_name["m-00001-of-00003.gguf"]) == shards
    assert by_name["m-00001-of-00003.gguf"].size == 3
    assert problems == []


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "2 of 3 shards; missing: 2"),
        (["m-00002-of-00002.gguf"], "1 of 2 shards; missing: 1"),
        (["m-00001-of-99999.gguf"], "1 of 99999 shards; missing: 2, 3, 4, 5, 6, ..."),
        (["m-00001-of-00000.gguf"], "1 of 0 shards"),
        (["m-00001-of-00001.gguf", "m-00000-of-00001.gguf"], "2 of 1 shards"),
    ],
)
def test_incomplete_shards_are_a_problem_that_says_which(tmp_path: Path, present: list[str], message: str) -> None:
    candidates, (problem,) = found(tmp_path, *present)
    assert candidates == []
    assert problem.code == "E_INCOMPLETE"
    assert problem.message.startswith(message)


def test_a_checkpoint_is_its_folder_with_what_belongs_to_it(tmp_path: Path) -> None:
    belonging = ["config.json", "merges.txt", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                 "tokenizer.json", "tokenizer.model"]  # fmt: skip
    (candidate,), problems = found(tmp_path, *belonging, "README.md", "notes.txt", "train.py")
    assert (candidate.path, candidate.format, names(candidate)) == (tmp_path, "safetensors", sorted(belonging))
    assert problems == []


def test_an_adapter_is_a_checkpoint_too(tmp_path: Path) -> None:
    (candidate,), _ = found(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    assert candidate.format == "safetensors"


def test_an_onnx_folder(tmp_path: Path) -> None:
    (candidate,), _ = found(tmp_path, "model.onnx", "model.onnx_data", "config.json", "decoder_model.onnx")
    assert (candidate.path, candidate.format, len(candidate.files)) == (tmp_path, "onnx", 4)


def test_both_in_one_folder_is_told(tmp_path: Path) -> None:
    (candidate,), (problem,) = found(tmp_path, "model.onnx", "model.safetensors", "config.json")
    assert candidate.format == "safetensors"
    assert problem.code == "E_AMBIGUOUS"


def test_what_is_no_whole_checkpoint(tmp_path: Path) -> None:
    assert found(tmp_path, "config.json") == ([], [])
    candidates, (problem,) = found(tmp_path, "pytorch_model-00001-of-00002.bin")
    assert (candidates, problem.code) == ([], "E_UNSAFE")
    (tmp_path / "config.json").unlink()
    candidates, (problem,) = found(tmp_path, "x.safetensors")
    assert (candidates, problem.code) == ([], "E_INCOMPLETE")


@pytest.mark.parametrize("magic", [b"lmgg", b"fmgg", b"tjgg", b"algg"])
def test_legacy_files_are_known_by_their_magic(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "old.bin").write_bytes(magic + b"rest")
    (tmp_path / "other.bin").write_bytes(b"PK\3\4")
    (tmp_path / "empty.ggml").touch()
    (candidate,), problems = found(tmp_path)
    assert (candidate.path.name, candidate.format, problems) == ("old.bin", "ggml", [])
