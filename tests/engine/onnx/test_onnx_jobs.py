"""ONNX made, quantized and measured by the jobs, on the embedded model; needs the extra `onnx`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from lathe.engine.embedded import CHECKPOINT, HELD_OUT_TEXT
from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.jobs import convert, onnx_quantize, perplexity
from lathe.engine.jobs.forecast import forecast
from lathe.engine.onnx import export
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, PerplexityStep
from lathe.quantize.errors import OutputError, UnsafeError, UnsupportedError
from lathe.store.models import ModelEntry
from support.job_context import RecordingContext, entry


def checkpoint_entry(path: Path = CHECKPOINT) -> ModelEntry:
    return entry(path, format="safetensors", sha256="0" * 64)


def test_a_missing_extra_is_named_with_the_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optimum.exporters.onnx", None)
    monkeypatch.setitem(__import__("sys").modules, "optimum", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    model = checkpoint_entry()
    step = ConvertStep(model=model.name, to="onnx")
    with pytest.raises(UnavailableError, match="not installed") as caught:
        convert.run(step, RecordingContext(step, home, model))
    assert "lathe-llm[onnx]" in caught.value.hint
    assert not (home / "models" / "stdlib-4m-ONNX-F32").exists()


def test_what_cannot_be_is_refused_before_anything_is_loaded(home: Path, tmp_path: Path) -> None:
    model = checkpoint_entry()
    for step, message in (
        (ConvertStep(model=model.name, to="onnx", outtype="bf16"), "f32 or f16"),
        (ConvertStep(model=model.name, to="safetensors"), "made from gguf"),
    ):
        with pytest.raises(UsageError, match=message):
            convert.run(step, RecordingContext(step, home, model))
    quantize = OnnxQuantizeStep(model=model.name)
    with pytest.raises(UsageError, match="is for ONNX"):
        onnx_quantize.run(quantize, RecordingContext(quantize, home, model))
    hostile = tmp_path / "hostile"
    shutil.copytree(CHECKPOINT, hostile, ignore=shutil.ignore_patterns("*.jsonl"))
    config = json.loads((hostile / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (hostile / "config.json").write_text(json.dumps(config))
    model = checkpoint_entry(hostile)
    step = ConvertStep(model=model.name, to="onnx")
    with pytest.raises(UnsafeError, match="never runs"):
        convert.run(step, RecordingContext(step, home, model))


@pytest.mark.parametrize(
    ("error", "opset", "words"),
    [
        (RuntimeError("Unsupported onnx_opset_version: 25\nand more"), 25, "with opset 25: Unsupported onnx_opset"),
        (NotImplementedError(), None, "NotImplementedError"),
    ],
)
def test_what_optimum_does_not_export_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, opset: int | None, words: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    for name in ("optimum", "optimum.exporters", "optimum.exporters.onnx"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["optimum.exporters.onnx"], "onnx_export_from_model", broken, raising=False)
    with pytest.raises(UnsupportedError, match=words) as caught:
        export._export(None, tmp_path, "feature-extraction", opset)
    assert "\n" not in caught.value.message
    assert ("14 to 23" in caught.value.hint) == (opset is not None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as ONNX, made by the job."""
    for library in ("onnx", "optimum.exporters.onnx", "torch", "transformers", "onnxruntime"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("onnx")
    model = checkpoint_entry()
    step = ConvertStep(model=model.name, to="onnx", output=str(folder / "s"))
    context = RecordingContext(step, folder, model)
    outcome = convert.run(step, context)
    assert outcome.figures["parity"] == "ok"
    assert outcome.figures["output_same_top"] == 1
    assert float(outcome.figures["max_difference"] or 0) < 1e-3
    assert (folder / "s" / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        convert.run(step, RecordingContext(step, folder, model))
    assert [path.name for path in folder.iterdir() if ".part" in path.name] == []
    return folder / "s"


def onnx_entry(path: Path) -> ModelEntry:
    return entry(path, format="onnx", sha256="1" * 64, name=path.name)


def figure(step: PerplexityStep, home: Path, model: ModelEntry) -> float:
    return float(perplexity.run(step, RecordingContext(step, home, model)).figures["perplexity"] or 0)


@pytest.mark.native
def test_perplexity_is_that_of_the_gguf(exported: Path, embedded_gguf: Path, home: Path) -> None:
    gguf, onnx = entry(embedded_gguf, sha256="2" * 64), onnx_entry(exported)
    figures = [
        figure(PerplexityStep(model=model.name, context=128, chunks=12, threads=1), home, model)
        for model in (gguf, onnx)
    ]
    assert figures[0] == pytest.approx(figures[1], rel=2e-3)


@pytest.mark.parametrize(
    ("mode", "most_bytes", "loss"),
    [("int8", 0.3, 0.03), ("int8-static", 0.45, 0.06), ("int4", 0.2, 0.12), ("float16", 0.52, 0.01)],
)
def test_quantized_models_are_small_and_close(
    exported: Path, home: Path, tmp_path: Path, mode: str, most_bytes: float, loss: float
) -> None:
    if mode == "int4":
        pytest.importorskip("onnx_ir")
    source = onnx_entry(exported)
    step = OnnxQuantizeStep(
        model=source.name, mode=mode, text=str(HELD_OUT_TEXT), samples=4, sample_tokens=64,
        output=str(tmp_path / "q"), threads=1,
    )  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    planned = forecast(step, source, home)
    outcome = onnx_quantize.run(step, RecordingContext(step, home, source))
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before, "the source is untouched"
    assert float(outcome.figures["ratio"] or 1) < most_bytes
    assert planned.problem is None
    assert (planned.output, planned.bytes) == (str(tmp_path / "q"), pytest.approx(outcome.figures["bytes"], rel=0.12))
    made = onnx_entry(tmp_path / "q")
    measured = [
        figure(PerplexityStep(model=model.name, context=64, chunks=12, threads=1), home, model)
        for model in (source, made)
    ]
    assert measured[1] / measured[0] - 1 < loss


def test_filters_choose_nodes_and_a_text_is_needed_to_calibrate(exported: Path, home: Path, tmp_path: Path) -> None:
    source = onnx_entry(exported)

    def run(**fields: object) -> dict[str, object]:
        step = OnnxQuantizeStep(model=source.name, output=str(tmp_path / "q"), force=True, threads=1, **fields)  # type: ignore[arg-type]
        context = RecordingContext(step, home, source)
        outcome = onnx_quantize.run(step, context)
        return {str(row["operator"]): row["nodes"] for row in outcome.rows} | {"log": context.lines}

    every = run(operators=("MatMul",))
    some = run(operators=("MatMul",), exclude=("mlp", "no such node"))
    assert int(some["MatMulInteger"]) == int(every["MatMulInteger"]) - 12  # type: ignore[call-overload]
    assert any("no such node" in line for line in some["log"])  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="nothing in"):
        run(operators=("Conv",))
    with pytest.raises(UsageError, match="calibration text"):
        run(mode="int8-static")
    with pytest.raises(UsageError, match="no regular expression"):
        run(exclude=("(",))
    assert (tmp_path / "q" / "model.onnx").exists(), "refusals leave what was there"
