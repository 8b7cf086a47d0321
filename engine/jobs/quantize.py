"""Job: a GGUF model becomes a smaller one, with its provenance in the file and in the registry.

Invariant: an output that was made by the same recipe from the same bytes is recognised by the key in its metadata and
kept, so that a resumed or repeated job does its work once.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from lathe.engine.jobs.outputs import (
    gguf_path,
    model_sha256,
    output_path,
    recipe_key,
    reporter,
    tools,
    variant_name,
)
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.release import RELEASE
from lathe.engine.steps import QuantizeStep
from lathe.quantize.artefact import file_sha256
from lathe.quantize.errors import GgufError, InputMissing
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.imatrix import read_imatrix
from lathe.quantize.plan import PlannedTensor, QuantizeOptions, QuantPlan
from lathe.quantize.tensor_errors import TensorError, tensor_errors

KEY = "lathe.recipe"
"""Metadata key under which an output carries the hash of its recipe."""


def run(step: QuantizeStep, context: JobContext) -> Outcome:
    """Quantize, or recognise that it was done."""
    from lathe.engine.catalogue.hashing import combine
    from lathe.quantize.quantizer import plan_quantization, quantize_gguf

    entry = context.model(step.model)
    source = gguf_path(entry)
    output = output_path(context, step.output, step.name or variant_name(entry, step.type))
    source_sha256 = entry.sha256 or model_sha256(entry, reporter(context, 1, 3))
    recipe = recipe_of(step, entry.name, source_sha256)
    options = options_of(step, recipe)
    plan = plan_quantization(source, options)
    for warning in plan.warnings:
        context.log(warning, "warn")
    context.log(f"{plan.source_bytes:,} -> {plan.bytes:,} bytes, {plan.bits_per_weight:.2f} bits per weight")
    if not step.force and len(plan.files) == 1 and made_before(output, recipe_key(recipe), plan):
        context.log(f"{output} was made by this very recipe: kept")
        files: tuple[Path, ...] = (output,)
        hashes: tuple[str, ...] = (file_sha256(output, reporter(context, 3, 3)),)
        seconds = 0.0
    else:
        made = quantize_gguf(source, output, options, reporter(context, 2, 3), force=step.force)
        files, hashes, seconds = made.files, made.sha256, made.seconds
    artefact = Artefact(
        name=step.name or output.stem,
        path=str(files[0]),
        format="gguf",
        bytes=plan.bytes,
        sha256=combine([(file.name, sha256) for file, sha256 in zip(files, hashes, strict=True)]),
        parent=entry.id,
        recipe=recipe,
    )
    figures: dict[str, Figure] = {
        "bytes": plan.bytes,
        "bits_per_weight": plan.bits_per_weight,
        "ratio": plan.bytes / plan.source_bytes,
        "quantize_s": seconds,
        "warnings": len(plan.warnings),
    }
    errors = _errors(source, files, plan, options.imatrix) if step.errors else {}
    worst = max((one for one in errors.values() if one.relative is not None), key=_size_of, default=None)
    if worst is not None:
        figures |= {"worst_tensor": worst.name, "worst_error": worst.relative}
    rows: tuple[dict[str, Figure], ...] = tuple(_row(tensor, errors.get(tensor.name)) for tensor in plan.tensors)
    return Outcome(artefacts=(artefact,), figures=figures, rows=rows)


def _errors(source: Path, made: tuple[Path, ...], plan: QuantPlan, imatrix: Path | None) -> dict[str, TensorError]:
    """What the weights of each tensor lost, by its name in the output."""
    importances = read_imatrix(imatrix).importances() if imatrix else None
    origins = {tensor.name: tensor.origin for tensor in plan.tensors}
    headers = [read_header(path) for path in made]
    return {one.name: one for one in tensor_errors(read_sharded(source), headers, origins, importances)}


def _size_of(error: TensorError) -> float:
    return error.relative or 0.0


def _row(tensor: PlannedTensor, error: TensorError | None) -> dict[str, Figure]:
    row: dict[str, Figure] = {
        "tensor": tensor.name, "from": tensor.source, "to": tensor.target, "bytes": tensor.bytes
    }  # fmt: skip
    if error is not None:
        row |= {"error": error.relative, "max_error": error.maximum, "weighted_error": error.weighted}
    return row


def recipe_of(step: QuantizeStep, source: str, source_sha256: str) -> dict[str, Figure]:
    """Everything that determines the bytes."""
    recipe: dict[str, Figure] = {"made_by": "quantize", "source": source, "source_sha256": source_sha256}
    recipe |= {"type": step.type.upper(), "imatrix_sha256": file_sha256(Path(step.imatrix)) if step.imatrix else None}
    for name in ("output_tensor_type", "token_embedding_type", "keep_output", "pure", "allow_requantize", "keep_split"):
        if getattr(step, name):
            recipe[name] = getattr(step, name)
    for name in ("tensor_types", "prune_layers", "imatrix_only", "imatrix_except", "metadata"):
        if getattr(step, name):
            recipe[name] = msgspec.json.encode(getattr(step, name)).decode()
    return recipe | tools()


def options_of(step: QuantizeStep, recipe: dict[str, Figure]) -> QuantizeOptions:
    provenance: dict[str, str | int | float | bool] = {
        KEY: recipe_key(recipe),
        "lathe.version": RELEASE,
        "lathe.source_sha256": str(recipe["source_sha256"]),
    }
    if recipe["imatrix_sha256"]:
        provenance["lathe.imatrix_sha256"] = str(recipe["imatrix_sha256"])
    return QuantizeOptions(
        type=step.type,
        tensor_types=step.tensor_types,
        output_tensor_type=step.output_tensor_type,
        token_embedding_type=step.token_embedding_type,
        keep_output=step.keep_output,
        pure=step.pure,
        allow_requantize=step.allow_requantize,
        imatrix=Path(step.imatrix).expanduser() if step.imatrix else None,
        imatrix_only=step.imatrix_only,
        imatrix_except=step.imatrix_except,
        prune_layers=step.prune_layers,
        keep_split=step.keep_split,
        metadata=provenance | step.metadata,
        threads=step.threads,
    )


def made_before(output: Path, key: str, plan: QuantPlan) -> bool:
    try:
        header = read_header(output)
    except (GgufError, InputMissing):
        return False
    return header.text(KEY) == key and header.file_bytes == plan.bytes
