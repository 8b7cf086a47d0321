"""Sensitivities: the yardstick against the divergence job, the rule against what it claims, groups, a whole search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import kld, moments
from lathe.engine.measure.chunks import Chunks, read_text
from lathe.engine.measure.imatrix import collect
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.tune import token_yardstick
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.search import Search
from lathe.engine.tune.sensitivity import Anchor, Measurements, costs, groups, kinds_for, tensors_of
from lathe.engine.tune.token_yardstick import TokenYardstick
from lathe.quantize.convert.convert import convert_checkpoint
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.imatrix import Imatrix
from lathe.quantize.moments import MomentFolder
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
from lathe.quantize.variants import Variants
from support.families import RECIPES

pytestmark = pytest.mark.native
TEXT = read_text(HELD_OUT_TEXT)
KINDS = ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


@pytest.fixture(scope="module")
def small(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of the embedded model, with its embeddings."""
    path = tmp_path_factory.mktemp("tune") / "one-layer.gguf"
    quantize_gguf(embedded_gguf, path, QuantizeOptions(type="COPY", prune_layers=(1, 2, 3)))
    return path


@pytest.fixture(scope="module")
def chunks(small: Path) -> Chunks:
    with LlamaModel(small) as model:
        return chunked.cut(model, TEXT, 64, 8)


@pytest.fixture(scope="module")
def imatrix(small: Path, chunks: Chunks) -> Imatrix:
    with LlamaModel(small) as model:
        return collect(model, chunks, "held-out", threads=1)


@pytest.fixture(scope="module")
def second(small: Path, chunks: Chunks, tmp_path_factory: pytest.TempPathFactory) -> MomentFolder:
    folder = MomentFolder(tmp_path_factory.mktemp("moments"))
    channels = {tensor.name: tensor.shape[0] for tensor in read_header(small).tensors if len(tensor.shape) == 2}
    with LlamaModel(small) as model:
        for names, found in moments.collect(model, chunks, channels, threads=1):
            folder.save(names, found)
    return folder


@pytest.fixture(scope="module")
def yardstick(small: Path, chunks: Chunks) -> TokenYardstick:
    return TokenYardstick([small], chunks, threads=1)


@pytest.fixture
def variants(small: Path, imatrix: Imatrix, tmp_path: Path) -> Variants:
    return Variants(read_sharded(small), tmp_path / "variants", imatrix)


def test_second_moments_have_the_importances_on_their_diagonal(
    small: Path, imatrix: Imatrix, second: MomentFolder
) -> None:
    found = second.feedback("blk.0.ffn_down.weight")
    assert found is not None
    diagonal = np.diag(found.moments)[np.argsort(found.order)]
    damping = 0.01 * imatrix.entries["blk.0.ffn_down.weight"].means().mean()
    np.testing.assert_allclose(diagonal - damping, imatrix.entries["blk.0.ffn_down.weight"].means()[0], rtol=2e-3)
    assert second._files["blk.0.attn_q.weight"] == second._files["blk.0.attn_v.weight"]
    assert second._files["blk.0.ffn_up.weight"] != second._files["blk.0.attn_q.weight"]
    assert "token_embd.weight" in second


def test_moments_in_several_passes_are_the_same(
    small: Path, chunks: Chunks, second: MomentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "MEMORY", 4 * 256 * 256 * 2)
    channels = {"blk.0.attn_q.weight": 256, "blk.0.ffn_up.weight": 256, "blk.0.attn_output.weight": 256}
    heard: list[tuple[int, int]] = []
    with LlamaModel(small) as model:
        found = dict(moments.collect(model, chunks, channels, threads=1, progress=lambda *said: heard.append(said)))
    assert heard[-1] == (16, 16)
    assert set(found) == {("blk.0.attn_q.weight",), ("blk.0.ffn_up.weight",), ("blk.0.attn_output.weight",)}


def test_a_mix_of_loose_tensors_is_the_file_llama_cpp_would_write(
    small: Path, variants: Variants, imatrix: Imatrix, yardstick: TokenYardstick, tmp_path: Path
) -> None:
    from lathe.quantize.imatrix import write_imatrix

    mix = {"blk.0.ffn_up.weight": "Q4_K", "blk.0.attn_v.weight": "IQ4_XS", "token_embd.weight": "Q6_K"}
    variants.write(tmp_path / "mix.gguf", mix, {"lathe.note": "x", "general.file_type": 15})
    header = read_header(tmp_path / "mix.gguf")
    assert header.text("lathe.note") == "x"
    assert {tensor.name: tensor.type.name for tensor in header.tensors if tensor.name in mix} == mix
    assert variants.size(mix) == header.file_bytes - header.data_offset
    write_imatrix(tmp_path / "imatrix.gguf", imatrix)
    patterns = {f"^{name}$": kind for name, kind in mix.items()} | {"weight": "F16"}
    quantize_gguf(
        small,
        tmp_path / "theirs.gguf",
        QuantizeOptions(type="Q8_0", tensor_types=patterns, imatrix=tmp_path / "imatrix.gguf"),
    )
    theirs = {tensor.name: tensor for tensor in read_header(tmp_path / "theirs.gguf").tensors}
    for tensor in header.tensors:
        if tensor.name in mix:
            ours = np.fromfile(tmp_path / "mix.gguf", np.uint8, tensor.nbytes, offset=header.position(tensor))
            other = read_header(tmp_path / "theirs.gguf").position(theirs[tensor.name])
            np.testing.assert_array_equal(
                ours, np.fromfile(tmp_path / "theirs.gguf", np.uint8, tensor.nbytes, offset=other)
            )
    assert yardstick.read(variants.paths(mix)).divergence == pytest.approx(
        yardstick.read([tmp_path / "mix.gguf"]).divergence
    )


def test_readings_are_the_divergence_jobs(
    small: Path, chunks: Chunks, variants: Variants, yardstick: TokenYardstick, tmp_path: Path
) -> None:
    mix = dict.fromkeys(tensors_of(variants), "Q4_K")
    variants.write(tmp_path / "q4.gguf", mix, {})
    reading = yardstick.read([tmp_path / "q4.gguf"])
    with (
        LlamaModel(small) as base,
        LlamaModel(tmp_path / "q4.gguf") as other,
        LlamaContext(base, chunks.options(threads=1)) as one,
        LlamaContext(other, chunks.options(threads=1)) as two,
    ):
        found = kld.statistics(kld.measure(one, two, chunks))
    assert reading.divergence == pytest.approx(found.kld.value, rel=1e-3)
    assert reading.error == pytest.approx(found.kld.error, rel=1e-2)
    assert reading.divergence_99_9 == pytest.approx(found.kld_percentiles[99.9], rel=1e-2)
    assert reading.agreement == pytest.approx(found.same_top.value)
    assert reading.perplexity == pytest.approx(found.perplexity.value, rel=1e-4)
    assert yardstick.exact


def test_without_memory_for_all_logits_the_most_probable_stand_in(
    small: Path, chunks: Chunks, variants: Variants, yardstick: TokenYardstick, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = variants.paths(dict.fromkeys(tensors_of(variants), "Q3_K"))
    whole = yardstick.read(mix)
    monkeypatch.setattr(token_yardstick, "KEPT_BYTES", 1)
    condensed = TokenYardstick([small], chunks, threads=1)
    part = condensed.read(mix)
    assert not condensed.exact
    assert 0.8 * whole.divergence < part.divergence <= whole.divergence * 1.0001
    assert part.agreement == whole.agreement


def test_feedback_brings_a_real_model_closer_at_the_same_size(
    small: Path, imatrix: Imatrix, second: MomentFolder, yardstick: TokenYardstick, variants: Variants, tmp_path: Path
) -> None:
    mix = {name: "Q3_K" for name in tensors_of(variants) if name.startswith("blk.")}
    better = Variants(read_sharded(small), tmp_path / "better", imatrix, second)
    assert better.size(mix) == variants.size(mix)
    assert yardstick.read(better.paths(mix)).divergence < 0.9 * yardstick.read(variants.paths(mix)).divergence
    assert better.error("blk.0.ffn_up.weight", "Q4_K") > 0


def test_kinds_are_those_a_tensor_can_have(variants: Variants) -> None:
    assert tensors_of(variants) == [name for name, tensor in variants.tensors.items() if len(tensor.shape) == 2]
    assert kinds_for(variants, "token_embd.weight", ["IQ2_XS", "Q4_K"]) == ["Q4_K"], "no importances for it"
    assert kinds_for(variants, "blk.0.ffn_up.weight", ["IQ2_XS", "Q4_K"]) == ["IQ2_XS", "Q4_K"]


def test_tables_that_llama_cpp_keeps_in_full_are_not_chosen_for(tmp_path: Path) -> None:
    path = tmp_path / "minilm.gguf"
    convert_checkpoint(RECIPES["minilm"].write(tmp_path / "source"), path, outtype="f16")
    found = tensors_of(Variants(read_sharded(path), tmp_path / "variants"))
    assert "token_embd.weight" in found
    assert "blk.0.ffn_up.weight" in found
    assert not {"position_embd.weight", "token_types.weight"} & set(found), "as Q8_0 they end the process"


def test_groups_join_neighbours_of_one_role() -> None:
    names = [f"blk.{layer}.{role}.weight" for layer in range(10) for role in ("attn_q", "ffn_up")] + ["output.weight"]
    assert groups(names, 100) == [(name,) for name in names]
    few = groups(names, 7)
    assert sorted(name for group in few for name in group) == sorted(names)
    assert len(few) <= 7
    for group in few:
        assert len({name.split(".")[2] for name in group if name.startswith("blk")}) <= 1


def test_the_rule_recovers_what_made_the_measurements() -> None:
    """Divergence = factor x error + what activations add, the latter another for older types."""
    errors = {"Q3_K": 16.0, "Q4_K": 4.0, "Q5_0": 1.5, "Q6_K": 0.25, "Q8_0": 0.02}
    truth = {kind: 0.003 * error + (0.0001 if kind in ("Q5_0", "Q8_0") else 0.0005) for kind, error in errors.items()}
    done = Measurements(
        anchors=[Anchor(("t",), kind, truth[kind]) for kind in ("Q4_K", "Q6_K", "Q8_0")], errors={"t": errors}
    )
    found = costs(done)["t"]
    assert found == {kind: pytest.approx(value, rel=1e-6) for kind, value in truth.items()}


def test_what_was_not_measured_is_ranked_by_its_error_and_what_was_not_computed_by_its_bits() -> None:
    errors = {"a": {"Q4_K": 3.0, "Q3_K": 12.0}, "b": {"Q4_K": 1.0}, "c": {"Q4_K": 2.0}}
    found = costs(Measurements(anchors=[Anchor(("a",), "Q4_K", 0.3)], errors=errors), ("Q3_K", "Q4_K", "Q8_0"))
    assert found["b"]["Q4_K"] == pytest.approx(0.1)
    assert found["b"]["Q3_K"] == pytest.approx(0.4), "as the other tensor's error grows"
    assert 0 < found["c"]["Q8_0"] < found["c"]["Q4_K"] / 100


def test_a_group_shares_its_cost_by_error() -> None:
    errors = {"a": {"Q4_K": 3.0, "Q3_K": 12.0}, "b": {"Q4_K": 1.0, "Q3_K": 4.0}}
    found = costs(Measurements(anchors=[Anchor(("a", "b"), "Q4_K", 0.4)], errors=errors))
    assert found["a"]["Q4_K"] + found["b"]["Q4_K"] == pytest.approx(0.4)
    assert found["a"]["Q3_K"] == pytest.approx(3 * found["b"]["Q3_K"]) == pytest.approx(1.2)


def test_a_search_beats_one_type_for_all_and_goes_on_where_it_stopped(
    variants: Variants, yardstick: TokenYardstick, tmp_path: Path
) -> None:
    uniform = dict.fromkeys(tensors_of(variants), "Q4_K")
    budget = sum(variants.tensors[name].elements // 256 * 144 for name in uniform)
    heard: list[str] = []

    def search() -> Search:
        return Search(
            variants,
            yardstick,
            tmp_path / "measured.json",
            kinds=KINDS,
            clock=Clock(600),
            progress=lambda label, done, total: heard.append(label),
        )

    first = search()
    first.sensitivities()
    found = first.find(budget)
    assert found.bytes <= budget
    assert found.reading.divergence < yardstick.read(variants.paths(uniform)).divergence
    assert found.reading.divergence == pytest.approx(found.predicted, rel=0.25)
    assert set(heard) == {"sensitivity of each tensor", "second pass"}
    again = search()
    again.sensitivities()
    assert again.readings == len(first.measured.anchors), "nothing was measured twice"
    close = again.measured_as(again.closest(found.predicted * 2))
    assert close.bytes < found.bytes
