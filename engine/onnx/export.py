"""A checkpoint to ONNX through optimum, compared with the checkpoint before the folder gets its name.

Runs in a job's child: torch is loaded here and nowhere else. Invariant: the checkpoint was read by our own reader
first, so neither pickles nor code that it brings are ever touched, and no name in it leads to a network.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from lathe.engine.checkup.install import extra
from lathe.engine.errors import DataError, UnavailableError, UsageError
from lathe.engine.measure import originals
from lathe.engine.measure.agreement import Agreement, Rows, compare
from lathe.engine.onnx.folder import GRAPH, copy_small, folder_bytes, half, read_graph, write_graph
from lathe.engine.onnx.probe import open_session, rows_of, tokens_of
from lathe.quantize.artefact import require_space
from lathe.quantize.checkpoint import Checkpoint, read_checkpoint, refuse_remote_code
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.folder_artefact import new_folder
from lathe.quantize.onnx_files import read_onnx
from lathe.quantize.progress import Report, silent

Task = Literal["auto", "text-generation-with-past", "feature-extraction", "text-classification"]

_TOLERANCE = {"f32": 1e-3, "f16": 3e-2}
"""Largest difference to the checkpoint's own outputs, in their scale; what torch and ONNX Runtime differ by is 1e-5."""
_OPSETS = "opsets 14 to 23 are the usual range; without one, the architecture's own is taken"
_STEPS = ("checkpoint", "export", "compare")


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an export made."""

    output: Path
    task: str
    opset: int
    dtype: str
    bytes: int
    """Of the graph and its external data."""
    parameters: int
    agreement: Agreement
    """With the checkpoint as transformers runs it."""
    seconds: float


def export(
    source: Path,
    output: Path,
    *,
    task: Task = "auto",
    opset: int | None = None,
    dtype: Literal["f32", "f16"] = "f32",
    force: bool = False,
    report: Report = silent,
) -> ExportReport:
    """Export a checkpoint folder to a folder with `model.onnx`.

    Raises:
        UnavailableError: optimum, transformers or torch is not installed.
        UnsafeError: pickled weights, or a checkpoint that asks for its own code.
        UnsupportedError: an architecture that optimum does not export.
        DataError: what was exported computes something else than the checkpoint.
    """
    began = time.monotonic()
    checkpoint = read_checkpoint(source)
    refuse_remote_code(checkpoint)
    if "quantization_config" in checkpoint.config:
        raise UnsupportedError(f"{source} is quantized already", hint="export the original checkpoint")
    chosen = _task(checkpoint) if task == "auto" else task
    require_libraries()
    require_space(output.parent, 5 * checkpoint.parameters)
    with new_folder(output, inputs=[source], force=force) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every branch it follows
        _say(report, 0)
        model = _load(source, chosen)
        _say(report, 1)
        _export(model, part, chosen, opset)
        copy_small(source, part)
        if dtype == "f16":
            _replace(part, half(read_graph(part / GRAPH)))
        _say(report, 2)
        made = read_onnx(part / GRAPH)
        tokens = tokens_of(part)
        kind, rows = rows_of(open_session(part / GRAPH), tokens)
        agreement = compare(_reference(model, tokens, chosen), rows, logits=kind == "decoder")
        if agreement.relative > _TOLERANCE[dtype]:
            raise DataError(
                f"the export differs from {source.name} by {agreement.max_difference:.3g} where its outputs reach "
                f"{agreement.scale:.3g}",
                hint="try another opset; nothing was written",
                code="E_PARITY",
            )
        size = folder_bytes(part)
    return ExportReport(
        output=output, task=chosen, opset=made.opsets.get("", 0), dtype=dtype, bytes=size, parameters=made.parameters,
        agreement=agreement, seconds=time.monotonic() - began,
    )  # fmt: skip


def require_libraries() -> None:
    """Raise UnavailableError, with the command that helps, where an export cannot work."""
    try:
        import onnx
        import optimum.exporters.onnx
        import torch
        import transformers
    except ImportError as error:
        missing = error.name or str(error)
        raise UnavailableError(f"ONNX export needs {missing}, which is not installed", hint=extra("onnx")) from error
    transformers.logging.set_verbosity_error()
    del onnx, optimum, torch


def _task(checkpoint: Checkpoint) -> Task:
    """By the name of the architecture's class, which says what stands on top of it."""
    name = checkpoint.architecture or ""
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "text-generation-with-past"
    return "text-classification" if name.endswith("ForSequenceClassification") else "feature-extraction"


def _load(source: Path, task: str) -> Any:
    import transformers

    loader = {
        "text-generation-with-past": transformers.AutoModelForCausalLM,
        "text-classification": transformers.AutoModelForSequenceClassification,
    }.get(task, transformers.AutoModel)
    return originals.load(source, loader)


def _export(model: Any, part: Path, task: str, opset: int | None) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    try:
        onnx_export_from_model(model, part, opset=opset, task=task, do_validation=False, device="cpu")
    except (ValueError, KeyError, RuntimeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        version = "" if opset is None else f" with opset {opset}"
        hint = "" if opset is None else _OPSETS
        raise UnsupportedError(f"optimum does not export this model as {task}{version}: {line}", hint=hint) from error
    if not (part / GRAPH).is_file():
        raise UsageError(f"the task {task} makes several graphs, and Lathe runs models of one")


def _replace(part: Path, model: Any) -> None:
    for path in part.glob(f"{GRAPH}*"):
        path.unlink()
    write_graph(model, part / GRAPH)


def _reference(model: Any, tokens: list[int], task: str) -> Rows:
    import torch

    with torch.no_grad():
        given = torch.tensor([tokens])
        result = model(input_ids=given, attention_mask=torch.ones_like(given))
    found = result.last_hidden_state if task == "feature-extraction" else result.logits
    rows: Rows = found.float().numpy().reshape(-1, found.shape[-1])
    return np.ascontiguousarray(rows)


def _say(report: Report, number: int) -> None:
    report(_STEPS[number], number, len(_STEPS), "step")
