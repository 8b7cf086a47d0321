"""How large an ONNX model becomes when it is quantized, from the graph's structure alone. Pure.

An estimate: what an operator reads decides what becomes of it, as ONNX Runtime's tools decide it; nodes that patterns
exclude and nodes that quantization adds are not looked at. Invariant: no library is asked, so a form can ask at every
change.
"""

from __future__ import annotations

import math

import msgspec
from lathe.engine.onnx.quantizing import OnnxQuantizeOptions
from lathe.quantize.onnx_files import OnnxFile, OnnxTensor

_FLOATS = ("FLOAT", "FLOAT16")
_SHORT = {"FLOAT": "F32", "FLOAT16": "F16"}
_DYNAMIC = frozenset({"MatMul", "Gemm", "Gather", "Conv", "Attention", "EmbedLayerNormalization", "LSTM"})
_STATIC = frozenset({"MatMul", "Gemm"})
_BLOCKS = frozenset({"MatMul", "Gather"})


class OnnxSize(msgspec.Struct, frozen=True, kw_only=True):
    """What comes out."""

    bytes: int
    """Of the graph and its external data."""
    mix: dict[str, int]
    """Type -> bytes, largest first."""
    bits_per_weight: float | None


def predicted(file: OnnxFile, options: OnnxQuantizeOptions) -> OnnxSize:
    """Predict the size of a graph under the options."""
    mix: dict[str, int] = {}
    before = 0
    for tensor in file.tensors:
        before += tensor.nbytes
        for kind, size in _becomes(tensor, file.uses.get(tensor.name, ()), options):
            mix[kind] = mix.get(kind, 0) + size
    graph = max(0, file.file_bytes + sum(path.stat().st_size for path in file.external) - before)
    weights = sum(mix.values())
    return OnnxSize(
        bytes=graph + weights,
        mix=dict(sorted(mix.items(), key=lambda item: -item[1])),
        bits_per_weight=8 * weights / file.parameters if file.parameters else None,
    )


def _becomes(tensor: OnnxTensor, readers: tuple[str, ...], options: OnnxQuantizeOptions) -> list[tuple[str, int]]:
    """Types and bytes of what stands for a tensor afterwards."""
    as_is = [(_SHORT.get(tensor.type, tensor.type), tensor.nbytes)]
    if tensor.type not in _FLOATS:
        return as_is
    if options.mode == "float16":
        return [("F16", 2 * tensor.elements)]
    usual = {"int8": _DYNAMIC, "int8-static": _STATIC, "int4": _BLOCKS}[options.mode]
    wanted = frozenset(options.operators) or usual
    if len(tensor.shape) < 2 or not wanted & set(readers):
        return as_is
    width = tensor.nbytes // max(1, tensor.elements)
    if options.mode == "int4":
        blocks = math.ceil(tensor.shape[0] / options.block_size) * math.prod(tensor.shape[1:])
        if "Gather" in readers:
            blocks = math.ceil(tensor.shape[-1] / options.block_size) * math.prod(tensor.shape[:-1])
        points = 0 if options.symmetric else math.ceil(blocks / 2)
        return [("INT4", math.ceil(tensor.elements / 2) + points), ("scales", width * blocks)]
    columns = tensor.shape[-1] if options.per_channel and "Gather" not in readers else 1
    return [("INT8", tensor.elements), ("scales", (width + 1) * columns)]
