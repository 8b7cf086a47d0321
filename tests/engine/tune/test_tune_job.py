"""The tune job on one layer of the embedded model: wishes, answered or not, and sizes as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, UsageError
from lathe.engine.jobs import tune
from lathe.engine.native.llama import LlamaModel
from lathe.engine.steps import TuneStep
from lathe.engine.tune.frontier import Point, Wish, best, pareto
from lathe.engine.tune.frontier_file import read_frontier
from lathe.engine.tune.laboratory import Laboratory
from lathe.quantize.convert.convert import convert_checkpoint
from lathe.quantize.errors import OutputError
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.imatrix import Entry, Imatrix, ImatrixError, write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import plan_quantization, quantize_gguf
from lathe.quantize.types import FILE_TYPES
from lathe.quantize.variants import Variants
from support.families import RECIPES
from support.job_context import RecordingContext, entry

KINDS = ("IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


@pytest.fixture(scope="module")
def small(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune-job") / "one-layer.gguf"
    quantize_gguf(embedded_gguf, path, QuantizeOptions(type="COPY", prune_layers=(1, 2, 3)))
    return path


@pytest.fixture
def step(small: Path, tmp_path: Path) -> TuneStep:
    text = tmp_path / "text.txt"
    text.write_bytes(HELD_OUT_TEXT.read_bytes()[:20_000])
    return TuneStep(
        model=small.stem, text=str(text), compare=("Q4_K_M",), kinds=KINDS, context=64, chunks=6, threads=1, speed=False
    )


@pytest.mark.native
def test_a_wish_for_a_size_is_answered_with_a_better_file(home: Path, small: Path, step: TuneStep) -> None:
    model = entry(small)
    step = msgspec.structs.replace(step, max_size="q4_k_m")
    context = RecordingContext(step, home, model)
    outcome = tune.run(step, context)
    theirs = plan_quantization(small, QuantizeOptions(type="Q4_K_M")).bytes
    made, types, frontier = outcome.artefacts
    assert made.bytes <= theirs + 400, "as large as the recipe's file, which carries notes on the matrix"
    assert made.bytes == Path(made.path).stat().st_size <= outcome.figures["bytes"]
    rows = {str(row["label"]): row for row in outcome.rows}
    mix = next(row for label, row in rows.items() if label.startswith("mix"))
    assert mix["kld"] < rows["Q4_K_M"]["kld"]
    assert mix["frontier"]
    assert outcome.figures["mean_kld"] == mix["kld"]
    header = read_header(Path(made.path))
    assert header.text("lathe.recipe")
    lines = dict(line.split("=") for line in Path(types.path).read_text().splitlines())
    assert lines[r"^blk\.0\.ffn_up\.weight$"].upper() in KINDS
    document = json.loads(Path(frontier.path).read_text())
    assert {point["label"] for point in document["points"]} == rows.keys()
    assert document["sensitivity"]["token_embd.weight"]["Q8_0"] < document["sensitivity"]["token_embd.weight"]["Q4_K"]
    again = RecordingContext(step, home, model)
    repeated = tune.run(msgspec.structs.replace(step, force=True), again)
    assert repeated.artefacts[0].sha256 == made.sha256, "the laboratory's folder remembers, and the result is the same"
    found = next(point for point in read_frontier(Path(frontier.path)).points if point.mix)
    given = msgspec.structs.replace(step, max_size=None, mix=found.mix, name="again")
    exactly = tune.run(given, RecordingContext(given, home, model))
    assert [artefact.format for artefact in exactly.artefacts] == ["gguf", "text"]
    assert Path(exactly.artefacts[0].path).read_bytes() == Path(made.path).read_bytes()
    assert exactly.figures["mean_kld"] == pytest.approx(found.divergence)
    foreign = msgspec.structs.replace(given, mix={"blk.99.x": "Q4_K"}, name="foreign")
    with pytest.raises(UsageError, match=r"no tensor blk\.99\.x"):
        tune.run(foreign, RecordingContext(foreign, home, model))


@pytest.mark.native
def test_a_recipe_that_answers_best_is_made_as_llama_cpp_makes_it(home: Path, small: Path, step: TuneStep) -> None:
    model = entry(small)
    step = msgspec.structs.replace(
        step, compare=("Q8_0", "Q6_K"), kinds=("Q4_K",), max_size="Q6_K", feedback=False, imatrix=None
    )
    outcome = tune.run(step, RecordingContext(step, home, model))
    made = outcome.artefacts[0]
    assert outcome.figures["chosen"] == "Q6_K"
    assert (made.recipe["type"], made.bytes) == ("Q6_K", Path(made.path).stat().st_size)
    assert Path(made.path).name.endswith("Q6_K.gguf")
    assert read_header(Path(made.path)).number("general.file_type") == FILE_TYPES["Q6_K"].id


@pytest.mark.native
def test_without_time_the_least_is_measured_and_progress_never_goes_back(
    home: Path, small: Path, step: TuneStep
) -> None:
    model = entry(small)
    step = msgspec.structs.replace(step, max_size="q4_k_m", minutes=1e-6, kinds=(), feedback=False)
    context = RecordingContext(step, home, model)
    outcome = tune.run(step, context)
    assert outcome.figures["mean_kld"]
    document = json.loads(Path(outcome.artefacts[-1].path).read_text())
    assert set(document["sensitivity"]["blk.0.ffn_up.weight"]) >= {"Q3_K", "Q4_K", "Q6_K"}, (
        "what is not known is estimated"
    )
    assert document["readings"] < 6
    assert document["left_out"] == list(dict.fromkeys(document["left_out"]))
    assert any("readings of single tensors" in what for what in document["left_out"])
    assert outcome.figures["left_out"]
    assert document["seconds"] > document["seconds_asked"]
    assert [line for line in context.lines if "no time for" in line]
    before: dict[int, float] = {}
    for _, done, total, _, stage, stages in context.reports:
        assert stage <= stages
        assert stage >= max(before, default=0)
        assert before.get(stage, 0) <= done
        assert total is None or done <= total
        before[stage] = done


@pytest.mark.native
def test_a_wish_that_nothing_answers_is_an_honest_no(home: Path, small: Path, step: TuneStep) -> None:
    model = entry(small)
    step = msgspec.structs.replace(step, max_kld=1e-9, feedback=False)
    outcome = tune.run(step, RecordingContext(step, home, model))
    assert outcome.exit == 1
    assert [artefact.format for artefact in outcome.artefacts] == ["json"]
    step = msgspec.structs.replace(step, max_kld=0.01)
    outcome = tune.run(step, RecordingContext(step, home, model))
    assert outcome.exit == 0
    assert 0.006 < float(outcome.figures["mean_kld"] or 0) <= 0.01, "no closer, and so no larger, than was asked"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned-embedder")
    convert_checkpoint(RECIPES["minilm"].write(folder / "source"), folder / "minilm-F16.gguf", outtype="f16")
    return folder / "minilm-F16.gguf"


@pytest.mark.native
def test_an_embedder_is_tuned_by_its_vectors(home: Path, embedder: Path, step: TuneStep, tmp_path: Path) -> None:
    model = entry(embedder)
    step = msgspec.structs.replace(
        step, model=model.name, compare=("Q4_K_M", "Q8_0"), kinds=("IQ4_NL", "Q5_0", "Q5_1", "Q8_0"),
        max_size="Q4_K_M", speed=True, try_threads=(1,),
    )  # fmt: skip
    outcome = tune.run(step, RecordingContext(step, home, model))
    rows = {str(row["label"]): row for row in outcome.rows}
    mix = next(row for label, row in rows.items() if label.startswith("mix"))
    assert 0 < float(mix["distance"] or 0) < float(rows["Q4_K_M"]["distance"] or 0)
    assert "kld" not in mix
    assert mix["tokens_per_s"] is None
    assert float(mix["prompt_tokens_per_s"] or 0) > 0
    assert outcome.figures["mean_distance"] == rows[str(outcome.figures["chosen"])]["distance"]
    frontier = read_frontier(Path(outcome.artefacts[-1].path))
    assert frontier.measure == "distance"
    assert {run.kv_type for run in frontier.runs} == {""}
    assert "position_embd.weight" not in frontier.sensitivity
    with LlamaModel(Path(outcome.artefacts[0].path)) as made:
        assert made.embeds
    close = msgspec.structs.replace(
        step, max_size=None, max_distance=0.5, speed=False, output=str(tmp_path / "close.gguf")
    )
    found = tune.run(close, RecordingContext(close, home, model))
    assert found.artefacts[0].bytes < outcome.artefacts[0].bytes, "the smallest that is close enough"


@pytest.mark.native
def test_wishes_are_in_the_measure_of_the_model(home: Path, small: Path, embedder: Path, step: TuneStep) -> None:
    both = msgspec.structs.replace(step, max_kld=0.1, max_distance=0.1)
    with pytest.raises(UsageError, match="not both"):
        tune.run(both, RecordingContext(both, home, entry(small)))
    for model, wish, other in (
        (embedder, {"max_kld": 0.1}, "--max-distance"),
        (small, {"max_distance": 0.1}, "--max-kld"),
    ):
        asked = msgspec.structs.replace(step, model=entry(model).name, **wish)
        with pytest.raises(UsageError) as refused:
            tune.run(asked, RecordingContext(asked, home, entry(model)))
        assert other in str(refused.value.hint)


@pytest.mark.native
def test_an_output_that_is_there_is_refused_before_the_search(
    home: Path, small: Path, step: TuneStep, tmp_path: Path
) -> None:
    output = tmp_path / "there.gguf"
    output.write_bytes(b"mine")
    asked = msgspec.structs.replace(step, max_size="Q4_K_M", output=str(output))
    context = RecordingContext(asked, home, entry(small))
    with pytest.raises(OutputError, match="exists"):
        tune.run(asked, context)
    assert context.reports == []
    over = msgspec.structs.replace(asked, output=str(small), force=True)
    with pytest.raises(OutputError, match="is the input"):
        tune.run(over, RecordingContext(over, home, entry(small)))
    assert output.read_bytes() == b"mine"


@pytest.mark.native
def test_importances_of_another_model_are_refused(
    home: Path, small: Path, embedder: Path, step: TuneStep, tmp_path: Path
) -> None:
    sums = np.ones((1, 32), np.float32)
    matrix = Imatrix(entries={"blk.0.ffn_up.weight": Entry(sums, np.array([4]))}, chunks=1)
    write_imatrix(tmp_path / "foreign.gguf", matrix)
    asked = msgspec.structs.replace(step, imatrix=str(tmp_path / "foreign.gguf"), max_size="Q4_K_M")
    with pytest.raises(ImatrixError, match=r"does not serve one-layer.gguf: blk.0.ffn_up.weight has 32 values"):
        tune.run(asked, RecordingContext(asked, home, entry(small)))
    with pytest.raises(ImatrixError, match="does not serve"):
        Variants(read_sharded(small), tmp_path / "variants", matrix)


@pytest.mark.native
def test_a_model_that_scores_pairs_is_refused(home: Path, step: TuneStep, tmp_path: Path) -> None:
    path = tmp_path / "reranker.gguf"
    convert_checkpoint(RECIPES["reranker"].write(tmp_path / "source"), path, outtype="f16")
    model = entry(path)
    asked = msgspec.structs.replace(step, model=model.name)
    with pytest.raises(DataError, match="scores pairs of texts"):
        tune.run(asked, RecordingContext(asked, home, model))


@pytest.mark.native
def test_a_quantized_model_is_refused_at_once(home: Path, small: Path, step: TuneStep, tmp_path: Path) -> None:
    path = tmp_path / "small-q8.gguf"
    quantize_gguf(small, path, QuantizeOptions(type="Q8_0"))
    asked = msgspec.structs.replace(step, model=path.stem)
    context = RecordingContext(asked, home, entry(path))
    with pytest.raises(UsageError, match="quantized already") as caught:
        tune.run(asked, context)
    assert "F16" in caught.value.hint
    assert not any("matrix" in str(report) for report in context.reports), "nothing was collected"


def point(label: str, size: int, kld: float, speed: float | None = None) -> Point:
    return Point(
        label=label,
        bytes=size,
        bits_per_weight=4.0,
        divergence=kld,
        error=0.0,
        divergence_99_9=kld,
        agreement=0.9,
        perplexity=10.0,
        tokens_per_s=speed,
    )


POINTS = [point("a", 100, 0.1, 50.0), point("b", 200, 0.05, 40.0), point("c", 210, 0.06, 90.0), point("d", 400, 0.01)]


def test_the_frontier_keeps_what_no_other_beats() -> None:
    assert [one.label for one in pareto(POINTS)] == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("wish", "label"),
    [
        (Wish(), "d"),
        (Wish(max_bytes=250), "b"),
        (Wish(max_divergence=0.06), "b"),
        (Wish(max_divergence=0.06, max_bytes=1000), "d"),
        (Wish(min_tokens_per_s=60), "c"),
        (Wish(max_bytes=250, min_tokens_per_s=45), "c"),
        (Wish(max_bytes=50), None),
        (Wish(max_divergence=0.01, min_tokens_per_s=1), None),
    ],
)
def test_wishes_are_answered_by_what_was_measured(wish: Wish, label: str | None) -> None:
    found = best(POINTS, wish)
    assert (found.label if found else None) == label


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4GB", 4_000_000_000),
        ("2.5GiB", 2_684_354_560),
        ("1500 MB", 1_500_000_000),
        ("2888160", 2_888_160),
        ("1k", 1000),
    ],
)
def test_sizes_are_read_as_people_write_them(written: str, size: int) -> None:
    assert Laboratory.bytes_of(None, written) == size  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["big", "1.2.3GB", ".", "", "9" * 50])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        Laboratory.bytes_of(None, written)  # type: ignore[arg-type]
