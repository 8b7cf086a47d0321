"""Converted models compute what their checkpoints do: llama.cpp beside what transformers gave for the same tokens.

The expected values stand in tests/golden/convert/outputs.json; `benchmarks/convert.py --golden` derives them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.libllama import bindings, complaint
from support.families import RECIPES

OUTPUTS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "convert" / "outputs.json").read_text()
)["outputs"]
POOLING_NONE, POOLING_RANK = 0, 4


@pytest.mark.native
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_converted_model_gives_the_originals_values(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.gguf"
    report = convert_checkpoint(RECIPES[name].write(tmp_path / name), output, outtype="f32")
    scores = "reranker" in name
    encoder = report.architecture == "bert"
    places = [place for place, _ in OUTPUTS[name]["largest"]]
    expected = [value for _, value in OUTPUTS[name]["largest"]]
    found = _run(output, OUTPUTS[name]["tokens"], encoder=encoder, scores=scores)
    assert [found[place] for place in places] == pytest.approx(expected, abs=0.02)


def test_every_family_that_transformers_knows_is_compared() -> None:
    assert RECIPES.keys() - OUTPUTS.keys() == {"nomic"}


def _run(path: Path, tokens: list[int], *, encoder: bool, scores: bool) -> Any:
    """Compute the values of one position: logits of the last, the vector of the first, or the score."""
    native = bindings()
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = native.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, complaint()
    settings = native.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.embeddings = encoder
    if encoder and not scores:
        settings.pooling_type = POOLING_NONE
    context = native.llama_init_from_model(model, settings)
    assert context, complaint()
    batch = native.llama_batch_init(len(tokens), 0, 1)
    try:
        if scores:
            assert native.llama_pooling_type(context) == POOLING_RANK, "the file does not say that the model scores"
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
        assert native.llama_decode(context, batch) == 0
        if scores:
            return native.llama_get_embeddings_seq(context, 0)[:1]
        count = (
            native.llama_model_n_embd(model)
            if encoder
            else native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
        )
        values = (
            native.llama_get_embeddings_ith(context, 0)
            if encoder
            else native.llama_get_logits_ith(context, len(tokens) - 1)
        )
        return values[:count]
    finally:
        native.llama_batch_free(batch)
        native.llama_free(context)
        native.llama_model_free(model)
