"""Embedders beside their base: passages, distances, neighbours; importances; and what is refused for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, UsageError
from lathe.engine.jobs import bench, imatrix, kld, perplexity
from lathe.engine.measure.reading import reading_times
from lathe.engine.measure.vectors import compare, embed, passages
from lathe.engine.native.llama import LlamaModel
from lathe.engine.steps import BenchStep, ImatrixStep, KldStep, PerplexityStep
from lathe.quantize.convert.convert import convert_checkpoint
from lathe.quantize.errors import OutputError
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
from support.families import RECIPES
from support.job_context import RecordingContext, entry


@given(st.binary(max_size=600), st.integers(1, 40))
def test_passages_are_the_words_of_the_text_in_order(text: bytes, tokens: int) -> None:
    try:
        found = passages(text, tokens)
    except DataError:
        assert len(text.split()) < 2 or len(text.strip()) <= 3 * tokens
        return
    assert b" ".join(found).split() == text.split()
    assert all(len(one) <= 3 * tokens or len(one.split()) == 1 for one in found)
    assert passages(text, tokens, 2) == found[:2]


def _unit(rows: list[list[float]]) -> np.ndarray:
    found = np.array(rows, np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_distances_and_neighbours_are_what_they_say() -> None:
    base = _unit([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    same = compare(base, base)
    assert same.distance.value == pytest.approx(0, abs=1e-7)
    assert (same.same_nearest.value, same.neighbours.value) == (1, 1)
    turned = _unit([[1, 0], [1, 0.1], [0, 1], [1, 0.05]])  # the last one turned towards the first two
    found = compare(base, turned)
    cosine = float(base[3] @ turned[3])
    assert found.distance.value == pytest.approx((1 - cosine) / 4, rel=1e-5)
    assert found.distance_maximum == pytest.approx(1 - cosine, rel=1e-5)
    assert found.same_nearest.value == 0
    assert found.neighbours.value == 1, "of four passages each has three neighbours, whatever their order"
    with pytest.raises(DataError, match="2 values and the model's 3"):
        compare(base, np.ones((4, 3), np.float32))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    convert_checkpoint(RECIPES["minilm"].write(folder / "source"), folder / "minilm-F32.gguf", outtype="f32")
    return folder / "minilm-F32.gguf"


@pytest.fixture(scope="module")
def coarse(embedder: Path) -> Path:
    path = embedder.with_name("minilm-Q4_0.gguf")
    quantize_gguf(embedder, path, QuantizeOptions(type="Q4_0", threads=1, pure=True))
    return path


@pytest.fixture
def loaded(embedder: Path) -> Iterator[LlamaModel]:
    with LlamaModel(embedder) as model:
        yield model


@pytest.mark.native
def test_vectors_do_not_depend_on_what_shares_their_batch(loaded: LlamaModel) -> None:
    texts = [b"one", b"two words", b"three words " * 60]
    together = embed(loaded, texts, 64, threads=1)
    alone = np.concatenate([embed(loaded, [text], 64, threads=1) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)


@pytest.mark.native
def test_the_job_compares_embedders_by_their_vectors(home: Path, embedder: Path, coarse: Path) -> None:
    base, other = entry(embedder), entry(coarse)
    step = KldStep(model=other.name, base=base.name, context=64, chunks=30, threads=1)
    context = RecordingContext(step, home, base, other)
    outcome = kld.run(step, context)
    assert outcome.figures["passages"] == 30
    assert 0 < float(outcome.figures["mean_distance"] or 0) <= float(outcome.figures["max_distance"] or 0) < 0.5
    assert context.reports[-1][1:3] == (60, 60)
    same = KldStep(model=base.name, base=base.name, context=64, chunks=30, threads=1)
    figures = kld.run(same, RecordingContext(same, home, base)).figures
    assert figures["mean_distance"] == pytest.approx(0, abs=1e-6)
    assert figures["neighbours"] == 1
    saving = KldStep(model=other.name, base=base.name, save_base="base.kld")
    with pytest.raises(UsageError, match="no log-probabilities"):
        kld.run(saving, RecordingContext(saving, home, base, other))


@pytest.mark.native
def test_a_decoder_whose_file_names_a_pooling_is_an_embedder(home: Path, embedded_gguf: Path, tmp_path: Path) -> None:
    wide, narrow = tmp_path / "wide.gguf", tmp_path / "narrow.gguf"
    for path, kind in ((wide, "F16"), (narrow, "Q8_0")):
        quantize_gguf(embedded_gguf, path, QuantizeOptions(type=kind, threads=1, metadata={"llama.pooling_type": 3}))
    with LlamaModel(embedded_gguf) as plain, LlamaModel(wide) as pooled:
        assert (plain.embeds, pooled.embeds) == (False, True)
        assert plain.generates and pooled.generates
    model, base = entry(narrow), entry(wide)
    step = KldStep(model=model.name, base=base.name, context=64, chunks=8, threads=1)
    figures = kld.run(step, RecordingContext(step, home, model, base)).figures
    assert 0 < float(figures["mean_distance"] or 0) < 0.01


@pytest.mark.native
def test_importances_of_an_embedder_are_collected(home: Path, embedder: Path) -> None:
    model = entry(embedder)
    step = ImatrixStep(model=model.name, text=str(HELD_OUT_TEXT), context=64, chunks=4, threads=1)
    outcome = imatrix.run(step, RecordingContext(step, home, model))
    assert outcome.figures["chunks"] == 4
    assert {f"blk.{layer}.ffn_down.weight" for layer in range(2)} <= {str(row["tensor"]) for row in outcome.rows}


@pytest.mark.native
def test_an_output_that_is_there_is_refused_before_collecting(home: Path, embedder: Path, tmp_path: Path) -> None:
    model, output = entry(embedder), tmp_path / "there.gguf"
    output.write_bytes(b"mine")
    step = ImatrixStep(model=model.name, text=str(HELD_OUT_TEXT), context=64, chunks=4, output=str(output))
    context = RecordingContext(step, home, model)
    with pytest.raises(OutputError, match="exists"):
        imatrix.run(step, context)
    assert (context.reports, output.read_bytes()) == ([], b"mine")


@pytest.mark.native
def test_next_tokens_of_an_embedder_are_not_asked_for(home: Path, embedder: Path) -> None:
    model = entry(embedder)
    text = str(HELD_OUT_TEXT)
    step = PerplexityStep(model=model.name, context=64)
    with pytest.raises(DataError, match="predicts no next token") as refused:
        perplexity.run(step, RecordingContext(step, home, model))
    assert "lathe kld" in str(refused.value.hint)
    long = ImatrixStep(model=model.name, text=text, context=256)
    with pytest.raises(DataError, match="at most 128 tokens"):
        imatrix.run(long, RecordingContext(long, home, model))


@pytest.mark.native
def test_an_embedder_is_timed_by_the_texts_it_reads(home: Path, embedder: Path) -> None:
    model = entry(embedder)
    step = BenchStep(model=model.name, prompt_tokens=(300,), generate_tokens=(8,), threads=(1,), repetitions=2)
    context = RecordingContext(step, home, model)
    outcome = bench.run(step, context)
    (row,) = outcome.rows
    assert (row["n_prompt"], row["n_gen"], row["embeddings"]) == (300, 0, True), "longer than a text, in several"
    assert outcome.figures["tokens_per_s"] is None
    assert float(outcome.figures["prompt_tokens_per_s"] or 0) > 0
    assert any("generates nothing" in line for line in context.lines)
    nothing = BenchStep(model=model.name, prompt_tokens=(0,), generate_tokens=(8,))
    with pytest.raises(DataError, match="generates nothing"):
        bench.run(nothing, RecordingContext(nothing, home, model))


@pytest.mark.native
def test_texts_are_read_as_long_as_model_and_batch_allow(loaded: LlamaModel) -> None:
    def times(**more: int) -> list[int]:
        return list(reading_times(loaded, 200, threads=1, repetitions=2, **more))

    assert len(times(batch=512)) == len(times(text=64, batch=64)) == 2
    with pytest.raises(DataError, match="a batch of 32 tokens holds no text of 64"):
        times(text=64, batch=32)
    with pytest.raises(DataError, match="at most 128 tokens"):
        times(text=200, batch=512)
