"""The job functions: convert, quantize, perplexity, bench, run in this process with a recording context."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import CannotCreate, UsageError
from lathe.engine.jobs import bench, convert, imatrix, kld, perplexity, quantize
from lathe.engine.jobs.outputs import output_path, variant_name
from lathe.engine.measure.bench_formats import render
from lathe.engine.steps import (
    BenchStep,
    ConvertStep,
    ImatrixStep,
    KldStep,
    PerplexityStep,
    QuantizeStep,
    VerifyStep,
)
from lathe.quantize.artefact import file_sha256
from lathe.quantize.errors import OutputError
from lathe.quantize.gguf.header import read_header
from support.job_context import RecordingContext, entry

pytestmark = pytest.mark.native


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes((CHECKPOINT / "valid.txt").read_bytes()[:12_000])
    return path


def test_convert_lands_in_the_workspace_with_its_recipe(home: Path) -> None:
    model = entry(CHECKPOINT, name="stdlib 4m/embedded", format="safetensors", sha256="ab" * 32)
    step = ConvertStep(model=model.name, outtype="f16")
    context = RecordingContext(step, home, model)
    outcome = convert.run(step, context)
    (made,) = outcome.artefacts
    assert Path(made.path) == home / "models" / "stdlib-4m-embedded-F16.gguf"
    assert made.sha256 == file_sha256(Path(made.path))
    assert (made.parent, made.bytes) == (model.id, Path(made.path).stat().st_size)
    assert made.recipe["source_sha256"] == "ab" * 32
    assert outcome.figures["file_type"] == "F16"
    assert {stage for *_, stage, _ in context.reports} >= {2, 3}


def test_convert_says_what_it_cannot(home: Path, embedded_gguf: Path) -> None:
    step = ConvertStep(model=embedded_gguf.stem)
    with pytest.raises(UsageError, match="is gguf"):
        convert.run(step, RecordingContext(step, home, entry(embedded_gguf)))


def test_quantize_carries_its_provenance_in_the_file(home: Path, embedded_gguf: Path) -> None:
    model = entry(embedded_gguf)
    step = QuantizeStep(model=model.name, type="q4_0", threads=1, metadata={"general.author": "a test"})
    context = RecordingContext(step, home, model)
    outcome = quantize.run(step, context)
    (made,) = outcome.artefacts
    header = read_header(Path(made.path))
    assert Path(made.path).name == "stdlib-4m-Q4_0.gguf"
    assert header.text("lathe.source_sha256") == file_sha256(embedded_gguf)
    assert header.text("general.author") == "a test"
    assert outcome.figures["bytes"] == made.bytes == header.file_bytes
    assert outcome.figures["bits_per_weight"] == pytest.approx(5.03, abs=0.01)
    assert {row["tensor"]: row["to"] for row in outcome.rows}["blk.0.ffn_up.weight"] == "Q4_0"


def test_the_same_quantization_is_recognised_and_another_is_not(home: Path, embedded_gguf: Path) -> None:
    model = entry(embedded_gguf)
    step = QuantizeStep(model=model.name, type="Q8_0", threads=1)
    first = quantize.run(step, RecordingContext(step, home, model))
    path = Path(first.artefacts[0].path)
    before = path.stat().st_mtime_ns
    context = RecordingContext(step, home, model)
    again = quantize.run(step, context)
    assert again.artefacts == first.artefacts
    assert path.stat().st_mtime_ns == before
    assert any("kept" in line for line in context.lines)
    other = QuantizeStep(model=model.name, type="Q8_0", tensor_types={"attn_k": "q6_k"}, threads=1)
    with pytest.raises(OutputError, match="exists"):
        quantize.run(other, RecordingContext(other, home, model))
    forced = msgspec.structs.replace(other, force=True)
    assert quantize.run(forced, RecordingContext(forced, home, model)).artefacts[0].sha256 != first.artefacts[0].sha256


@pytest.mark.parametrize("victim", ["text", "model", "matrix"])
def test_what_is_read_is_never_written_over(
    home: Path, embedded_gguf: Path, text: Path, tmp_path: Path, victim: str
) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(embedded_gguf.read_bytes())
    model = entry(source)
    small = {"text": str(text), "context": 64, "chunks": 2, "threads": 1, "force": True}
    matrix = ImatrixStep(model=model.name, output=str(tmp_path / "matrix.dat"), **small)  # type: ignore[arg-type]
    imatrix.run(matrix, RecordingContext(matrix, home, model))
    files = {"text": text, "model": source, "matrix": tmp_path / "matrix.dat"}
    before = {name: file_sha256(path) for name, path in files.items()}
    merged = {"merge": (str(files["matrix"]),)} if victim == "matrix" else {}
    collect = ImatrixStep(model=model.name, output=str(files[victim]), **small, **merged)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="is the input"):
        imatrix.run(collect, RecordingContext(collect, home, model))
    if victim != "matrix":
        save = KldStep(model=model.name, base=model.name, save_base=str(files[victim]), **small)  # type: ignore[arg-type]
        with pytest.raises(OutputError, match="is the input"):
            kld.run(save, RecordingContext(save, home, model))
    assert {name: file_sha256(path) for name, path in files.items()} == before


def test_perplexity_continues_from_its_checkpoint(
    home: Path, embedded_gguf: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = entry(embedded_gguf)
    step = PerplexityStep(model=model.name, text=str(text), context=64, threads=1)
    whole = perplexity.run(step, RecordingContext(step, home, model))
    monkeypatch.setattr(perplexity, "_SAVE_INTERVAL_S", 0.0)

    class Stopping(RecordingContext):
        def progress(self, label: str, done: float, *rest: object, **more: object) -> None:
            if self.reports:
                raise KeyboardInterrupt
            self.reports.append((label, done, None, "", 1, 1))

    stopped = Stopping(step, home, model)
    with pytest.raises(KeyboardInterrupt):
        perplexity.run(step, stopped)
    checkpoint = home / "jobs" / "j-1" / "perplexity.json"
    reached = msgspec.json.decode(checkpoint.read_bytes())["chunks"]
    context = RecordingContext(step, home, model)
    resumed = perplexity.run(step, context)
    assert context.reports[0][1] > reached > 0
    assert resumed.figures["perplexity"] == pytest.approx(whole.figures["perplexity"])
    assert resumed.figures["tokens"] == whole.figures["tokens"]
    assert "tokens_per_s" not in whole.figures, "in the catalogue that is the speed of generation"
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_text_is_not_used(home: Path, embedded_gguf: Path, text: Path) -> None:
    model = entry(embedded_gguf)
    step = PerplexityStep(model=model.name, text=str(text), context=64, chunks=4, threads=1)
    context = RecordingContext(step, home, model)
    (home / "jobs" / "j-1" / "perplexity.json").write_text('{"key":"x","chunks":3,"count":1,"total":1,"squares":1}')
    assert perplexity.run(step, context).figures["chunks"] == 4
    assert context.reports[0][1] <= 4


def test_bench_rows_travel_in_the_outcome(home: Path, embedded_gguf: Path) -> None:
    model = entry(embedded_gguf)
    step = BenchStep(model=model.name, prompt_tokens=(16,), generate_tokens=(2,), threads=(1,), repetitions=2)
    outcome = bench.run(step, RecordingContext(step, home, model))
    assert [(row["n_prompt"], row["n_gen"]) for row in outcome.rows] == [(16, 0), (0, 2)]
    assert outcome.figures["tokens_per_s"] == outcome.rows[1]["avg_ts"]
    assert outcome.figures["prompt_tokens_per_s"] == outcome.rows[0]["avg_ts"]
    assert "pp16" in render(list(outcome.rows), "md")


def test_kld_compares_two_models_and_keeps_the_base_for_later(
    home: Path, tmp_path: Path, embedded_gguf: Path, text: Path
) -> None:
    base = entry(embedded_gguf)
    made = QuantizeStep(model=base.name, type="Q8_0", threads=1)
    small = entry(Path(quantize.run(made, RecordingContext(made, home, base)).artefacts[0].path))
    stored = tmp_path / "base.bin"
    step = KldStep(
        model=small.name, base=base.name, text=str(text), context=64, chunks=20, threads=1, save_base=str(stored)
    )
    live = kld.run(step, RecordingContext(step, home, base, small))
    assert live.artefacts[0].path == str(stored)
    assert 0 < live.figures["mean_kld"] < 0.01
    assert 0.9 < live.figures["same_top_p"] <= 1
    assert live.figures["tokens"] == 20 * 31
    step = KldStep(model=small.name, base_file=str(stored), threads=1)
    replayed = kld.run(step, RecordingContext(step, home, small))
    assert replayed.figures["mean_kld"] == pytest.approx(live.figures["mean_kld"], rel=0.05)
    assert {row["percentile"] for row in replayed.rows} >= {99.9, 50.0}


def test_kld_says_what_is_missing(home: Path, embedded_gguf: Path) -> None:
    model = entry(embedded_gguf)
    for fields in ({}, {"base": model.name, "base_file": "x"}, {"base_file": "x", "save_base": "y"}):
        step = KldStep(model=model.name, **fields)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="kld"):
            kld.run(step, RecordingContext(step, home, model))


def test_an_importance_matrix_serves_the_quantizer(home: Path, tmp_path: Path, embedded_gguf: Path, text: Path) -> None:
    model = entry(embedded_gguf, sha256="cd" * 32)
    step = ImatrixStep(model=model.name, text=str(text), context=64, chunks=4, threads=1)
    outcome = imatrix.run(step, RecordingContext(step, home, model))
    (made,) = outcome.artefacts
    assert Path(made.path).name == "stdlib-4m-IMATRIX.gguf"
    assert made.recipe["source_sha256"] == "cd" * 32
    assert (outcome.figures["tensors"], outcome.figures["chunks"]) == (28, 4)
    assert {row["tensor"] for row in outcome.rows} >= {"blk.0.ffn_up.weight"}
    again = ImatrixStep(
        model=model.name, text=str(text), context=64, chunks=2, threads=1, merge=(made.path,), name="both"
    )
    merged = imatrix.run(again, RecordingContext(again, home, model))
    assert merged.figures["chunks"] == 6
    small = QuantizeStep(model=model.name, type="IQ2_XXS", imatrix=merged.artefacts[0].path, threads=1)
    quantized = quantize.run(small, RecordingContext(small, home, model))
    header = read_header(Path(quantized.artefacts[0].path))
    assert header.text("lathe.imatrix_sha256") == merged.artefacts[0].sha256
    assert header.text("quantize.imatrix.file") == "both.gguf"


@pytest.mark.parametrize(
    ("name", "kind", "variant"),
    [
        ("tiny-F16", "Q4_K_M", "tiny-Q4_K_M"),
        ("tiny-q8_0.gguf", "IQ4_XS", "tiny-IQ4_XS"),
        ("tiny", "q5_k_m", "tiny-Q5_K_M"),
        ("Model-v0.1-IQ2_XXS", "Q8_0", "Model-v0.1-Q8_0"),
    ],
)
def test_names_of_variants_do_not_pile_up(tmp_path: Path, name: str, kind: str, variant: str) -> None:
    assert variant_name(entry(tmp_path, name=name), kind) == variant


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b:c@d", "\x1b[31mred", "名前", "", "..."])
def test_output_names_are_plain_file_names_in_the_workspace(home: Path, name: str) -> None:
    step = VerifyStep(model="x")
    path = output_path(RecordingContext(step, home), None, name)
    assert path.parent == home / "models"
    assert path.name == path.name.strip("-.")
    assert path.name.isascii()
    assert path.suffix == ".gguf"


def test_an_output_folder_gets_the_file(home: Path, tmp_path: Path) -> None:
    context = RecordingContext(VerifyStep(model="x"), home)
    assert output_path(context, str(tmp_path), "m") == tmp_path / "m.gguf"
    assert output_path(context, str(tmp_path / "own.gguf"), "m") == tmp_path / "own.gguf"


def test_an_output_that_nobody_would_find_is_refused_before_the_work(home: Path, tmp_path: Path) -> None:
    context = RecordingContext(VerifyStep(model="x"), home)
    for name in ("own", "own.bin"):
        with pytest.raises(UsageError, match=r"needs the suffix \.gguf") as caught:
            output_path(context, str(tmp_path / name), "m")
        assert caught.value.hint == f"write to {name}.gguf"
    (tmp_path / "file").touch()
    for name in ("file/own.gguf", "file/deeper/own.gguf"):
        with pytest.raises(CannotCreate, match="file is a file"):
            output_path(context, str(tmp_path / name), "m")
    assert output_path(context, str(tmp_path / "folder"), "m", "") == tmp_path / "folder"
