"""Job: an ONNX model becomes a smaller one, compared with what it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.jobs.outputs import model_sha256, output_path, reporter, variant_name
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.release import RELEASE
from lathe.engine.steps import OnnxQuantizeStep
from lathe.quantize.artefact import file_sha256
from lathe.store.models import ModelEntry

if TYPE_CHECKING:
    from lathe.engine.onnx.quantizing import OnnxQuantizeOptions

_IN_RECIPE = ("mode", "per_channel", "symmetric", "block_size", "operators", "exclude", "reduce_range", "calibration")


def check_source(step: OnnxQuantizeStep, entry: ModelEntry) -> None:
    """Raise UsageError unless the model is one that can be quantized so."""
    if entry.format != "onnx":
        raise UsageError(
            f"{entry.name} is {entry.format}, and {step.mode} is for ONNX", hint="`lathe convert --to onnx` first"
        )


def options_of(step: OnnxQuantizeStep) -> OnnxQuantizeOptions:
    """The part of a step that says how."""
    from lathe.engine.onnx.quantizing import OnnxQuantizeOptions

    return OnnxQuantizeOptions(
        mode=step.mode, per_channel=step.per_channel, symmetric=step.symmetric, block_size=step.block_size,
        operators=step.operators, exclude=step.exclude, reduce_range=step.reduce_range, calibration=step.calibration,
        samples=step.samples, sample_tokens=step.sample_tokens,
    )  # fmt: skip


def run(step: OnnxQuantizeStep, context: JobContext) -> Outcome:
    """Quantize, compare, and tell what came out."""
    from lathe.engine.catalogue.scan import identify
    from lathe.engine.measure.chunks import read_text
    from lathe.engine.native.llama import physical_cores
    from lathe.engine.onnx.quantizing import quantize

    entry = context.model(step.model)
    check_source(step, entry)
    output = output_path(context, step.output, step.name or variant_name(entry, step.mode), "")
    text = Path(step.text).expanduser() if step.text else None
    options = options_of(step)
    source_sha256 = entry.sha256 or model_sha256(entry, reporter(context, 1, 3))
    made = quantize(
        Path(entry.path), output, options, text=read_text(text) if text else None,
        threads=step.threads or physical_cores(), force=step.force, report=reporter(context, 2, 3),
    )  # fmt: skip
    for warning in made.warnings:
        context.log(warning, "warn")
    recipe: dict[str, Figure] = {"made_by": "onnx-quantize", "source": entry.name, "source_sha256": source_sha256}
    recipe |= {name: msgspec.json.encode(getattr(step, name)).decode() for name in _IN_RECIPE}
    recipe |= {"text_sha256": file_sha256(text) if text else None, "lathe": RELEASE}
    artefact = Artefact(
        name=step.name or output.name, path=str(output), format="onnx", bytes=made.bytes,
        sha256=model_sha256(identify(output), reporter(context, 3, 3)), parent=entry.id, recipe=recipe,
    )  # fmt: skip
    agreement = made.agreement
    figures: dict[str, Figure] = {
        "bytes": made.bytes, "ratio": made.bytes / made.source_bytes, "quantize_s": made.seconds,
        "max_difference": agreement.max_difference, "output_scale": agreement.scale,
        "output_cosine": agreement.cosine, "output_kld": agreement.mean_kld, "output_same_top": agreement.same_top,
    }  # fmt: skip
    rows: tuple[dict[str, Figure], ...] = tuple(
        {"operator": name, "nodes": count} for name, count in made.operators.items()
    )
    context.log(f"{made.bytes:,} bytes, {sum(made.operators.values())} quantized nodes: {output}")
    return Outcome(artefacts=(artefact,), figures=figures, rows=rows)
