"""Converted models compute what their checkpoints do: llama.cpp beside what transformers gave for the same tokens.

The expected values stand in tests/golden/convert/outputs.json; `benchmarks/convert.py --golden` derives them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lathe.quantize.convert import convert_checkpoint
from support.families import RECIPES
from support.llama_values import computed_values

OUTPUTS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "convert" / "outputs.json").read_text()
)["outputs"]


@pytest.mark.native
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_converted_model_gives_the_originals_values(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.gguf"
    report = convert_checkpoint(RECIPES[name].write(tmp_path / name), output, outtype="f32")
    scores = "reranker" in name
    encoder = report.architecture == "bert"
    places = [place for place, _ in OUTPUTS[name]["largest"]]
    expected = [value for _, value in OUTPUTS[name]["largest"]]
    found = computed_values(output, OUTPUTS[name]["tokens"], encoder=encoder, scores=scores)
    assert [found[place] for place in places] == pytest.approx(expected, abs=0.02)


def test_every_family_that_transformers_knows_is_compared() -> None:
    assert RECIPES.keys() - OUTPUTS.keys() == {"nomic", "gemma3-vision", "embeddinggemma"}
