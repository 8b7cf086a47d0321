"""Names from foreign text: always typable, always printable, never empty."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.catalogue.naming import LONGEST, clean, name_of
from lathe.engine.catalogue.recognise import Candidate


def assert_is_a_name(name: str) -> None:
    assert 0 < len(name) <= LONGEST
    assert name.isprintable()
    assert not name.startswith(("-", ".", "/", "~", "@")), name
    assert not name.endswith(("-", ".", "/", ":")), name
    assert ".." not in name
    assert not any(character.isspace() for character in name)
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name)
    assert clean(name) == name


@given(st.text(max_size=200))
def test_whatever_it_was_it_becomes_a_name(text: str) -> None:
    assert_is_a_name(clean(text))


@given(st.text("-./:+@_ a\u202e\u200b\x1b[", max_size=120))
def test_edges_and_repetitions(text: str) -> None:
    assert_is_a_name(clean(text))


@pytest.mark.shared
def test_naughty_strings_become_names(shared_data: Path) -> None:
    for text in json.loads((shared_data / "robustness" / "blns" / "blns.json").read_text()):
        assert_is_a_name(clean(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q4_K_M"),
        ("qwen3:8b", "qwen3:8b"),
        ("someone/gemma:latest", "someone/gemma:latest"),
        ("My  Model (v2)!", "My-Model-v2"),
        ("../../etc/passwd", "etc/passwd"),
        ("--force", "force"),
        ("\x1b]52;c;aGk=\x07evil", "52-c-aGk-evil"),
        ("моделька-7б", "моделька-7б"),
        ("ﬁne‮gpj", "fine-gpj"),
        ("", "model"),
        ("///", "model"),
        ("x" * 500, "x" * LONGEST),
    ],
)
def test_examples(text: str, name: str) -> None:
    assert clean(text) == name


@pytest.mark.parametrize(
    ("path", "kind", "header", "name"),
    [
        ("/m/Qwen3-8B-Q4_K_M.gguf", "gguf", "Qwen3 8B", "Qwen3-8B-Q4_K_M"),
        ("/m/Qwen3-8B-00001-of-00003.gguf", "gguf", None, "Qwen3-8B"),
        ("/m/tiny/ggml-model-f16.gguf", "gguf", "Tiny Llama", "Tiny-Llama"),
        ("/m/tiny/ggml-model-f16.gguf", "gguf", None, "tiny"),
        ("/m/tiny/model.gguf", "gguf", "\x1b[2J", "2J"),
        ("/hub/models--a--Repo/snapshots/r/model.gguf", "gguf", None, "Repo"),
        ("/hub/models--a--Repo/snapshots/r/Repo-Q8_0.gguf", "gguf", None, "Repo-Q8_0"),
        ("/m/stdlib-4m", "safetensors", None, "stdlib-4m"),
        ("/m/" + "a" * 40, "safetensors", "Real Name", "Real-Name"),
        ("/hub/models--a--Repo/snapshots/r", "safetensors", "Other", "Repo"),
        ("/m/minilm/onnx", "onnx", None, "minilm"),
        ("/m/old-model.bin", "ggml", None, "old-model"),
        ("/model.gguf", "gguf", None, "model"),
    ],
)
def test_names_come_from_the_best_source(path: str, kind: str, header: str | None, name: str) -> None:
    assert name_of(Candidate(Path(path), kind, (), "linked"), header) == name


def test_a_stores_own_name_wins() -> None:
    assert name_of(Candidate(Path("/x/sha256-00"), "gguf", (), "ollama", "qwen3:8b"), "Qwen") == "qwen3:8b"
