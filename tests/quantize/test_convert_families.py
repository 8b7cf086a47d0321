"""Every family against llama.cpp's own converter: tensors byte for byte, metadata value for value.

The golden files hold what that converter made of the same deterministic checkpoints; `benchmarks/convert.py --golden`
derives them again. Where this converter means to differ, `DEVIATIONS` says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lathe.quantize.convert import convert as driver
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.convert.conformance.conform import Conformance
from lathe.quantize.convert.vocabulary.choose import Draft
from support.families import RECIPES
from support.gguf_digest import digest

GOLDEN = Path(__file__).parent.parent / "golden" / "convert"

EVERYWHERE = {
    "tokenizer.ggml.pre": "chosen by behaviour; the official converter had to be told a name",
    "general.file_type": "differs by type",
}
DEVIATIONS: dict[str, dict[str, str]] = {
    "llama3": {"tokenizer.ggml.add_bos_token": "llama.cpp would add a token that the original does not"},
    "smollm3": {"tokenizer.ggml.add_bos_token": "llama.cpp would add a token that the original does not"},
    "gemma": {"tokenizer.ggml.eot_token_id": "a number that only one published vocabulary means"},
    "tinyllama": {
        "tokenizer.ggml.scores": "merge ranks, so that text is read as the original does; officially all are equal",
        "tokenizer.ggml.token_type": "a token that is added but not special stays so; officially all are control",
    },
    "reranker": {
        "bert.pooling_type": "says that the model scores",
        "general.size_label": "the pooler counts too",
    },
    "bge-m3": {
        "tokenizer.ggml.add_space_prefix": "from the pre-tokenizer; officially from an attribute that is not set",
        "tokenizer.ggml.remove_extra_whitespaces": "as XLM-RoBERTa does",
    },
}
DEVIATIONS["bge-reranker"] = DEVIATIONS["bge-m3"] | {"bert.pooling_type": "says that the model scores"}
MORE_TENSORS = {"reranker": {"cls.weight", "cls.bias"}}
"""The pooler, which the scoring head needs; officially it is left out, and scores come out wrong."""


def golden(name: str) -> dict[str, Any]:
    """The official converter's result."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


@pytest.mark.native
@pytest.mark.parametrize("name", RECIPES)
def test_a_family_converts_as_the_official_converter_does(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.gguf"
    report = convert_checkpoint(RECIPES[name].write(tmp_path / name), output, outtype="f16")
    assert report.conformance is not None
    assert report.conformance.agrees
    assert not report.conformance.marked
    assert report.conformance.surrounded is None
    assert report.bytes == output.stat().st_size
    expected, found = golden(name), digest(output)
    _same_tensors(name, found["tensors"], expected["f16"])
    meant = EVERYWHERE | DEVIATIONS.get(name, {})
    keys = found["metadata"].keys() | expected["metadata"].keys()
    differing = {key for key in keys if found["metadata"].get(key) != expected["metadata"].get(key)}
    assert differing - meant.keys() == set()
    assert DEVIATIONS.get(name, {}).keys() <= differing, "a deviation that is listed does not exist"


@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_type_has_the_official_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, outtype: Any
) -> None:
    def unsettled(draft: Draft, metadata: object) -> object:
        return draft.vocabulary, Conformance()  # the test above compares tokenizers; this one is about weights

    monkeypatch.setattr(driver, "settle", unsettled)
    output = tmp_path / "out.gguf"
    convert_checkpoint(RECIPES[name].write(tmp_path / name), output, outtype=outtype)
    _same_tensors(name, digest(output)["tensors"], golden(name)[outtype])


def _same_tensors(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() - expected.keys() == MORE_TENSORS.get(name, set())
    assert {tensor: found.get(tensor) for tensor in expected} == expected


def test_every_golden_file_has_a_recipe() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*RECIPES, "stdlib-4m", "outputs"}
