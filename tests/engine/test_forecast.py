"""Forecasts: the size that will be, to the byte, from a process that stays and may die."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine import forecaster
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import CrashedError, DataError, MissingError
from lathe.engine.forecaster import Forecaster
from lathe.engine.jobs import convert, outputs, quantize
from lathe.engine.jobs.forecast import forecast
from lathe.engine.jobs.outputs import artefact_text
from lathe.engine.jobs.values import Artefact, Job, Outcome
from lathe.engine.planner import MemoryPlanner
from lathe.engine.states import Forecast
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep
from lathe.engine.telemetry.devices import Devices
from lathe.quantize.cards import read_card
from lathe.quantize.convert import adapter
from lathe.store.models import ModelEntry
from support.adapters import pair, write_adapter
from support.families import RECIPES
from support.job_context import RecordingContext, entry
from support.onnx_models import embedded_decoder

pytestmark = pytest.mark.native


@pytest.fixture
def model(embedded_gguf: Path) -> ModelEntry:
    card = msgspec.to_builtins(read_card(embedded_gguf))
    return entry(embedded_gguf, name="tiny-F16", sha256="ab" * 32, bytes=embedded_gguf.stat().st_size, card=card)


def test_the_size_is_the_jobs_and_a_second_time_it_is_known(home: Path, model: ModelEntry) -> None:
    step = QuantizeStep(model=model.name, type="Q4_K_M", tensor_types={"ffn_down": "q6_K"}, threads=1)
    planned = forecast(step, model, home)
    assert (planned.taken, planned.problem, planned.exact) == ("", None, True)
    outcome = quantize.run(step, RecordingContext(step, home, model))
    (made,) = outcome.artefacts
    assert (planned.bytes, planned.output) == (Path(made.path).stat().st_size, made.path)
    assert sum(planned.mix.values()) < made.bytes
    assert planned.bits_per_weight == outcome.figures["bits_per_weight"]
    assert forecast(step, model, home).taken == "same"
    other = QuantizeStep(model=model.name, type="Q8_0", name=Path(made.path).stem)
    assert forecast(other, model, home).taken == "other"


def test_objections_are_answers(home: Path, model: ModelEntry) -> None:
    def code(step: QuantizeStep | ConvertStep) -> str | None:
        found = forecast(step, model, home)
        return found.problem.code if found.problem else None

    assert code(QuantizeStep(model=model.name, type="IQ2_XXS")) == "E_IMATRIX_NEEDED"
    assert code(QuantizeStep(model=model.name, tensor_types={"(": "q8_0"})) == "E_PATTERN"
    assert code(QuantizeStep(model=model.name, type="Q99")) == "E_UNSUPPORTED"
    assert code(QuantizeStep(model=model.name, imatrix=str(home / "none.gguf"))) is not None
    assert code(ConvertStep(model=model.name)) == "E_USAGE"


def test_a_quantized_source_has_a_size_and_an_objection(home: Path, model: ModelEntry) -> None:
    step = QuantizeStep(model=model.name, type="Q8_0", threads=1)
    (made,) = quantize.run(step, RecordingContext(step, home, model)).artefacts
    again = QuantizeStep(model="again", type="Q4_K_M")
    found = forecast(again, entry(Path(made.path), name="again"), home)
    assert found.problem is not None
    assert found.problem.code == "E_REQUANTIZE"
    assert found.bytes == forecast(QuantizeStep(model=model.name, type="Q4_K_M"), model, home).bytes
    allowed = forecast(QuantizeStep(model="again", allow_requantize=True), entry(Path(made.path), name="again"), home)
    assert allowed.problem is None


def test_a_checkpoint_is_estimated_by_its_plan(home: Path, embedded_gguf: Path) -> None:
    source = entry(CHECKPOINT, name="stdlib-4m", format="safetensors")
    found = forecast(ConvertStep(model="stdlib-4m", outtype="f16"), source, home)
    assert found.problem is None
    assert not found.exact
    assert found.bytes is not None
    assert abs(found.bytes - embedded_gguf.stat().st_size) < 1024
    assert Path(forecast(ConvertStep(model="stdlib-4m"), source, home).output).name == "stdlib-4m-BF16.gguf"


def test_the_way_back_is_told_to_the_weights(home: Path, model: ModelEntry) -> None:
    step = ConvertStep(model=model.name, to="safetensors", outtype="f16")
    planned = forecast(step, model, home)
    assert (planned.problem, planned.exact, planned.bits_per_weight) == (None, False, 16.0)
    outcome = convert.run(step, RecordingContext(step, home, model))
    assert planned.output == outcome.artefacts[0].path
    assert planned.bytes == pytest.approx(outcome.figures["bytes"], rel=0.05)
    refused = forecast(ConvertStep(model=model.name, to="safetensors", outtype="q8_0", name="x"), model, home)
    assert refused.problem is not None
    assert refused.problem.code == "E_USAGE"


def test_an_adapter_is_told_to_the_byte(home: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    source = write_adapter(tmp_path / "tone", pair(name, 64, 64))
    base = RECIPES["llama2"].write(tmp_path / "base")
    model = entry(source, name="tone", format="safetensors", card={"adapter": True})
    step = ConvertStep(model="tone", base=str(base))
    planned = forecast(step, model, home)
    assert (planned.problem, planned.exact, planned.tensors) == (None, True, 2)
    adapter.convert_adapter(source, tmp_path / "tone.gguf", base=base)
    assert planned.bytes == (tmp_path / "tone.gguf").stat().st_size
    unknown = forecast(ConvertStep(model="tone"), model, home)
    assert unknown.problem is not None
    assert "base model" in unknown.problem.message


def test_onnx_is_told_by_its_graph(home: Path, tmp_path: Path) -> None:
    folder = embedded_decoder(tmp_path / "decoder")
    source = entry(folder, name="decoder", format="onnx")

    def planned(**fields: Any) -> Forecast:
        return forecast(OnnxQuantizeStep(model="decoder", **fields), source, home)

    sizes = {mode: planned(mode=mode).bytes or 0 for mode in ("int4", "int8", "float16")}
    assert 0 < sizes["int4"] < sizes["int8"] < sizes["float16"] < (folder / "model.onnx").stat().st_size * 0.6
    assert Path(planned().output).name == "decoder-INT8"
    assert not planned().exact
    assert (planned(operators=("Gemm",)).bytes or 0) > sizes["float16"], "what no operator reads stays as it is"
    static = planned(mode="int8-static")
    assert static.problem is not None
    assert static.bytes
    other = forecast(OnnxQuantizeStep(model="x"), entry(CHECKPOINT, name="x", format="safetensors"), home)
    assert other.problem is not None
    assert other.problem.code == "E_USAGE"


@pytest.fixture
def asker(home: Path) -> Forecaster:
    return Forecaster(home, home / "forecast.log", MemoryPlanner(Devices(), 0), tuple)


async def test_one_process_answers_whoever_leaves(asker: Forecaster, model: ModelEntry) -> None:
    step = QuantizeStep(model=model.name, type="Q4_K_M")
    hasty = asyncio.create_task(asker.forecast(step, model))
    await asyncio.sleep(0)
    hasty.cancel()
    both = await asyncio.gather(
        asker.forecast(step, model), asker.forecast(QuantizeStep(model=model.name, type="Q8_0"), model)
    )
    assert both[0].bytes is not None
    assert both[1].bytes is not None
    assert both[0].bytes < both[1].bytes
    assert both[0].fit is not None
    assert both[0].fit.footprint.weights == both[0].bytes
    first = asker._child
    assert (await asker.forecast(step, model)).bytes == both[0].bytes
    assert asker._child is first
    await asker.close()


async def test_a_process_that_dies_is_an_error_and_replaced(asker: Forecaster, model: ModelEntry) -> None:
    step = QuantizeStep(model=model.name, type="Q4_K_M")
    await asker.forecast(step, model)
    child = asker._child
    assert child is not None
    asking = asyncio.create_task(asker.forecast(step, model))
    await asyncio.sleep(0)
    child.kill()
    await asyncio.wait({asking})
    assert isinstance(asking.exception(), CrashedError | None)  # it may have answered before
    await child.wait()
    assert (await asker.forecast(step, model)).bytes is not None
    assert asker._child is not child
    await asker.close()


async def test_a_process_that_ends_takes_no_question_of_its_successor(asker: Forecaster, model: ModelEntry) -> None:
    step = QuantizeStep(model=model.name, type="Q4_K_M")
    await asker.forecast(step, model)
    asker._sleep()  # its end is heard only after the next question was asked
    assert (await asker.forecast(step, model)).bytes is not None
    await asker.close()


async def test_without_questions_it_ends(asker: Forecaster, model: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecaster, "IDLE_S", 0.01)
    await asker.forecast(QuantizeStep(model=model.name), model)
    child = asker._child
    assert child is not None
    assert (await child.wait()).clean
    await asker.close()


def test_documents_of_jobs_are_read_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")
    made = (
        Artefact(name="a", path=str(file), format="json", bytes=2),
        Artefact(name="m", path=str(file), format="gguf", bytes=2),
    )
    job = Job(id="j-1", step=QuantizeStep(model="m"), title="t", outcome=Outcome(artefacts=made))
    assert artefact_text(job, "a") == "{}"
    with pytest.raises(MissingError, match="no document 'm'"):
        artefact_text(job, "m")
    monkeypatch.setattr(outputs, "MAX_DOCUMENT", 1)
    with pytest.raises(DataError, match="larger"):
        artefact_text(job, "a")
    file.unlink()
    with pytest.raises(MissingError, match="is gone"):
        artefact_text(job, "a")
