"""Job: a model in another format: checkpoint, adapter or old file to GGUF, checkpoint to ONNX, GGUF to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from lathe.engine.errors import MissingError, UsageError
from lathe.engine.jobs.outputs import model_sha256, output_path, reporter, variant_name
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.measure.agreement import Agreement
from lathe.engine.paths import Home
from lathe.engine.release import RELEASE
from lathe.engine.steps import ConvertStep
from lathe.quantize.errors import UnsupportedError
from lathe.store.models import ModelEntry

if TYPE_CHECKING:
    from lathe.quantize.checkpoint import Checkpoint
    from lathe.quantize.convert.convert import ConversionReport
    from lathe.quantize.convert.restore.restore import RestoredType

_STAGES = 4
_MADE_FROM = {"gguf": ("safetensors", "ggml"), "onnx": ("safetensors",), "safetensors": ("gguf",)}
"""Target -> formats it is made from."""


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion left, for the outcome."""

    output: Path
    figures: dict[str, Figure]
    warnings: tuple[str, ...] = ()
    recipe: dict[str, Figure] = {}


def check_source(step: ConvertStep, entry: ModelEntry) -> None:
    """Raise UsageError unless the target is made from such a model."""
    if entry.format not in _MADE_FROM[step.to]:
        made_from = " or ".join(_MADE_FROM[step.to])
        raise UsageError(f"{entry.name} is {entry.format}; {step.to} is made from {made_from}")


def restored_type(step: ConvertStep) -> RestoredType:
    """The type of a checkpoint's weights."""
    if step.outtype == "q8_0":
        raise UsageError("a checkpoint's weights are f32, f16 or bf16")
    return step.outtype


def run(step: ConvertStep, context: JobContext) -> Outcome:
    """Convert, compare, and tell what came out."""
    entry = context.model(step.model)
    check_source(step, entry)
    source_sha256 = entry.sha256 or model_sha256(entry, reporter(context, 1, _STAGES))
    match step.to, entry.format:
        case "onnx", _:
            made = _onnx(step, entry, context)
        case "safetensors", _:
            made = _restored(step, entry, context)
        case _, "ggml":
            made = _legacy(step, entry, context)
        case _:
            made = _gguf(step, entry, context)
    for warning in made.warnings:
        context.log(warning, "warn")
    recipe: dict[str, Figure] = {
        "made_by": "convert", "source": entry.name, "source_sha256": source_sha256, "to": step.to,
        "outtype": step.outtype, "lathe": RELEASE,
    }  # fmt: skip
    from lathe.engine.catalogue.scan import identify

    artefact = Artefact(
        name=step.name or (made.output.stem if made.output.is_file() else made.output.name),
        path=str(made.output),
        format=step.to,
        bytes=int(made.figures["bytes"] or 0),
        sha256=model_sha256(identify(made.output), reporter(context, _STAGES, _STAGES)),
        parent=entry.id,
        recipe=recipe | made.recipe,
    )
    context.log(f"{made.figures.get('tensors', '')} tensors, {artefact.bytes:,} bytes: {made.output}")
    return Outcome(artefacts=(artefact,), figures=made.figures | {"warnings": len(made.warnings)})


def _gguf(step: ConvertStep, entry: ModelEntry, context: JobContext) -> _Made:
    from lathe.quantize.checkpoint import read_checkpoint
    from lathe.quantize.convert.adapter import convert_adapter, is_adapter
    from lathe.quantize.convert.convert import convert_checkpoint
    from lathe.quantize.convert.plan import guess_outtype
    from lathe.quantize.convert.registry import UNKNOWN_ARCHITECTURE

    source, report = Path(entry.path), reporter(context, 2, _STAGES)
    if is_adapter(source):
        output = output_path(
            context, step.output, step.name or variant_name(entry, "f16" if step.outtype == "auto" else step.outtype)
        )
        base = Path(context.model(step.base).path) if step.base else None
        made = convert_adapter(source, output, base=base, outtype=step.outtype, force=step.force, report=report)
        return _Made(output=made.output, figures=_figures(made), warnings=made.warnings)
    checkpoint = read_checkpoint(source)
    kind = guess_outtype(checkpoint.tensors).name.lower() if step.outtype == "auto" else step.outtype
    output = output_path(context, step.output, step.name or variant_name(entry, kind))
    try:
        made = convert_checkpoint(
            source, output, outtype=step.outtype, split_max_bytes=step.split_max_bytes, force=step.force, report=report
        )
    except UnsupportedError as error:
        if error.code != UNKNOWN_ARCHITECTURE:
            raise
        return _by_llama_cpp(step, checkpoint, output, kind, context, error)
    figures = _figures(made)
    if made.conformance is not None:
        figures["tokenizer_texts"] = made.conformance.texts
    warnings = [*made.warnings]
    if step.parity:
        compared, doubts = _parity(checkpoint, made.output, kind, context)
        figures |= compared
        warnings += doubts
    return _Made(output=made.output, figures=figures, warnings=tuple(warnings))


def _parity(
    checkpoint: Checkpoint, output: Path, kind: str, context: JobContext
) -> tuple[dict[str, Figure], list[str]]:
    """Figures of the comparison with transformers, and a warning where they are bad."""
    from lathe.engine.measure import parity

    context.progress("parity", 0, None, "", stage=3, stages=_STAGES)
    found = parity.check(checkpoint, output, kind)
    if found.agreement is None:
        return {"parity": f"skipped: {found.skipped}"}, []
    doubts = ["the file computes something else than the checkpoint does in transformers"] if found.doubtful else []
    return _agreement(found.agreement) | {"parity": "doubtful" if found.doubtful else "ok"}, doubts


def _by_llama_cpp(
    step: ConvertStep, checkpoint: Checkpoint, output: Path, kind: str, context: JobContext, unknown: UnsupportedError
) -> _Made:
    """Try llama.cpp's own converter, where it is installed."""
    from lathe.engine.toolchain import official, store

    try:
        toolchain = store.checked(Home(Path(context.spec.home)).toolchain)
    except MissingError:
        raise unknown from None
    context.log(f"{unknown.message}: llama.cpp's own converter is asked")
    context.progress("llama.cpp's own converter", 0, None, "", stage=2, stages=_STAGES)
    made = official.convert(toolchain, checkpoint.folder, output, outtype=kind, force=step.force)
    figures: dict[str, Figure] = {
        "bytes": made.bytes, "tensors": made.tensors, "parameters": made.parameters,
        "bits_per_weight": 8 * made.bytes / made.parameters if made.parameters else None,
        "architecture": made.architecture, "converter": "llama.cpp",
    }  # fmt: skip
    if made.conformance is not None:
        figures["tokenizer_texts"] = made.conformance.texts
    warnings: list[str] = []
    if step.parity:
        compared, warnings = _parity(checkpoint, output, kind, context)
        figures |= compared
    return _Made(
        output=output,
        figures=figures,
        warnings=tuple(warnings),
        recipe={"converter": f"llama-cpp-python {store.installed_version()}"},
    )


def _legacy(step: ConvertStep, entry: ModelEntry, context: JobContext) -> _Made:
    from lathe.quantize.convert.legacy import convert_legacy

    output = output_path(context, step.output, step.name or variant_name(entry, "gguf"))
    made = convert_legacy(
        Path(entry.path), output, context_length=step.legacy_context, rms_epsilon=step.legacy_epsilon,
        force=step.force, report=reporter(context, 2, _STAGES),
    )  # fmt: skip
    return _Made(output=made.output, figures=_figures(made), warnings=made.warnings)


def _restored(step: ConvertStep, entry: ModelEntry, context: JobContext) -> _Made:
    from lathe.quantize.convert.restore.restore import restore_checkpoint

    dtype = restored_type(step)
    output = output_path(context, step.output, step.name or variant_name(entry, "hf"), "")
    made = restore_checkpoint(
        Path(entry.path), output, outtype=dtype, force=step.force, report=reporter(context, 2, _STAGES)
    )
    figures: dict[str, Figure] = {
        "bytes": made.bytes, "tensors": made.tensors, "architecture": made.architecture, "dtype": made.dtype,
        "convert_s": made.seconds,
    }  # fmt: skip
    return _Made(output=made.output, figures=figures, warnings=made.warnings)


def _onnx(step: ConvertStep, entry: ModelEntry, context: JobContext) -> _Made:
    from lathe.engine.onnx.export import export

    if step.outtype not in ("auto", "f32", "f16"):
        raise UsageError(f"ONNX exports are f32 or f16, not {step.outtype}", hint="quantize the export: `-t int8`")
    dtype: Literal["f32", "f16"] = "f16" if step.outtype == "f16" else "f32"
    output = output_path(context, step.output, step.name or variant_name(entry, f"onnx-{dtype}"), "")
    made = export(
        Path(entry.path), output, task=step.task, opset=step.opset, dtype=dtype, force=step.force,
        report=reporter(context, 2, _STAGES),
    )  # fmt: skip
    figures: dict[str, Figure] = {
        "bytes": made.bytes, "parameters": made.parameters, "task": made.task, "opset": made.opset, "dtype": made.dtype,
        "convert_s": made.seconds, "parity": "ok",
    }  # fmt: skip
    return _Made(output=made.output, figures=figures | _agreement(made.agreement), recipe={"task": made.task})


def _agreement(found: Agreement) -> dict[str, Figure]:
    return {
        "max_difference": found.max_difference, "output_scale": found.scale, "output_cosine": found.cosine,
        "output_kld": found.mean_kld, "output_same_top": found.same_top,
    }  # fmt: skip


def _figures(made: ConversionReport) -> dict[str, Figure]:
    return {
        "bytes": made.bytes, "tensors": made.tensors, "parameters": made.parameters,
        "bits_per_weight": 8 * made.bytes / made.parameters if made.parameters else None, "file_type": made.file_type,
        "architecture": made.architecture, "shards": made.shards, "convert_s": made.seconds,
    }  # fmt: skip
