"""Forecasts of the scripted workbench, and what its finished tune job found. Pure values."""

from __future__ import annotations

import math

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.jobs.values import Artefact, Job, Outcome, Progress
from lathe.engine.states import Fit, Footprint, Forecast
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep, TuneStep
from lathe.engine.tune.frontier import Point
from lathe.engine.tune.frontier_file import FrontierFile
from lathe.engine.tune.halving import Run
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.types import FILE_TYPES
from lathe.store.models import ModelEntry
from support import scripted_data as data

JOB_ID = "j-113"
KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYERS = 4
_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "auto": 16.0}
_ONNX_BITS = {"int8": 8.1, "int8-static": 9.0, "int4": 5.0, "float16": 16.0}


def forecast(step: ConvertStep | QuantizeStep | OnnxQuantizeStep, entry: ModelEntry, taken: set[str]) -> Forecast:
    """What the step would make, from bits per weight alone."""
    if isinstance(step, OnnxQuantizeStep):
        return _onnx(step, entry)
    kind = step.type if isinstance(step, QuantizeStep) else step.outtype
    name = step.name or f"{entry.name.removesuffix('-f16')}-{kind.lower()}"
    problem = None
    bits = FILE_TYPES[kind].bits if isinstance(step, QuantizeStep) else _BITS[kind]
    if isinstance(step, QuantizeStep) and FILE_TYPES[kind].importance == "needed" and not step.imatrix:
        problem = Failure("E_IMATRIX_NEEDED", f"blk.0.attn_k.weight as {kind} needs importances", "make a matrix", 66)
    elif isinstance(step, QuantizeStep) and not step.allow_requantize and entry.card.get("bits_per_weight", 0.0) < 16:  # type: ignore[operator]
        problem = Failure("E_REQUANTIZE", "token_embd.weight is Q6_K already", "start from an F16 file", 77)
    size = int(float(entry.card.get("parameters", 0)) * bits / 8)  # type: ignore[arg-type]
    footprint = Footprint(weights=size, kv_cache=data.GIB, compute=300 * data.MIB, overhead=200 * data.MIB)
    return Forecast(
        output=f"{data.HOME}/models/{name}.gguf",
        taken="other" if name in taken else "",
        source_bytes=entry.bytes,
        bytes=size,
        exact=isinstance(step, QuantizeStep),
        bits_per_weight=bits,
        tensors=399,
        mix={"Q4_K": int(size * 0.7), "Q6_K": int(size * 0.29), "F32": int(size * 0.01)},
        free=490 * data.GIB,
        problem=problem,
        fit=Fit(footprint=footprint, options=LoadOptions(context=8192, slots=4), verdict="fits",
                available={"nvidia0": 11 * data.GIB}),
    )  # fmt: skip


def _onnx(step: OnnxQuantizeStep, entry: ModelEntry) -> Forecast:
    bits = _ONNX_BITS[step.mode]
    size = int(float(entry.card.get("parameters", 0)) * bits / 8)  # type: ignore[arg-type]
    problem = None
    if step.mode == "int8-static" and not step.text:
        problem = Failure("E_USAGE", "static quantization needs a calibration text", "pass --text FILE", 2)
    return Forecast(
        output=f"{data.HOME}/models/{step.name or f'{entry.name}-{step.mode}'}", source_bytes=entry.bytes, bytes=size,
        exact=False, bits_per_weight=bits, tensors=210, mix={"INT8": int(size * 0.9), "F32": int(size * 0.1)},
        free=490 * data.GIB, problem=problem,
    )  # fmt: skip


def points() -> tuple[Point, ...]:
    """llama.cpp's recipes and the mixes found for the same sizes."""
    rows = (("Q3_K_M", 2_361_000, 0.0471), ("Q4_K_M", 2_888_416, 0.0132), ("Q5_K_M", 3_308_000, 0.0041),
            ("Q6_K", 3_757_000, 0.00118), ("Q8_0", 4_596_960, 0.00009))  # fmt: skip
    found: list[Point] = []
    for label, size, kld in rows:
        found.append(_point(label, None, size, kld))
        found.append(_point(f"mix {size / 1e6:,.2f} MB", mix(), size - 900, kld * 0.55))
    return tuple(sorted(found, key=lambda point: point.bytes))


def mix() -> dict[str, str]:
    """A type for every tensor."""
    types = ("Q3_K", "Q4_K", "Q5_K", "Q6_K")
    names = sensitivity()
    return {name: types[index % len(types)] for index, name in enumerate(names)}


def sensitivity() -> dict[str, dict[str, float]]:
    """What each tensor would cost, over four orders of magnitude."""
    names = [f"blk.{layer}.{kind}.weight" for layer in range(LAYERS) for kind in KINDS] + ["token_embd.weight"]
    kinds = ("Q3_K", "Q4_K", "Q6_K")
    return {
        name: {kind: 10 ** (-5 + 2.5 * math.sin(index) ** 2 - step) for step, kind in enumerate(kinds)}
        for index, name in enumerate(names)
    }


def document() -> str:
    """The JSON artefact."""
    costs = sensitivity()
    file = FrontierFile(
        model="stdlib-4m-f16", model_sha256=data.digest("f16"), text="calibration.txt", text_sha256=data.digest("text"),
        context=256, chunks=48, feedback=True, exact=True, readings=211, points=points(), sensitivity=costs,
        imatrix=f"{data.HOME}/tune/imatrix.gguf", runs=runs(), seconds=594.0, seconds_asked=600.0,
        left_out=("the speed of Q8_0",),
        tensor_bytes={name: dict.fromkeys(by_kind, 100_000) for name, by_kind in costs.items()},
    )  # fmt: skip
    return msgspec.json.encode(file).decode()


def document_of_an_embedder() -> str:
    """The same search, of vectors."""
    file = msgspec.json.decode(document(), type=FrontierFile)
    found = tuple(
        msgspec.structs.replace(point, perplexity=None, neighbours=0.975, tokens_per_s=None) for point in file.points
    )
    ways = tuple(msgspec.structs.replace(run, kv_type="", tokens_per_s=None) for run in file.runs)
    return msgspec.json.encode(msgspec.structs.replace(file, measure="distance", points=found, runs=ways)).decode()


def runs() -> tuple[Run, ...]:
    """Ways to run the closest file, as successive halving left them."""
    found = []
    for number, (kv_type, threads, batch) in enumerate(
        (("f16", 8, 512), ("f16", 8, 128), ("q8_0", 8, 512), ("q8_0", 8, 128), ("f16", 4, 512), ("q8_0", 4, 512))
    ):
        found.append(
            Run(label="mix 4.60 MB", kv_type=kv_type, threads=threads, batch=batch, gpu_layers=0,
                divergence=4.95e-05 if kv_type == "f16" else 0.00041,
                divergence_99_9=0.00109 if kv_type == "f16" else 0.0062,
                prompt_tokens_per_s=9400.0 - 700 * number, tokens_per_s=1510.0 - 90 * number, load_s=0.051,
                peak_bytes=(96 + 4 * (kv_type == "f16")) * data.MIB, rounds=(4, 4, 2, 1, 1, 1)[number])
        )  # fmt: skip
    bad = Run(label="mix 4.60 MB", kv_type="q4_0", threads=8, batch=512, gpu_layers=-1, rounds=1,
              problem="no such device")  # fmt: skip
    return (*found, bad)


def job() -> Job:
    """The job that found it."""
    made = Artefact(name="stdlib-4m-FRONTIER.json", path=f"{data.HOME}/models/stdlib-4m-FRONTIER.json", format="json",
                    bytes=len(document()))  # fmt: skip
    step = TuneStep(model="stdlib-4m-f16", text=f"{data.HOME}/calibration.txt", minutes=10)
    return Job(id=JOB_ID, step=step, title="stdlib-4m-f16", state="done", created_at=data.T0 - 9000,
               started_at=data.T0 - 8990, finished_at=data.T0 - 8400, attempts=1,
               progress=Progress(label="second pass", done=1, total=1),
               outcome=Outcome(artefacts=(made,), figures={"readings": 211, "points": 10}))  # fmt: skip


def _point(label: str, types: dict[str, str] | None, size: int, kld: float) -> Point:
    return Point(
        label=label, mix=types, bytes=size, bits_per_weight=8 * size / 4_196_608,
        predicted=kld * 1.04 if types else None, divergence=kld, error=kld * 0.02, divergence_99_9=kld * 22,
        agreement=max(0.5, 1 - kld * 4), perplexity=5.71 * math.exp(kld), prompt_tokens_per_s=9000.0,
        tokens_per_s=2400.0 - size / 5000, load_s=0.05, peak_bytes=size + 90 * data.MIB,
    )  # fmt: skip
