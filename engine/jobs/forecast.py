"""What a conversion or quantization would make: the job's own plan, run dry. The process that does so is below.

`python -m lathe.engine.jobs.forecast FD` answers one `Asked` after the other, so that a form can ask again at every
change without paying for llama.cpp's start. Invariant: nothing is written, and every objection is an answer.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from lathe.engine.errors import LatheError, MissingError, UnavailableError, UsageError, describe
from lathe.engine.jobs.outputs import gguf_path, planned_path, recipe_key, variant_name
from lathe.engine.paths import Home
from lathe.engine.states import Forecast
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep
from lathe.engine.wire import frame, receive_blocking
from lathe.quantize.errors import QuantizeError, UnsafeError, UnsupportedError
from lathe.store.models import ModelEntry

Planned = ConvertStep | QuantizeStep | OnnxQuantizeStep
"""Steps whose result can be told beforehand."""
_UNKNOWN_SHA256 = "0" * 64
"""Stands for a hash that is not computed yet: the size does not depend on its digits."""


class Asked(msgspec.Struct, frozen=True):
    """A question to the process."""

    id: int
    step: Planned
    """The base of an adapter, where one is named, by its path."""
    entry: ModelEntry
    """The model the step names."""
    home: str


class Answered(msgspec.Struct, frozen=True):
    """Its answer."""

    id: int
    forecast: Forecast


def forecast(step: Planned, entry: ModelEntry, home: Path) -> Forecast:
    """Plan a step; what would be refused is `problem` of the answer."""
    suffix = ".gguf" if isinstance(step, QuantizeStep) or (isinstance(step, ConvertStep) and step.to == "gguf") else ""
    output = planned_path(home, step.output, step.name or entry.name, suffix)
    try:
        output = planned_path(home, step.output, step.name or _name(step, entry), suffix)
        match step:
            case QuantizeStep():
                found = _quantization(step, entry, output)
            case OnnxQuantizeStep():
                found = _onnx_quantization(step, entry)
            case _:
                found = _conversion(step, entry, home)
    except (LatheError, QuantizeError, OSError) as error:
        found = Forecast(output="", problem=describe(error))
    taken = found.taken or ("other" if os.path.lexists(output) else "")
    return msgspec.structs.replace(
        found, output=str(output), source_bytes=entry.bytes, taken=taken, free=_free(output.parent)
    )


def _name(step: Planned, entry: ModelEntry) -> str:
    """The name that the job gives."""
    if isinstance(step, QuantizeStep):
        return variant_name(entry, step.type)
    if isinstance(step, OnnxQuantizeStep):
        return variant_name(entry, step.mode)
    from lathe.engine.jobs.convert import check_source

    check_source(step, entry)
    match step.to, entry.format:
        case "onnx", _:
            return variant_name(entry, f"onnx-{'f16' if step.outtype == 'f16' else 'f32'}")
        case "safetensors", _:
            return variant_name(entry, "hf")
        case _, "ggml":
            return variant_name(entry, "gguf")
        case _:
            return variant_name(entry, _encoding(step, entry))


def _encoding(step: ConvertStep, entry: ModelEntry) -> str:
    from lathe.quantize.checkpoint import read_checkpoint
    from lathe.quantize.convert.adapter import is_adapter
    from lathe.quantize.convert.plan import guess_outtype

    if step.outtype != "auto":
        return step.outtype
    source = Path(entry.path)
    return "f16" if is_adapter(source) else guess_outtype(read_checkpoint(source).tensors).name


def _quantization(step: QuantizeStep, entry: ModelEntry, output: Path) -> Forecast:
    from lathe.engine.jobs.quantize import made_before, options_of, recipe_of
    from lathe.quantize.quantizer import plan_quantization

    source = gguf_path(entry)
    recipe = recipe_of(step, entry.name, entry.sha256 or _UNKNOWN_SHA256)
    options = options_of(step, recipe)
    problem = None
    try:
        plan = plan_quantization(source, options)
    except UnsafeError as error:
        # How large it would be is worth knowing before one allows it.
        problem = describe(error)
        plan = plan_quantization(source, msgspec.structs.replace(options, allow_requantize=True))
    same = len(plan.files) == 1 and made_before(output, recipe_key(recipe), plan)
    return Forecast(
        output="",
        taken="same" if same else "",
        bytes=plan.bytes,
        bits_per_weight=plan.bits_per_weight,
        tensors=len(plan.tensors),
        mix=plan.mix,
        warnings=plan.warnings,
        problem=problem,
    )


def _onnx_quantization(step: OnnxQuantizeStep, entry: ModelEntry) -> Forecast:
    from lathe.engine.jobs.onnx_quantize import check_source, options_of
    from lathe.engine.onnx.folder import graph_of
    from lathe.engine.onnx.quantizing import check_options
    from lathe.engine.onnx.sizes import predicted
    from lathe.quantize.onnx_files import read_onnx

    check_source(step, entry)
    options = options_of(step)
    graph = read_onnx(graph_of(Path(entry.path)))
    size = predicted(graph, options)
    problem = None
    try:
        check_options(options, text=bool(step.text))
        if step.text and not Path(step.text).expanduser().is_file():
            raise MissingError(f"no text at {step.text}")
    except LatheError as error:
        problem = describe(error)
    return Forecast(
        output="",
        bytes=size.bytes,
        exact=False,
        bits_per_weight=size.bits_per_weight,
        tensors=len(graph.tensors),
        mix=size.mix,
        problem=problem,
    )


def _conversion(step: ConvertStep, entry: ModelEntry, home: Path) -> Forecast:
    from lathe.quantize.convert.adapter import is_adapter

    source = Path(entry.path)
    match step.to, entry.format:
        case "onnx", _:
            return _export(step, entry)
        case "safetensors", _:
            return _restoration(step, source)
        case _, "ggml":
            return Forecast(output="", bytes=entry.bytes, exact=False)
        case _:
            return _adapter(step, source) if is_adapter(source) else _checkpoint(step, source, entry, home)


def _restoration(step: ConvertStep, source: Path) -> Forecast:
    from lathe.engine.jobs.convert import restored_type
    from lathe.quantize.convert.restore.restore import plan_restoration

    plan = plan_restoration(source, outtype=restored_type(step))
    return Forecast(
        output="",
        bytes=plan.bytes + sum(map(len, plan.documents.values())),
        exact=False,
        bits_per_weight=32.0 if plan.dtype == "F32" else 16.0,
        tensors=len(plan.tensors),
        mix={str(plan.dtype): plan.bytes},
        warnings=plan.warnings,
    )


def _adapter(step: ConvertStep, source: Path) -> Forecast:
    from lathe.quantize.convert.adapter import plan_adapter

    plan = plan_adapter(source, base=Path(step.base) if step.base else None, outtype=step.outtype)
    return Forecast(
        output="",
        bytes=plan.bytes,
        bits_per_weight=8 * plan.bytes / plan.parameters,
        tensors=len(plan.tensors),
        mix=_mix((entry.type, entry.nbytes) for entry in plan.entries),
    )


def _checkpoint(step: ConvertStep, source: Path, entry: ModelEntry, home: Path) -> Forecast:
    from lathe.quantize.checkpoint import read_checkpoint
    from lathe.quantize.convert.convert import plan_conversion
    from lathe.quantize.convert.registry import UNKNOWN_ARCHITECTURE

    try:
        plan = plan_conversion(read_checkpoint(source), step.outtype)
    except UnsupportedError as error:
        if error.code != UNKNOWN_ARCHITECTURE or not any(Home(home).toolchain.glob("*")):
            raise
        # llama.cpp's own converter is there, and nobody knows beforehand what it makes of it.
        return Forecast(output="", bytes=entry.bytes, exact=False, warnings=(error.message,))
    mix = _mix((tensor.type, tensor.nbytes) for tensor in plan.entries)
    return Forecast(
        output="",
        bytes=plan.bytes,
        exact=False,
        bits_per_weight=8 * sum(mix.values()) / plan.parameters if plan.parameters else None,
        tensors=len(plan.tensors),
        mix=mix,
        warnings=tuple(plan.draft.warnings),
    )


def _mix(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Type -> bytes, largest first."""
    totals: dict[str, int] = {}
    for kind, size in tensors:
        totals[kind] = totals.get(kind, 0) + size
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _export(step: ConvertStep, entry: ModelEntry) -> Forecast:
    if step.outtype not in ("auto", "f32", "f16"):
        raise UsageError(f"ONNX exports are f32 or f16, not {step.outtype}")
    if importlib.util.find_spec("optimum") is None:
        raise UnavailableError(
            "ONNX export needs optimum, which is not installed", hint="pip install 'lathe-llm[onnx]'; or take GGUF"
        )
    bits = 16 if step.outtype == "f16" else 32
    parameters = entry.card.get("parameters")
    size = parameters * bits // 8 if isinstance(parameters, int) else entry.bytes
    return Forecast(output="", bytes=size, exact=False, bits_per_weight=float(bits))


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    except (OSError, StopIteration):
        return None


def main() -> int:
    """Answer until the channel closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    questions: Iterator[Asked] = receive_blocking(channel, Asked)
    for asked in questions:
        try:
            answer = forecast(asked.step, asked.entry, Path(asked.home))
        except Exception as error:  # noqa: BLE001 - the boundary of the process: a fault is an answer, too
            answer = Forecast(output="", problem=describe(error))
        channel.sendall(frame(Answered(asked.id, answer)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
