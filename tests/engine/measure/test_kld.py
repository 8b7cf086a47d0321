"""Divergence: llama-perplexity's statistics, from two models or from a file of the base's log-probabilities."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, MissingError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.base_file import BaseFile, BaseWriter
from lathe.engine.measure.chunks import Chunks, read_text
from lathe.engine.measure.kld import Divergence, measure, statistics
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

TEXT = read_text(HELD_OUT_TEXT)


@pytest.fixture(scope="module")
def base(embedded_gguf: Path) -> Iterator[LlamaModel]:
    with LlamaModel(embedded_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def quantized(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """Q4_0 and back to F16: other processors round products of quantized rows otherwise, those of F16 alike."""
    path = tmp_path_factory.mktemp("kld") / "q4_0.gguf"
    quantize_gguf(embedded_gguf, path, QuantizeOptions(type="Q4_0", threads=1))
    wide = path.with_name("f16.gguf")
    quantize_gguf(path, wide, QuantizeOptions(type="F16", threads=1, allow_requantize=True))
    with LlamaModel(wide) as model:
        yield model


def compare(base: LlamaModel, model: LlamaModel, chunks: Chunks) -> Divergence:
    with (
        LlamaContext(base, chunks.options(threads=1)) as one,
        LlamaContext(model, chunks.options(threads=1)) as other,
    ):
        return statistics(measure(one, other, chunks))


@pytest.mark.native
def test_the_statistics_are_those_of_llama_perplexity(base: LlamaModel, quantized: LlamaModel) -> None:
    """Its figures for the embedded model in F16 and with the weights of Q4_0, `-c 128 --chunks 12 --kl-divergence`.

    Its base file keeps 16 nats in 16 bits, so the last digits differ."""
    found = compare(base, quantized, chunked.cut(base, TEXT, 128, 12))
    assert found.tokens == 12 * 63
    assert found.kld.value == pytest.approx(0.041466, rel=0.01)
    assert found.kld.error == pytest.approx(0.001680, rel=0.02)
    assert found.kld_maximum == pytest.approx(0.376656, rel=0.02)
    assert found.kld_percentiles[99.9] == pytest.approx(0.373192, rel=0.02)
    assert found.kld_percentiles[50.0] == pytest.approx(0.029067, rel=0.02)
    assert found.perplexity.value == pytest.approx(15.7234, abs=0.01)
    assert found.perplexity.error == pytest.approx(1.75442, abs=0.004)
    assert found.base_perplexity.value == pytest.approx(15.4603, abs=0.004)
    assert found.correlation == pytest.approx(0.9955, abs=3e-4)
    assert found.ratio.error == pytest.approx(0.010883, rel=0.02)
    assert found.difference.error == pytest.approx(0.166961, rel=0.02)
    assert found.delta_p.value == pytest.approx(-0.00722, abs=2e-4)
    assert found.delta_p_rms.value == pytest.approx(0.04981, rel=0.01)
    assert found.delta_p_rms.error == pytest.approx(0.00311, rel=0.03)
    assert found.same_top.value == pytest.approx(0.87302, abs=0.006)
    assert found.same_top.error == pytest.approx(0.01212, abs=3e-4)


@pytest.mark.native
def test_a_model_does_not_diverge_from_itself(base: LlamaModel) -> None:
    found = compare(base, base, chunked.cut(base, TEXT, 64, 6))
    assert found.kld.value == pytest.approx(0, abs=1e-8)
    assert found.kld_maximum < 1e-6
    assert found.same_top.value == 1.0
    assert found.correlation == pytest.approx(1)
    assert (found.ratio.value, found.delta_p_rms.value) == (1.0, 0.0)


@pytest.mark.native
def test_a_base_file_stands_in_for_the_base(base: LlamaModel, quantized: LlamaModel, tmp_path: Path) -> None:
    chunks = chunked.cut(base, TEXT, 64, 20)
    file = tmp_path / "base.bin"
    with (
        LlamaContext(base, chunks.options(threads=1)) as one,
        LlamaContext(quantized, chunks.options(threads=1)) as other,
        BaseWriter(file, chunks) as writer,
    ):
        live = measure(one, other, chunks, save=writer)
    stored = BaseFile(file)
    again = stored.chunks(None)
    assert (again.n_ctx, again.n_chunks) == (64, 20)
    np.testing.assert_array_equal(again.tokens, chunks.tokens[: 20 * 64])
    with LlamaContext(quantized, again.options(threads=1)) as other:
        replayed = measure(stored, other, again)
        half = measure(stored, other, again, earlier=replayed[: 10 * chunks.rows])
    np.testing.assert_allclose(replayed[:, 0], live[:, 0], atol=1e-5)
    np.testing.assert_allclose(replayed[:, 2], live[:, 2], atol=2e-3)
    assert replayed[:, 2].mean() == pytest.approx(live[:, 2].mean(), rel=0.01)
    np.testing.assert_allclose(half, replayed, atol=1e-5)


def test_a_stored_row_keeps_sixteen_nats_in_sixteen_bits(tmp_path: Path) -> None:
    logits = np.array([[0.0, -1.0, -15.9, -40.0, 3.0]], np.float32)
    chunks = Chunks(tokens=np.arange(4, dtype=np.int32), n_ctx=4, n_chunks=1, bos=None, n_vocab=5)
    with BaseWriter(tmp_path / "b", chunks) as writer:
        writer.write(logits)
    data = (tmp_path / "b").read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack_from("<iii", data, 8) == (4, 5, 1)
    assert len(data) == 20 + 16 + 2 * (4 + 6)
    (row,) = BaseFile(tmp_path / "b").log_probabilities(0, 1)
    exact = logits[0] - np.log(np.exp(logits[0].astype(np.float64)).sum())
    np.testing.assert_allclose(row[[0, 1, 4]], exact[[0, 1, 4]], atol=16 / 65535)
    np.testing.assert_allclose(row[[2, 3]], exact[4] - 16, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"_logitz_" + data[8:],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:8] + struct.pack("<iii", -4, 5, 1) + data[20:],
        lambda data: data[:8] + struct.pack("<iii", 4, 2**31 - 1, 1) + data[20:],
        lambda data: data[:8] + struct.pack("<iii", 4, 5, 2**31 - 1) + data[20:],
    ],
    ids=["empty", "magic", "cut", "long", "negative", "vocabulary", "chunks"],
)
def test_a_broken_base_file_is_refused(tmp_path: Path, change: object) -> None:
    chunks = Chunks(tokens=np.arange(4, dtype=np.int32), n_ctx=4, n_chunks=1, bos=None, n_vocab=5)
    with BaseWriter(tmp_path / "b", chunks) as writer:
        writer.write(np.zeros((1, 5), np.float32))
    data = (tmp_path / "b").read_bytes()
    assert BaseFile(tmp_path / "b").n_vocab == 5
    (tmp_path / "b").write_bytes(change(data))  # type: ignore[operator]
    with pytest.raises(DataError, match="b "):
        BaseFile(tmp_path / "b")
    with pytest.raises(MissingError):
        BaseFile(tmp_path / "nowhere")


@given(st.integers(12, 300), st.integers(0, 99))
def test_statistics_follow_their_definitions(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.column_stack(
        [
            random.gamma(1, 2, count),
            random.gamma(1, 2, count),
            random.gamma(0.5, 0.1, count),
            random.integers(0, 2, count),
        ]
    ).astype(np.float32)
    found = statistics(rows)
    nll, base = rows[:, 0].astype(float), rows[:, 1].astype(float)
    assert found.perplexity.value == pytest.approx(math.exp(nll.mean()))
    assert found.kld.error == pytest.approx(rows[:, 2].astype(float).std() / math.sqrt(count - 1), rel=1e-6)
    assert found.correlation == pytest.approx(np.corrcoef(nll, base)[0, 1], abs=1e-6)
    assert found.log_ratio.error == pytest.approx((nll - base).std() / math.sqrt(count - 1), rel=1e-5)
    assert found.delta_p_rms.value == pytest.approx(np.sqrt(((np.exp(-nll) - np.exp(-base)) ** 2).mean()))
    assert found.kld_percentiles[50.0] == pytest.approx(np.median(rows[:, 2]), rel=1e-6)
    assert found.kld_minimum <= found.kld_percentiles[0.1] <= found.kld_percentiles[99.9] <= found.kld_maximum
