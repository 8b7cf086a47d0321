"""Quantize and Tune: plans that follow the fields, jobs from the screen, results as table, plot and map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import LatheError
from lathe.engine.jobs.values import Artefact, Outcome
from lathe.engine.sizes import bytes_of
from lathe.engine.steps import (
    ConvertStep,
    ImatrixStep,
    KldStep,
    OnnxQuantizeStep,
    PerplexityStep,
    QuantizeStep,
    Step,
    TuneStep,
)
from lathe.engine.tune.frontier import Wish
from lathe.tui.glyphs import ASCII, UNICODE
from lathe.tui.screens.quantize import Quantize
from lathe.tui.screens.tune import Tune
from lathe.tui.views import quantize as view
from lathe.tui.views import tune as tuned
from lathe.tui.widgets.fields import Fields
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.jobpanel import JobPanel
from lathe.tui.widgets.logview import LogView
from lathe.tui.widgets.paint import width_of
from lathe.tui.widgets.plot import Dot, scatter
from support import scripted_data as data
from support import scripted_tune as script
from support.screens import compare, running, screen_lines, screen_text, tick, type_text, until
from support.scripted_workbench import REPLACE, ScriptedWorkbench

GOLDEN = Path(__file__).parents[1] / "golden" / "tui"
SIZES = [(80, 24), (120, 40), (160, 50)]


def _submitted(bench: ScriptedWorkbench) -> list[Step]:
    return [call[1] for call in bench.calls if call[0] == "submit"]


def _quantize(app: Any) -> Quantize:
    assert isinstance(app.screen, Quantize)
    return app.screen


def _tune(app: Any) -> Tune:
    assert isinstance(app.screen, Tune)
    return app.screen


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", ["quantize", "tune"])
async def test_the_place_looks_as_it_did(mode: str, size: tuple[int, int]) -> None:
    async with running(size=size, mode=mode) as (app, pilot, bench):
        telling = "writes 4.7 GiB" if mode == "quantize" else "mix 2.89 MB"
        await until(pilot, lambda: telling in screen_text(app))
        await until(pilot, lambda: mode == "tune" or app.screen.query_one(LogView).visible_entries)
        await tick(app, pilot, bench, 0)
        await pilot.pause()
        # Without the frame, which changes with every place of the app.
        compare(GOLDEN / f"{mode}-{size[0]}x{size[1]}.txt", "\n".join(screen_lines(app)[2:]) + "\n")


async def test_the_forecast_follows_the_fields_and_a_run_is_what_was_planned() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        place = _quantize(app)
        await until(pilot, lambda: "writes 4.7 GiB" in screen_text(app))
        place.query_one(Fields).pick("type").focus()
        await pilot.press("left")
        await until(pilot, lambda: "5.57 bits" in screen_text(app) or "5.7 GiB" in screen_text(app))
        place.query_one("#f-name").focus()
        await type_text(pilot, "mine")
        await until(pilot, lambda: "mine.gguf" in screen_text(app))
        await pilot.press("escape", "r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, QuantizeStep)
        assert (step.name, app.board.model(step.model).name) == ("mine", "qwen3-8b-f16")  # type: ignore[union-attr]
        assert app.did.startswith(f"lathe quantize qwen3-8b-f16 --type {step.type}")


async def test_what_would_fail_is_said_and_not_begun() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        place, fields = _quantize(app), app.screen.query_one(Fields)
        await until(pilot, lambda: "exists: another name" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: "give the result a name" in screen_text(app))
        fields.pick("type").take("IQ2_XXS")
        await until(pilot, lambda: "IQ2_XXS needs" in screen_text(app))
        await pilot.press("r")
        fields.pick("type").take("Q8_0")
        fields.put("overrides", "ffn_down")
        await until(pilot, lambda: "is no REGEX=TYPE" in screen_text(app))
        await pilot.press("r")
        fields.put("overrides", "ffn_down=q6_K, attn_v = q5_K")
        await until(pilot, lambda: "is no REGEX" not in screen_text(app))
        step = place.step()
        assert isinstance(step, QuantizeStep)
        assert step.tensor_types == {"ffn_down": "q6_K", "attn_v": "q5_K"}
        fields.put("name", "qwen3-8b")
        await until(pilot, lambda: "qwen3-8b is taken" in screen_text(app))
        assert not _submitted(bench)


async def test_a_quantized_source_asks_for_consent() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "writes" in screen_text(app))
        app.screen.open_key("qwen3-8b-q4_k_m")  # type: ignore[attr-defined]
        fields = app.screen.query_one(Fields)
        fields.put("name", "again")
        await until(pilot, lambda: "is Q6_K already" in screen_text(app))
        await pilot.press("r")
        assert not _submitted(bench)
        fields.put("again", "yes")
        fields.pick("type").take("Q8_0")
        await until(pilot, lambda: "is Q6_K already" not in screen_text(app) and "writes" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: bool(_submitted(bench)))
        assert _submitted(bench)[0].allow_requantize  # type: ignore[union-attr]


async def test_a_checkpoint_is_converted() -> None:
    async with running(ScriptedWorkbench(living=False), size=(120, 40), mode="quantize") as (app, pilot, bench):
        await pilot.press("escape")
        await until(pilot, lambda: "Convert · stdlib-4m" in screen_text(app))
        await until(pilot, lambda: "writes ~" in screen_text(app))
        assert "overrides" not in screen_text(app)
        await pilot.press("r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, ConvertStep)
        assert app.did == "lathe convert stdlib-4m --to gguf --outtype auto"


async def _chosen(app: Any, pilot: Any, name: str) -> Fields:
    """The form for a model."""
    await until(pilot, lambda: "writes" in screen_text(app))
    app.screen.open_key(data.digest(name)[:12])
    await until(pilot, lambda: app.screen.source.name == name)
    found: Fields = app.screen.query_one(Fields)
    return found


async def test_an_onnx_model_is_quantized_by_a_form_of_its_own() -> None:
    async with running(size=(160, 50), mode="quantize") as (app, pilot, bench):
        fields = await _chosen(app, pilot, "phi-4-mini-onnx")
        await until(pilot, lambda: "writes ~" in screen_text(app) and "phi-4-mini-onnx-int8" in screen_text(app))
        shown = screen_text(app)
        assert all(label in shown for label in ("scale per", "operators", "exclude", "8 bits"))
        assert not any(label in shown for label in ("overrides", "block  ", "calibrate", "requantize"))
        fields.pick("mode").take("int8-static")
        await until(pilot, lambda: "needs a calibration text" in screen_text(app))
        assert "calibrate" in screen_text(app)
        await pilot.press("escape", "r")
        assert not _submitted(bench)
        fields.put("calibrate", "/t/calm.txt")
        fields.put("samples", "none")
        await until(pilot, lambda: "is no whole number" in screen_text(app))
        fields.put("samples", "8")
        fields.put("operators", "MatMul, Gemm")
        fields.put("exclude", "lm_head")
        fields.query_one("#f-scale").take("tensor")  # type: ignore[attr-defined]
        await until(pilot, lambda: "is no whole number" not in screen_text(app) and "writes ~" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, OnnxQuantizeStep)
        assert (step.mode, step.text, step.samples, step.per_channel) == ("int8-static", "/t/calm.txt", 8, False)
        assert (step.operators, step.exclude) == (("MatMul", "Gemm"), ("lm_head",))
        assert app.did == (
            "lathe quantize phi-4-mini-onnx --type int8-static --text /t/calm.txt --per-tensor --samples 8 "
            "--op MatMul --op Gemm --exclude lm_head"
        )
        fields.pick("mode").take("int4")
        await until(pilot, lambda: "zero point" in screen_text(app))
        place = _quantize(app)
        step = place.step()  # type: ignore[assignment]
        assert isinstance(step, OnnxQuantizeStep)
        assert (step.mode, step.text, step.samples, step.block_size) == ("int4", None, 32, 32)
        fields.pick("mode").take("float16")
        await until(pilot, lambda: "operators" not in screen_text(app))


async def test_a_gguf_becomes_a_checkpoint_again() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        fields = await _chosen(app, pilot, "qwen3-8b-q5_k_m")
        fields.pick("make").take("safetensors")
        await until(pilot, lambda: "Convert back · qwen3-8b-q5_k_m" in screen_text(app))
        assert "overrides" not in screen_text(app)
        fields.query_one("#f-dtype").take("bf16")  # type: ignore[attr-defined]
        await until(pilot, lambda: "writes ~" in screen_text(app))
        await pilot.press("escape", "r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, ConvertStep)
        assert (step.to, step.outtype) == ("safetensors", "bf16")
        assert app.did == "lathe convert qwen3-8b-q5_k_m --to safetensors --outtype bf16"


async def test_an_old_file_is_told_what_it_does_not_say() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        fields = await _chosen(app, pilot, "gpt-j-6b-ggml")
        await until(pilot, lambda: "epsilon" in screen_text(app))
        fields.put("context", "4096")
        fields.put("epsilon", "1e-5")
        await until(pilot, lambda: "writes ~" in screen_text(app))
        await pilot.press("escape", "r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, ConvertStep)
        assert (step.legacy_context, step.legacy_epsilon) == (4096, 1e-5)
        assert "--legacy-context 4096 --legacy-epsilon 1e-05" in app.did


async def test_an_adapter_names_its_base() -> None:
    bench = ScriptedWorkbench()
    card = {"format": "safetensors", "kind": "adapter", "adapter": True, "parameters": 1_000_000}
    model = next(entry for entry in data.models() if entry.name == "qwen3-8b")
    adapter = REPLACE(model, id=data.digest("tone")[:12], name="tone", card=card, bytes=4 << 20, parent=None)
    bench.catalogue[adapter.id] = adapter
    async with running(bench, size=(120, 40), mode="quantize") as (app, pilot, _):
        fields = await _chosen(app, pilot, "tone")
        await until(pilot, lambda: "the one it names" in screen_text(app))
        assert [shown for shown in fields.pick("base").choices if shown == "tone"] == []
        fields.pick("base").take("qwen3-8b")
        await until(pilot, lambda: "writes ~" in screen_text(app))
        await pilot.press("escape", "r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, ConvertStep)
        assert step.base == model.id
        assert app.did == "lathe convert tone --to gguf --outtype auto --base qwen3-8b"


async def test_a_checkpoint_goes_to_onnx_or_to_shards() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        fields = await _chosen(app, pilot, "stdlib-4m")
        fields.put("split", "four")
        await until(pilot, lambda: "is no size" in screen_text(app))
        fields.put("split", "2MB")
        await until(pilot, lambda: "is no size" not in screen_text(app))
        step = _quantize(app).step()
        assert isinstance(step, ConvertStep)
        assert step.split_max_bytes == 2_000_000
        fields.pick("make").take("ONNX")
        await until(pilot, lambda: "Export · stdlib-4m" in screen_text(app))
        assert "split at" not in screen_text(app)
        fields.put("opset", "18")
        step = _quantize(app).step()
        assert isinstance(step, ConvertStep)
        assert (step.to, step.outtype, step.opset, step.split_max_bytes) == ("onnx", "f32", 18, None)
        assert not _submitted(bench)


async def test_layers_are_left_out_by_number() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, _):
        fields = await _chosen(app, pilot, "qwen3-8b-f16")
        fields.put("prune", "1, x")
        await until(pilot, lambda: "is no layer's number" in screen_text(app))
        fields.put("prune", "34, 35")
        await until(pilot, lambda: "is no layer's number" not in screen_text(app))
        step = _quantize(app).step()
        assert isinstance(step, QuantizeStep)
        assert step.prune_layers == (34, 35)
        assert "--prune-layer 34 --prune-layer 35" in _quantize(app).command()


async def test_models_are_chosen_from_a_list() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, _):
        await until(pilot, lambda: "writes" in screen_text(app))
        place = _quantize(app)
        await pilot.press("enter")
        await until(pilot, lambda: "type to narrow" in screen_text(app))
        await type_text(pilot, "stdlib-4m-f16")
        await pilot.press("enter")
        await until(pilot, lambda: place.source is not None and place.source.name == "stdlib-4m-f16")
        await until(
            pilot, lambda: "Quantize · stdlib-4m-f16" in screen_text(app) and "stdlib-4m-q8_0" in screen_text(app)
        )


async def test_keys_of_models_open_the_forms_with_the_model() -> None:
    async with running(size=(120, 40), mode="models") as (app, pilot, _):
        await until(pilot, lambda: "stdlib-4m-f16" in screen_text(app))
        app.screen.query_one(Grid).select(data.digest("stdlib-4m-f16")[:12])
        await pilot.press("n")
        await until(pilot, lambda: "Quantize · stdlib-4m-f16" in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: app.current_mode == "tune" and "Wishes" in screen_text(app))
        place = _tune(app)
        await until(pilot, lambda: place.source is not None and place.source.name == "stdlib-4m-f16")
        await pilot.press("left_square_bracket")
        await until(pilot, lambda: app.current_mode == "quantize")


async def test_one_key_measures_a_variant_against_full_precision() -> None:
    async with running(size=(160, 50), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "writes" in screen_text(app))
        grid = app.screen.query_one(Grid)
        grid.focus()
        grid.select(data.digest("qwen3-8b-q5_k_m")[:12])
        await pilot.press("m")
        await until(pilot, lambda: len(_submitted(bench)) == 2)
        first, second = _submitted(bench)
        assert isinstance(first, PerplexityStep)
        assert isinstance(second, KldStep)
        assert (first.model, second.model) == (grid.cursor, grid.cursor)
        assert app.board.model(second.base).name == "qwen3-8b-f16"  # type: ignore[union-attr]
        await until(pilot, lambda: "waits" in screen_text(app))
        for key, loss in (("qwen3-8b-q5_k_m", 0.004), ("qwen3-8b-q4_k_m", 0.0213)):
            entry = bench.catalogue[data.digest(key)[:12]]
            bench.catalogue[entry.id] = REPLACE(entry, measured={**entry.measured, "mean_kld": loss})
        await app.link.refresh_models()
        await tick(app, pilot, bench)
        await until(pilot, lambda: "0.0213" in screen_text(app) and "KLD · against size" in screen_text(app))


async def test_a_matrix_that_was_collected_is_used() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "writes" in screen_text(app))
        await pilot.press("i")
        await until(pilot, lambda: "Calibration text" in screen_text(app))
        await type_text(pilot, "/t/calm.txt")
        await pilot.press("enter")
        await until(pilot, lambda: bool(_submitted(bench)))
        assert isinstance(_submitted(bench)[0], ImatrixStep)
        job = next(job for job in bench.queue.values() if isinstance(job.step, ImatrixStep))
        made = Artefact(name="m", path="/models/m-IMATRIX.gguf", format="imatrix", bytes=1)
        bench._change(job, state="done", finished_at=bench.now, outcome=Outcome(artefacts=(made,)))
        await until(pilot, lambda: app.screen.query_one(Fields)["imatrix"] == made.path)


async def test_the_job_is_watched_and_can_be_stopped() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "j-118 · quantize · running" in screen_text(app))
        await tick(app, pilot, bench, 10)
        await until(pilot, lambda: "of 399 tensor" in screen_text(app))
        assert app.screen.query_one(JobPanel).job is not None
        await pilot.press("x")
        await until(pilot, lambda: ("cancel", "j-118", False) in bench.calls)


async def test_an_engine_that_cannot_foresee_is_an_answer() -> None:
    async with running(size=(120, 40), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "writes" in screen_text(app))
        bench.fail["forecast"] = LatheError("the forecast crashed (segmentation fault)")
        app.screen.query_one(Fields).pick("type").take("Q6_K")
        await until(pilot, lambda: "segmentation fault" in screen_text(app))
        await tick(app, pilot, bench)
        assert app.is_running


@pytest.mark.parametrize(("mode", "keys"), [("quantize", "rmibx"), ("tune", "rmx")])
async def test_a_read_only_session_only_looks(mode: str, keys: str) -> None:
    async with running(size=(120, 40), mode=mode, read_only=True) as (app, pilot, bench):
        await until(pilot, lambda: "qwen3-8b-f16" in screen_text(app))
        await pilot.press(*keys)
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert not [call for call in bench.calls if call[0] in ("submit", "cancel")]


# -- tune -------------------------------------------------------------------------------------------------------------
async def test_wishes_become_a_search(tmp_path: Path) -> None:
    text = tmp_path / "calibration.txt"
    text.write_text("import os\n")
    async with running(size=(120, 40), mode="tune") as (app, pilot, bench):
        await until(pilot, lambda: "mix 2.89 MB" in screen_text(app))
        fields = app.screen.query_one(Fields)
        await pilot.press("r")
        await until(pilot, lambda: "which text shall it be" in screen_text(app))
        fields.put("text", "/nowhere/at/all")
        await until(pilot, lambda: "there is no file" in screen_text(app))
        fields.put("text", str(text))
        fields.put("max_kld", "zero")
        await until(pilot, lambda: "is no number" in screen_text(app))
        fields.put("max_kld", "0.02")
        fields.put("max_size", "Q4_K_M")
        fields.put("min_speed", "20")
        await until(pilot, lambda: "makes the file" in screen_text(app))
        assert not _submitted(bench)
        await pilot.press("r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, TuneStep)
        assert (step.max_size, step.max_kld, step.min_tokens_per_s, step.minutes) == ("Q4_K_M", 0.02, 20.0, 10.0)
        assert (step.text, app.board.model(step.model).name) == (str(text), "qwen3-8b-f16")  # type: ignore[union-attr]
        assert "--max-kld 0.02" in app.did


async def test_an_embedder_is_tuned_by_distance(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("passages\n")
    bench = ScriptedWorkbench()
    bench.documents[script.JOB_ID] = script.document_of_an_embedder()
    embedder = data.digest("qwen3-8b-q5_k_m")[:12]
    entry = bench.catalogue[embedder]
    bench.catalogue[embedder] = REPLACE(entry, card={**entry.card, "pooling": "mean"})
    async with running(bench, size=(160, 50), mode="tune") as (app, pilot, bench):
        await until(pilot, lambda: "distance against size" in screen_text(app))
        shown = screen_text(app)
        assert all(
            word in shown for word in ("same nearest", "neighbours", "read/s", "1e-5 of distance", "passages of")
        )
        assert "KV cache" not in shown
        assert "prompt/s" not in shown
        fields = app.screen.query_one(Fields)
        assert "max KLD" in shown
        assert "max dist." not in shown, "the model chosen generates"
        app.screen.query_one("#points", Grid).focus()
        await pilot.press("enter")
        await until(pilot, lambda: "ten nearest kept" in screen_text(app) and "mean distance" in screen_text(app))
        await pilot.press("escape")
        fields.put("max_kld", "0.02")
        _tune(app).open_key(embedder)
        fields.put("text", str(text))
        await until(pilot, lambda: "max dist." in screen_text(app) and "max KLD" not in screen_text(app))
        fields.put("max_distance", "0.001")
        await until(pilot, lambda: "0.001" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: bool(_submitted(bench)))
        (step,) = _submitted(bench)
        assert isinstance(step, TuneStep)
        assert (step.model, step.max_kld, step.max_distance) == (embedder, None, 0.001)
        assert "--max-distance 0.001" in app.did
        assert "--max-kld" not in app.did


async def test_a_point_is_made_as_it_was_found() -> None:
    async with running(size=(160, 50), mode="tune") as (app, pilot, bench):
        await until(pilot, lambda: "mix 2.89 MB" in screen_text(app))
        grid = app.screen.query_one(Grid)
        grid.focus()
        points = script.points()
        mix = next(number for number, point in enumerate(points) if point.mix)
        recipe = next(number for number, point in enumerate(points) if point.label == "Q4_K_M")
        grid.select(str(mix))
        await pilot.press("m")
        await until(pilot, lambda: len(_submitted(bench)) == 1)
        grid.select(str(recipe))
        await pilot.press("m")
        await until(pilot, lambda: len(_submitted(bench)) == 2)
        again, plain = _submitted(bench)
        assert isinstance(again, TuneStep)
        assert again.mix == points[mix].mix
        assert (again.max_size, again.text, again.name) == (None, f"{data.HOME}/calibration.txt", "stdlib-4m-mix-2.36")
        assert isinstance(plain, QuantizeStep)
        assert (plain.type, plain.imatrix) == ("Q4_K_M", f"{data.HOME}/tune/imatrix.gguf")


async def test_frontier_filters_map_and_views() -> None:
    async with running(size=(80, 24), mode="tune") as (app, pilot, _):
        await until(pilot, lambda: "Q4_K_M" in screen_text(app))
        grid = app.screen.query_one(Grid)
        assert len(grid.rows) == 10
        await pilot.press("f")
        await until(pilot, lambda: len(grid.rows) == 5)
        grid.filter("kld<0.001")
        assert [row.fields["mix"] for row in grid.rows] == ["yes", "yes"]
        grid.filter("")
        await pilot.press("w")
        await until(pilot, lambda: "●" in screen_text(app) and "KLD against size" in screen_text(app))
        await pilot.press("w")
        await until(pilot, lambda: "cost of each tensor as Q4_K" in screen_text(app))
        await pilot.press("c")
        await until(pilot, lambda: "cost of each tensor as Q6_K" in screen_text(app))
        await pilot.press("v")
        await until(pilot, lambda: "types of mix" in screen_text(app))
        await pilot.press("w")
        await until(pilot, lambda: "Ways to run" in screen_text(app) and "KV cache" in screen_text(app))
        await pilot.press("w", "enter")
        assert app.is_running


async def test_ways_to_run_are_a_table_with_flags_to_take_along() -> None:
    async with running(size=(160, 50), mode="tune") as (app, pilot, bench):
        await until(pilot, lambda: "Ways to run · mix 4.60 MB · best first" in screen_text(app))
        assert "no such device" in screen_text(app)
        assert "took 09:54, 1 thing left out" in screen_text(app)
        grid = app.screen.query_one("#way-list", Grid)
        assert [row.cells[0] for row in grid.rows][:2] == [("*", "good"), (" ", "good")]
        grid.focus()
        await pilot.press("down", "y")
        assert bench.calls == [] or app.is_running
        place = _tune(app)
        assert place.copy_text() == ("--kv-type f16 --threads 8 --gpu-layers 0", "Flags")
        await pilot.press("enter")
        await until(pilot, lambda: "peak memory" in screen_text(app) and "A way to run" in screen_text(app))
        await pilot.press("escape")
        app.screen.query_one("#points", Grid).focus()
        await pilot.press("enter")
        await until(pilot, lambda: "predicted KLD" in screen_text(app) and "peak memory" in screen_text(app))


async def test_a_search_that_timed_nothing_leaves_the_room_to_the_map() -> None:
    bench = ScriptedWorkbench()
    untimed = msgspec.json.decode(script.document())
    untimed["runs"] = []
    bench.documents[script.JOB_ID] = msgspec.json.encode(untimed).decode()
    async with running(bench, size=(120, 40), mode="tune") as (app, pilot, _):
        await until(pilot, lambda: "cost of each tensor" in screen_text(app))
        assert "Ways to run" not in screen_text(app)


async def test_a_point_has_every_figure_and_a_broken_result_says_so() -> None:
    async with running(size=(120, 40), mode="tune") as (app, pilot, bench):
        await until(pilot, lambda: "mix 2.89 MB" in screen_text(app))
        app.screen.query_one(Grid).focus()
        await pilot.press("enter")
        await until(pilot, lambda: "predicted KLD" in screen_text(app) and "tensors" in screen_text(app))
        await pilot.press("escape")
        bench.documents["j-500"] = "{}"
        bench.queue["j-500"] = REPLACE(script.job(), id="j-500", created_at=bench.now)
        await tick(app, pilot, bench)
        await until(pilot, lambda: "cannot be read" in screen_text(app))


# -- views ------------------------------------------------------------------------------------------------------------
def test_what_is_not_measured_is_not_ranked() -> None:
    members = view.family(next(e for e in data.models() if e.name == "qwen3-8b-q4_k_m"), data.models())
    assert members[0].bytes >= members[-1].bytes
    assert {entry.name for entry in members} >= {"qwen3-8b", "qwen3-8b-f16", "qwen3-8b-q4_k_m"}
    base = view.base_of(members)
    assert base is not None
    assert base.name == "qwen3-8b-f16"
    bare = [REPLACE(entry, measured={}) for entry in members]
    assert view.best(bare, view.base_of(bare)) == frozenset()
    worse = [
        REPLACE(entry, measured={"mean_kld": 0.5}) if entry.name.endswith("q5_k_m") else
        REPLACE(entry, measured={"mean_kld": 0.1}) if entry.name.endswith("q4_k_m") else entry
        for entry in bare
    ]  # fmt: skip
    names = {entry.name for entry in worse if entry.id in view.best(worse, base)}
    assert names == {"qwen3-8b-f16", "qwen3-8b-q4_k_m"}


@pytest.mark.parametrize(
    ("own", "comparable", "state"),
    [
        ({}, True, ""),
        ({"context": 512, "chunks": 40}, True, ""),
        ({"context": 2048, "chunks": 10}, False, "other context"),
        ({"context": 512, "chunks": 8}, False, "other text"),
        ({"context": 512, "text_sha256": "b" * 64}, False, "other text"),
    ],
)
def test_perplexities_compare_only_when_measured_alike(own: dict[str, Any], comparable: bool, state: str) -> None:
    how = {"context": 512, "chunks": 40, "text_sha256": "a" * 64}
    by_name = {entry.name: entry for entry in data.models()}
    base = REPLACE(by_name["qwen3-8b-f16"], measured={"perplexity": 9.12, **how})
    entry = REPLACE(by_name["qwen3-8b-q4_k_m"], measured={"perplexity": 9.2, **own})
    assert (view.rise(entry, base) is not None) == comparable
    assert (entry.id in view.best([base, entry], base)) == comparable
    row = next(row for row in view.rows([base, entry], {}, [], None, UNICODE) if row.key == entry.id)
    assert (row.cells[8][0] != "-", row.cells[-1][0]) == (comparable, state)
    assert row.cells[7] == "9.200", "the figure itself stays"


def test_parents_that_form_a_circle_end() -> None:
    first, second = (REPLACE(entry, parent=other) for entry, other in zip(data.models()[:2], ("b", "a"), strict=True))
    first, second = REPLACE(first, id="a"), REPLACE(second, id="b")
    assert {entry.id for entry in view.family(first, [first, second])} == {"a", "b"}


def test_a_wish_dims_what_misses_it() -> None:
    rows = tuned.rows(script.points(), Wish(max_divergence=0.005))
    assert {row.fields["fits"] for row in rows} == {"yes", "no"}
    assert all((row.fields["kld"] <= 0.005) == (row.fields["fits"] == "yes") for row in rows)  # type: ignore[operator]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=lambda glyphs: glyphs.name)
def test_the_map_and_the_plot_fit_every_width(glyphs: Any) -> None:
    points = script.points()
    for width in (20, 40, 78, 120, 158):
        for mix in (None, script.mix()):
            lines = tuned.heat(script.sensitivity(), "Q4_K", mix, width, glyphs)
            assert all(width_of(line) == width for line in lines)
        for height in (3, 8, 30):
            lines = scatter(tuned.dots(points, points[0]), width, height, glyphs, show_x=str, show_y=str)
            assert all(width_of(line) == width for line in lines)
            assert len(lines) in (0, height)
            text = "".join(span for line in lines for span, _ in line)
            assert glyphs is UNICODE or text.isascii()


def test_a_plot_of_odd_figures_is_drawn() -> None:
    for dots in (
        [Dot(0, 0)], [Dot(1, 0), Dot(1, 0)], [Dot(1e12, 1e-12, front=True), Dot(1, 1e9, front=True)],
        [Dot(5, 0.1, "a\x1b[31m[/bold]", chosen=True)], [Dot(5, 0.1, "表" * 30)],
    ):  # fmt: skip
        lines = scatter(dots, 60, 12, UNICODE, show_x=lambda x: f"{x:g}", show_y=lambda y: f"{y:.1g}", floor=0.02)
        assert [width_of(line) for line in lines] == [60] * 12


def test_the_map_of_a_foreign_model_is_drawn() -> None:
    names = {"blk.0.ssm_in.weight": {"Q4_K": 0.1}, "blk.10.x": {"Q4_K": 0.0}, "out\x1b": {"Q4_K": 1e-9}}
    lines = tuned.heat(names, "Q4_K", {"blk.10.x": "Q8_0"}, 60, UNICODE)
    assert all(width_of(line) == 60 for line in lines)
    assert tuned.heat({}, "Q4_K", None, 60, UNICODE)


def test_overrides_are_read_as_written() -> None:
    assert view.overrides("") == {}
    assert view.overrides("a=b=q6_K,") == {"a=b": "q6_K"}
    with pytest.raises(ValueError, match="REGEX=TYPE"):
        view.overrides("x=")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("2.5 GiB", 2_684_354_560), ("900", 900), ("1k", 1000), ("8MB", 8_000_000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size
    assert view.size_check(text) == ""


@pytest.mark.parametrize("text", ["four", "-1", "0", "1.2.3GB", "4 apples"])
def test_what_is_no_size_is_said(text: str) -> None:
    assert view.size_check(text)


def test_the_document_is_what_the_job_writes() -> None:
    assert msgspec.json.decode(script.document())["points"][0]["label"].startswith("mix")


async def test_an_embedder_is_measured_by_its_vectors() -> None:
    bench = ScriptedWorkbench()
    wanted = data.digest("qwen3-8b-q5_k_m")[:12]
    for entry in list(bench.catalogue.values()):
        bench.catalogue[entry.id] = REPLACE(entry, card={**entry.card, "pooling": "mean"})
    bench.catalogue[wanted] = REPLACE(
        bench.catalogue[wanted], measured={"mean_distance": 0.0081, "same_nearest": 0.94, "mean_kld": 7.0}
    )
    async with running(bench, size=(160, 50), mode="quantize") as (app, pilot, bench):
        await until(pilot, lambda: "0.0081" in screen_text(app) and "distance of vectors" in screen_text(app))
        grid = app.screen.query_one(Grid)
        grid.focus()
        grid.select(wanted)
        await pilot.press("m")
        await until(pilot, lambda: bool(_submitted(bench)))
        members = view.family(bench.catalogue[wanted], list(bench.catalogue.values()))
        base = view.base_of(members)
        assert base is not None
        assert _submitted(bench) == [KldStep(model=wanted, base=base.id)]
        grid.select(base.id)
        await pilot.press("m")
        await until(pilot, lambda: "is an embedder" in screen_text(app))
        assert len(_submitted(bench)) == 1, "nothing is nearer to it than itself"
