"""Importances seen in the graph: against the definition, across batch shapes, across a stop, and for experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, UnavailableError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.chunks import read_text
from lathe.engine.measure.imatrix import Collector, collect
from lathe.engine.native import tensors
from lathe.engine.native.llama import LlamaModel
from lathe.quantize.imatrix import Imatrix, read_imatrix, write_imatrix
from lathe.quantize.imatrix_statistics import statistics

pytestmark = pytest.mark.native
TEXT = read_text(HELD_OUT_TEXT)


@pytest.fixture(scope="module")
def model(embedded_gguf: Path) -> Iterator[LlamaModel]:
    with LlamaModel(embedded_gguf) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def matrix(model: LlamaModel) -> Imatrix:
    return collect(model, chunked.cut(model, TEXT, 64, 6), "held-out", threads=1)


def test_every_weight_of_every_layer_is_seen(matrix: Imatrix) -> None:
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert matrix.entries.keys() == {f"blk.{layer}.{kind}.weight" for layer in range(4) for kind in kinds}
    assert all(entry.counts.tolist() == [6 * 64] for entry in matrix.entries.values())
    assert (matrix.chunks, matrix.chunk_size, matrix.datasets) == (6, 64, ("held-out",))


def test_the_first_layers_input_is_what_the_architecture_says(
    model: LlamaModel, matrix: Imatrix, embedded_gguf: Path
) -> None:
    """RMS-normed embeddings, computed here from the weights."""
    reader = GGUFReader(embedded_gguf)
    weights = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    epsilon = reader.fields["llama.attention.layer_norm_rms_epsilon"].contents()
    tokens = chunked.cut(model, TEXT, 64, 6).tokens[: 6 * 64]
    embedded = weights["token_embd.weight"][tokens].astype(np.float64)
    normed = embedded / np.sqrt(np.square(embedded).mean(axis=1, keepdims=True) + epsilon)
    expected = np.square(normed * weights["blk.0.attn_norm.weight"]).sum(axis=0)
    np.testing.assert_allclose(matrix.entries["blk.0.attn_q.weight"].sums[0], expected, rtol=1e-4)


def test_a_stop_and_a_file_between_change_nothing(model: LlamaModel, matrix: Imatrix, tmp_path: Path) -> None:
    chunks = chunked.cut(model, TEXT, 64, 6)
    first = collect(model, chunks.limited(2), "held-out", threads=1)
    write_imatrix(tmp_path / "part.gguf", first)
    earlier = read_imatrix(tmp_path / "part.gguf")
    heard: list[int] = []
    rest = collect(
        model, chunks, "held-out", threads=1, earlier=earlier, start=2, progress=lambda done, *_: heard.append(done)
    )
    assert heard[-1] == 6
    assert rest.datasets == ("held-out",)
    for name, entry in matrix.entries.items():
        np.testing.assert_allclose(rest.entries[name].sums, entry.sums, rtol=1e-4)
        np.testing.assert_array_equal(rest.entries[name].counts, entry.counts)


def test_chunks_are_counted_whole_where_the_last_tokens_of_a_batch_are_not_looked_at(model: LlamaModel) -> None:
    chunks = chunked.cut(model, TEXT, 65, 8)  # 520 tokens in pieces of 512
    first = collect(model, chunks, "held-out", threads=1)
    assert max(int(entry.counts.max()) for entry in first.entries.values()) < 8 * 65
    assert first.chunks == 8
    more = collect(model, chunked.cut(model, TEXT, 65, 9), "held-out", threads=1, earlier=first, start=first.chunks)
    assert more.chunks == 9


def test_little_memory_changes_nothing(model: LlamaModel, matrix: Imatrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LOGITS_BUDGET", 4 * model.n_vocab * 40)
    chunks = chunked.cut(model, TEXT, 64, 6)
    for name, entry in collect(model, chunks, "held-out", threads=1).entries.items():
        np.testing.assert_allclose(entry.sums, matrix.entries[name].sums, rtol=5e-3)


def test_the_output_matrix_is_seen_when_asked(model: LlamaModel) -> None:
    found = collect(model, chunked.cut(model, TEXT, 64, 1), "x", threads=1, output=True)
    assert found.entries["token_embd.weight"].sums.shape == (1, 256)


def test_a_matrix_of_another_model_cannot_be_continued(model: LlamaModel, matrix: Imatrix) -> None:
    wrong = Imatrix(entries={"blk.0.attn_q.weight": matrix.entries["blk.0.ffn_down.weight"]})
    with pytest.raises(DataError, match=r"768 sums .* the model 256"):
        collect(model, chunked.cut(model, TEXT, 64, 1), "x", threads=1, earlier=wrong)


def test_experts_get_the_rows_that_were_routed_to_them() -> None:
    random = np.random.default_rng(3)
    experts, used, count, channels = 4, 2, 50, 8
    given = random.standard_normal((count, 1, channels)).astype(np.float32)
    chosen = np.array([random.permutation(3)[:used] for _ in range(count)], np.int32)  # the fourth is never used
    collector = Collector()
    collector._take_routed("blk.0.ffn_up_exps.weight", experts, given, chosen)
    entry = collector.matrix(("x",), 5, 10).entries["blk.0.ffn_up_exps.weight"]
    expected = np.zeros((experts, channels))
    for row, pair in zip(given[:, 0].astype(np.float64), chosen, strict=True):
        for expert in pair:
            expected[expert] += row**2
    np.testing.assert_allclose(entry.sums, expected, rtol=1e-5)
    assert entry.counts.tolist() == [int((chosen == expert).sum()) for expert in range(experts)]
    assert entry.means()[3].tolist() == [1.0] * channels


def test_weights_of_several_matrices_keep_them_apart() -> None:
    collector = Collector()
    given = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    collector._take("w", (1, 2), given)
    entry = collector.matrix((), 1, 1).entries["w"]
    assert entry.counts.tolist() == [3]
    np.testing.assert_allclose(entry.sums.reshape(2, 4), np.square(given[0].astype(float)).sum(axis=1))


def test_numbers_that_are_none_end_it() -> None:
    with pytest.raises(DataError, match="no numbers"):
        Collector()._take("w", (1, 1), np.full((1, 1, 1, 2), np.inf, np.float32))


def test_a_build_with_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensors._library()

    class Other:
        def __getattr__(self, name: str) -> object:
            return (lambda: 400) if name == "ggml_tensor_overhead" else getattr(real, name)

    assert tensors._layout_problem(real) == ""
    monkeypatch.setattr(tensors, "_library", Other)
    tensors.operations.cache_clear()
    with pytest.raises(UnavailableError, match="its tensors take 368 bytes"):
        tensors.operations()
    tensors.operations.cache_clear()


def test_statistics_describe_the_spread(matrix: Imatrix) -> None:
    found = {one.name: one for one in statistics(matrix)}
    one = found["blk.1.ffn_down.weight"]
    means = matrix.entries["blk.1.ffn_down.weight"].means().ravel().astype(np.float64)
    assert one.channels == 768
    assert one.total == pytest.approx(means.sum(), rel=1e-5)
    assert one.minimum <= one.mean <= one.maximum
    assert 0 < one.evenness < 1
    below = matrix.entries["blk.0.ffn_down.weight"].sums.ravel().astype(np.float64)
    here = matrix.entries["blk.1.ffn_down.weight"].sums.ravel().astype(np.float64)
    assert one.similarity == pytest.approx(here @ below / np.sqrt((here @ here) * (below @ below)))
    assert found["blk.0.ffn_down.weight"].similarity is None
