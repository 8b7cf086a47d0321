"""Tokenizers compared by what they do: agreement, choice among candidates, refusal, and survival of native aborts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.convert.conformance import conform as comparison
from lathe.quantize.convert.conformance.child import Request, _try, tokenize
from lathe.quantize.convert.conformance.conform import conform
from lathe.quantize.convert.conformance.probe import NAUGHTY, ORDINARY
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.choose import draft_vocabulary
from lathe.quantize.convert.vocabulary.model import Specials, Vocabulary
from lathe.quantize.convert.vocabulary.pretokenizers import CANDIDATES
from lathe.quantize.convert.vocabulary.settle import _with, settle
from lathe.quantize.convert.writer import text
from lathe.quantize.errors import CheckpointError, QuantizeError, UnsupportedError
from support import tokenizer_files as files
from support.families import RECIPES
from support.gguf_digest import digest

pytestmark = pytest.mark.native


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GGUF and the tokenizer.json it was made from."""
    folder = tmp_path_factory.mktemp("conformance")
    source = RECIPES["qwen2"].write(folder / "source")
    convert_checkpoint(source, folder / "out.gguf")
    return folder / "out.gguf", source / "tokenizer.json"


def with_tokenizer(folder: Path, document: dict[str, Any], name: str = "smollm") -> Path:
    """A checkpoint of the family with another tokenizer.json of the same size."""
    source = RECIPES[name].write(folder / "source")
    (source / "tokenizer.json").write_text(json.dumps(document))
    return source


def test_probes_are_unique_and_many_scripts_strong() -> None:
    texts = [*ORDINARY, *NAUGHTY]
    assert len(set(texts)) == len(texts)
    blocks = {ord(character) >> 8 for text in ORDINARY for character in text}
    assert len(blocks) > 20
    assert len(CANDIDATES) == len(set(CANDIDATES))


def test_the_first_candidate_that_agrees_wins(converted: tuple[Path, Path]) -> None:
    gguf, tokenizer = converted
    right = {"tokenizer.ggml.pre": "qwen2"}
    wrong = {"tokenizer.ggml.pre": "gpt-2"}
    result = conform(gguf, tokenizer, [wrong, right, right])
    assert (result.chosen, result.agrees, result.texts) == (1, True, len(ORDINARY) + len(NAUGHTY))


def test_a_wrong_pre_tokenizer_is_shown_by_example(converted: tuple[Path, Path]) -> None:
    gguf, tokenizer = converted
    result = conform(gguf, tokenizer, [{"tokenizer.ggml.pre": "gpt-2"}])
    assert not result.agrees
    example = result.ordinary[0]
    assert example.text in ORDINARY
    assert example.original != example.converted


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_an_unknown_structure_is_recognised_by_behaviour(tmp_path: Path, pre: str) -> None:
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    steps = files.PRE_TOKENIZERS[pre].get("pretokenizers")
    known = steps[0]["pattern"]["Regex"] if steps else words
    disguised = files.split_on(f"(?:{known})")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    document = files.byte_level_bpe(disguised, names, ignore_merges=pre == "llama-bpe")
    report = convert_checkpoint(with_tokenizer(tmp_path, document), tmp_path / "out.gguf")
    assert report.pre_tokenizer == pre
    assert report.conformance.agrees


def test_no_candidate_means_refusal_with_examples(tmp_path: Path) -> None:
    every_vowel = files.split_on("[aeiou]")
    document = files.byte_level_bpe(every_vowel, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    source = with_tokenizer(tmp_path, document)
    with pytest.raises(UnsupportedError, match=r"differs in \d+ of \d+ texts: .* originally, .* converted") as caught:
        convert_checkpoint(source, tmp_path / "out.gguf")
    assert caught.value.code == "E_TOKENIZER"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_leading_space_is_decided_by_behaviour(tmp_path: Path) -> None:
    source = RECIPES["tinyllama"].write(tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_text())
    document["normalizer"]["normalizers"].pop(0)
    prefix = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [prefix]}]}
    (source / "tokenizer.json").write_text(json.dumps(document))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"add_prefix_space": False}))
    report = convert_checkpoint(source, tmp_path / "out.gguf")
    assert digest(tmp_path / "out.gguf")["metadata"]["tokenizer.ggml.add_space_prefix"] == ["BOOL", True]
    assert report.conformance.agrees
    excused = [difference.text for difference in report.conformance.naughty if difference.text in ORDINARY]
    assert excused
    assert all(text.startswith(" ") for text in excused)


def test_a_candidates_settings_reach_the_metadata() -> None:
    plain = Vocabulary(model="bert", tokens=[b"a"], types=[1], specials=Specials(normalizer={"lowercase": True}))
    settings = {"pre": "qwen2", "normalizer.lowercase": False, "add_space_prefix": False}
    facts = _with(plain, settings).metadata()
    assert facts["tokenizer.ggml.pre"].data == "qwen2"
    assert facts["tokenizer.ggml.normalizer.lowercase"].data is False
    assert facts["tokenizer.ggml.add_space_prefix"].data is False


def test_runs_of_white_space_that_are_pieces_are_matched_first(tmp_path: Path) -> None:
    """Gemma's tokenizers have them: user-defined in tokenizer.model, first among the merges in tokenizer.json."""
    runs = ["\n" * length for length in range(1, 13)] + ["▁" * length for length in range(2, 41)]
    pieces = [(text, score, 4 if text in runs else kind) for text, score, kind in files.spm_pieces()]
    first = len(pieces)
    pieces += [(text, 0.0, 4) for text in runs if text not in {piece[0] for piece in pieces}]
    (tmp_path / "tokenizer.model").write_bytes(files.spm_model(pieces, prefix=False))
    document = files.spm_json(prefix=False)
    model = document["model"]
    model["vocab"] |= {text: first + place for place, (text, _, _) in enumerate(pieces[first:])}
    splits = [[text[:cut], text[cut:]] for text in runs for cut in range(1, len(text))]
    known = [pair for pair in splits if pair[0] in model["vocab"] and pair[1] in model["vocab"]]
    model["merges"] = known + [pair for pair in model["merges"] if pair not in known]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    draft = draft_vocabulary(Checkpoint(folder=tmp_path, config={}), Hparams({}, {}))
    _, result = settle(draft, {"general.architecture": text("llama")})
    assert result.agrees
    assert all("▁" in difference.text for difference in result.naughty)


def test_texts_that_abort_llama_cpp_do_not_abort_the_comparison(tmp_path: Path) -> None:
    source = RECIPES["tinyllama"].write(tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    document["model"]["vocab"] = {
        (f"[gone{number}]" if text.startswith("<0x") else text): number for text, number in vocab.items()
    }
    (source / "tokenizer.json").write_text(json.dumps(document))
    report = convert_checkpoint(source, tmp_path / "out.gguf")
    assert len(report.conformance.crashes) > 10
    assert all(crash.converted is None for crash in report.conformance.crashes)
    assert any("abort" in warning for warning in report.warnings)


def test_control_tokens_are_recognised_inside_texts(converted: tuple[Path, Path]) -> None:
    gguf, tokenizer = converted
    assert conform(gguf, tokenizer, marked=["<|im_start|>user\nHi<|im_end|>"]).marked == ()
    document = json.loads(tokenizer.read_text())
    document["added_tokens"] = document["added_tokens"][:1]
    other = tokenizer.with_name("other.json")
    other.write_text(json.dumps(document))
    assert len(conform(gguf, other, marked=["<|im_start|>user\nHi<|im_end|>"]).marked) == 1


def test_what_cannot_be_loaded_is_named(tmp_path: Path, converted: tuple[Path, Path]) -> None:
    gguf, tokenizer = converted
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        conform(gguf, broken)
    with pytest.raises(CheckpointError, match="unknown pre-tokenizer type: 'nonsense'"):
        conform(gguf, tokenizer, [{"tokenizer.ggml.pre": "nonsense"}])


def test_the_child_gets_no_secrets_and_its_death_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, converted: tuple[Path, Path]
) -> None:
    told = tmp_path / "environment"
    spy = tmp_path / "python"
    spy.write_text(f"#!/bin/sh\nenv > {told}\necho last words >&2\nexit 7\n")
    spy.chmod(0o700)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(comparison.sys, "executable", str(spy))
    with pytest.raises(QuantizeError, match="ended with 7: last words"):
        conform(*converted)
    assert "secret" not in told.read_text()


VECTORS = os.environ.get("LATHE_LLAMA_CPP", "")
"""Read at import: fixtures clear our variables."""


@pytest.mark.skipif(not VECTORS, reason="LATHE_LLAMA_CPP does not name a llama.cpp source tree")
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3", "bert-bge", "starcoder"])
def test_the_child_tokenizes_llama_cpps_own_vectors(name: str) -> None:
    """Its files hold what the original tokenizers made of its texts, one line of ids per text."""
    from lathe.quantize.libllama import bindings

    base = Path(VECTORS) / "models" / f"ggml-vocab-{name}.gguf"
    texts = base.with_name(base.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = base.with_name(base.name + ".out").read_text().splitlines()
    expected = [[int(number) for number in line.split()] for line in lines]
    request = Request(gguf=str(base), tokenizer="", probes=texts[: len(expected)], marked=[], candidates=[], decisive=0)
    found = _try(request, {}).probes
    assert [found[index] for index in range(len(expected))] == expected
    assert callable(tokenize)
    assert bindings()
