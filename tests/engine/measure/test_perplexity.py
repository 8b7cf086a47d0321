"""Perplexity: llama-perplexity's figures, whatever the batching, and sums that can be continued."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, MissingError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import kld
from lathe.engine.measure.chunks import read_text
from lathe.engine.measure.logprobs import Slicer, negative_log_likelihood
from lathe.engine.measure.perplexity import Moments, Perplexity, measure, perplexity
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel

TEXT = read_text(HELD_OUT_TEXT)


@pytest.fixture(scope="module")
def model(embedded_gguf: Path) -> Iterator[LlamaModel]:
    with LlamaModel(embedded_gguf) as loaded:
        yield loaded


@pytest.mark.native
@pytest.mark.parametrize(
    ("n_ctx", "chunks", "figure", "error"),
    [(128, 4, 14.8703, 2.64457), (128, 12, 15.4603, 1.74210), (256, 12, 10.0241, 0.76843)],
)
def test_the_figures_are_those_of_llama_perplexity(
    embedded_gguf: Path, n_ctx: int, chunks: int, figure: float, error: float
) -> None:
    """As printed by llama-perplexity of the pinned llama.cpp for the embedded model in F16, `-c N --chunks M`."""
    result = measure(embedded_gguf, TEXT, n_ctx=n_ctx, limit=chunks, threads=1)
    assert result.perplexity == pytest.approx(figure, abs=1e-3)
    assert result.error == pytest.approx(error, abs=2e-3)
    assert (result.chunks, result.tokens) == (chunks, chunks * (n_ctx - 1 - n_ctx // 2))


@pytest.mark.native
def test_the_figure_is_what_its_definition_says(model: LlamaModel) -> None:
    """One chunk at a time, one sequence, log-softmax in double precision."""
    chunks = chunked.cut(model, TEXT, 64, 3)
    surprise, size = [], 0
    with LlamaContext(model, ContextOptions(n_ctx=64, n_threads=1)) as context:
        batch = Batch(64)
        for number in range(3):
            tokens = chunks.tokens[64 * number : 64 * number + 64]
            context.clear()
            batch.clear()
            batch.extend(tokens, 0, 0, True)
            context.decode(batch)
            for position in range(32, 63):
                logits = context.logits_of(position).astype(np.float64)
                surprise.append(
                    np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[position + 1]]
                )
                size += len(model.piece(int(tokens[position + 1])))
    result = run(model, chunks)
    assert result.nll == pytest.approx(np.mean(surprise), abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(result.nll))
    assert result.error == pytest.approx(result.perplexity * np.std(surprise) / math.sqrt(len(surprise) - 1), rel=1e-3)
    assert result.bits_per_byte == pytest.approx(np.sum(surprise) / math.log(2) / size, rel=1e-4)


def run(model: LlamaModel, chunks: chunked.Chunks) -> Perplexity:
    with LlamaContext(model, chunks.options(threads=1)) as context:
        return perplexity(context, chunks)


@pytest.mark.native
@pytest.mark.parametrize("budget_rows", [500, 31, 7])
def test_little_memory_changes_the_batches_and_not_the_figure(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, budget_rows: int
) -> None:
    plain = run(model, chunked.cut(model, TEXT, 128, 5))
    monkeypatch.setattr(chunked, "LOGITS_BUDGET", 4 * model.n_vocab * budget_rows)
    chunks = chunked.cut(model, TEXT, 128, 5)
    with LlamaContext(model, chunks.options(threads=1)) as context:
        sizes = [len(block.targets) for block in chunked.run(context, chunks)]
    assert sum(sizes) == 5 * 63
    assert max(sizes) <= max(budget_rows, 32)
    assert run(model, chunks).nll == pytest.approx(plain.nll, abs=1e-4)


@pytest.mark.native
def test_a_model_that_computes_no_numbers_has_no_figures(tmp_path: Path, embedded_gguf: Path) -> None:
    """A perplexity of null would pass for a measured one."""
    path = tmp_path / "nan.gguf"
    (norm,) = (tensor for tensor in GGUFReader(embedded_gguf).tensors if tensor.name == "output_norm.weight")
    data = bytearray(embedded_gguf.read_bytes())
    data[norm.data_offset : norm.data_offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with LlamaModel(path) as broken, LlamaModel(embedded_gguf) as whole:
        chunks = chunked.cut(broken, TEXT, 64, 2)
        with pytest.raises(DataError, match="no numbers"):
            run(broken, chunks)
        with (
            LlamaContext(whole, chunks.options(threads=1)) as base,
            LlamaContext(broken, chunks.options(threads=1)) as context,
            pytest.raises(DataError, match="no numbers"),
        ):
            kld.measure(base, context, chunks)


@pytest.mark.native
@pytest.mark.parametrize("n_ctx", [128, 33])
def test_wherever_it_stops_no_token_is_scored_twice(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, n_ctx: int
) -> None:
    """Also where a chunk takes several blocks, and where nothing is left to score in its last."""
    monkeypatch.setattr(chunked, "LOGITS_BUDGET", 4 * model.n_vocab * 16)
    chunks = chunked.cut(model, TEXT, n_ctx, 3)
    stops: list[tuple[int, Moments]] = []
    with LlamaContext(model, chunks.options(threads=1)) as context:
        whole = perplexity(
            context, chunks, progress=lambda done, _total, _figure, sums: stops.append((done, copy(sums)))
        )
        assert [done for done, _ in stops][-1] == 3
        for done, sums in stops[:-1]:
            assert sums.count == done * chunks.rows
            rest = perplexity(context, chunks, sums=sums, start=done)
            assert rest.tokens == whole.tokens == 3 * chunks.rows
            assert rest.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Grüße".encode("latin-1"), "byte 2 is 0xfc"),
        ("Grüße".encode("utf-16"), "byte 0 is 0xff"),
        ("ab".encode("utf-16-le"), "byte 1 is 0x00"),
        (bytes([0x7F, *b"ELF", 2, 0]), "byte 5 is 0x00"),
    ],
)
def test_a_text_that_is_no_utf8_is_refused_with_its_place(tmp_path: Path, text: bytes, place: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=place) as caught:
        read_text(path)
    assert "iconv" in caught.value.hint


def test_a_text_is_read_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\r\n\n")
    assert read_text(path) == b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\r\n"


@pytest.mark.native
def test_a_stopped_run_goes_on_where_it_was(model: LlamaModel) -> None:
    chunks = chunked.cut(model, TEXT, 64, 40)
    whole = run(model, chunks)
    sums = Moments()
    with LlamaContext(model, chunks.options(threads=1)) as context:
        with Slicer(1) as slicer:
            block = next(chunked.run(context, chunks))
            sums.add(negative_log_likelihood(block.logits, block.targets, slicer))
        heard: list[int] = []
        rest = perplexity(
            context, chunks, sums=sums, start=block.chunks_done, progress=lambda done, *_: heard.append(done)
        )
    assert 0 < block.chunks_done < 40
    assert heard[-1] == 40
    assert rest.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert rest.tokens == whole.tokens


@pytest.mark.native
def test_a_text_that_is_too_short_is_refused_with_the_counts(model: LlamaModel) -> None:
    with pytest.raises(DataError, match=r"the text has \d+ tokens.*at least 1024"):
        chunked.cut(model, b"Return the absolute value.", 512)


@pytest.mark.native
def test_chunks_longer_than_the_training_context_are_warned_about(model: LlamaModel) -> None:
    chunks = chunked.cut(model, TEXT, 1500, 1)
    assert "longer than the 1024" in run(model, chunks).warnings[0]


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        read_text(tmp_path / "nowhere.txt")
    (tmp_path / "text").write_bytes(b"a\n\n")
    assert read_text(tmp_path / "text") == b"a\n"


@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 2, 1000, 70_000]),
    threads=st.integers(1, 3),
    scale=st.sampled_from([0.01, 1.0, 80.0]),
    seed=st.integers(0, 99),
)
def test_log_likelihood_is_exact_and_independent_of_slices(
    rows: int, width: int, threads: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((rows, width)) * scale).astype(np.float32)
    targets = random.integers(0, width, rows, np.int32)
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    expected = np.log(np.exp(wide - top[:, None]).sum(axis=1)) + top - wide[np.arange(rows), targets]
    with Slicer(threads) as slicer:
        found = negative_log_likelihood(logits, targets, slicer)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-6)


@given(st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=5), min_size=1, max_size=6))
def test_moments_of_parts_are_the_moments_of_the_whole(parts: list[list[float]]) -> None:
    sums = Moments()
    for part in parts:
        sums.add(np.array(part))
    values = np.array([value for part in parts for value in part])
    assert sums.mean == pytest.approx(values.mean(), abs=1e-9)
    if len(values) > 1:
        assert sums.error == pytest.approx(values.std() / math.sqrt(len(values) - 1), abs=1e-4)
