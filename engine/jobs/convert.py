"""Job: a checkpoint folder becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path

from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.jobs.outputs import model_sha256, output_path, reporter, variant_name
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.release import RELEASE
from lathe.engine.steps import ConvertStep
from lathe.quantize.artefact import file_sha256


def run(step: ConvertStep, context: JobContext) -> Outcome:
    """Convert, and tell what came out."""
    from lathe.quantize.checkpoint import read_checkpoint
    from lathe.quantize.convert.convert import convert_checkpoint
    from lathe.quantize.convert.plan import guess_outtype

    entry = context.model(step.model)
    if step.to != "gguf":
        raise UnavailableError(f"{step.to} is not among the formats this release converts to", hint="use --to gguf")
    if entry.format != "safetensors":
        raise UsageError(f"{entry.name} is {entry.format}; only safetensors checkpoints are converted")
    source = Path(entry.path)
    kind = step.outtype if step.outtype != "auto" else guess_outtype(read_checkpoint(source).tensors).name
    output = output_path(context, step.output, step.name or variant_name(entry, kind))
    source_sha256 = entry.sha256 or model_sha256(entry, reporter(context, 1, 3))
    made = convert_checkpoint(source, output, outtype=step.outtype, force=step.force, report=reporter(context, 2, 3))
    for warning in made.warnings:
        context.log(warning, "warn")
    recipe: dict[str, Figure] = {
        "made_by": "convert", "source": entry.name, "source_sha256": source_sha256, "outtype": step.outtype,
        "lathe": RELEASE,
    }  # fmt: skip
    artefact = Artefact(
        name=step.name or output.stem,
        path=str(output),
        format="gguf",
        bytes=made.bytes,
        sha256=file_sha256(output, reporter(context, 3, 3)),
        parent=entry.id,
        recipe=recipe,
    )
    figures: dict[str, Figure] = {
        "bytes": made.bytes,
        "tensors": made.tensors,
        "parameters": made.parameters,
        "bits_per_weight": 8 * made.bytes / made.parameters if made.parameters else None,
        "file_type": made.file_type,
        "architecture": made.architecture,
        "convert_s": made.seconds,
        "warnings": len(made.warnings),
    }
    if made.conformance is not None:
        figures["tokenizer_texts"] = made.conformance.texts
    context.log(f"{made.tensors} tensors, {made.bytes:,} bytes, {made.file_type}: {output}")
    return Outcome(artefacts=(artefact,), figures=figures)
