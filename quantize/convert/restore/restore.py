"""From a GGUF to a checkpoint folder: weights dequantized, rows and names put back, configuration and tokenizer told.

Invariant: the folder appears whole or not at all, and what the conversion did to a weight's layout is undone exactly;
what quantization lost stays lost.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Literal

import msgspec
from lathe.quantize.artefact import require_space
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.names import Names
from lathe.quantize.convert.pooling import pooling_documents
from lathe.quantize.convert.restore.config import CHECKPOINTS, config_of, counterpart_of, family_of, hparams_of
from lathe.quantize.convert.restore.tokenizer import tokenizer_files
from lathe.quantize.convert.restore.weights import RestoredTensor, restored, write_weights
from lathe.quantize.convert.stream import fault
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.folder_artefact import new_folder
from lathe.quantize.gguf.header import GgufHeader, read_sharded
from lathe.quantize.progress import Report, silent

RestoredType = Literal["auto", "f32", "f16", "bf16"]

_HEADS = ("lm_head.", "classifier.")
"""Weights beside the model, whose names have no prefix."""
_IN_CONFIG = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that a checkpoint has as settings."""


class RestorationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a restoration made."""

    output: Path
    architecture: str
    """Class name in config.json."""
    dtype: str
    tensors: int
    bytes: int
    """Of the weights."""
    seconds: float
    warnings: tuple[str, ...] = ()


class RestorationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about the folder that a GGUF becomes but its values."""

    architecture: str
    """Class name in config.json."""
    dtype: Encoding
    hparams: Hparams
    tensors: tuple[RestoredTensor, ...]
    documents: dict[str, bytes]
    """Configuration and tokenizer, by path in the folder."""
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.nbytes(self.dtype) for tensor in self.tensors)


def plan_restoration(source: Path, *, outtype: RestoredType = "auto") -> RestorationPlan:
    """Plan the way back; of the weights, only the headers are read.

    `outtype` auto keeps 32 bits where the file has them and the 16 bits it was made of, F16 for quantized files.
    Raises `GgufError`, `UnsupportedError` for an architecture or a tensor without a way back.
    """
    headers = read_sharded(source)
    first = headers[0]
    counterpart = counterpart_of(headers)
    if first.kind != "model" or counterpart is None:
        raise UnsupportedError(
            f"{source} is a {first.kind} of the architecture {first.architecture or 'nobody names'}; "
            "there is no way back",
            hint=f"models of {', '.join(sorted(CHECKPOINTS))} can be restored",
        )
    family = family_of(counterpart)
    names, hparams = Names(family), hparams_of(first, family)
    dtype = _dtype(headers) if outtype == "auto" else Encoding[outtype.upper()]
    tensors: list[RestoredTensor] = []
    homeless: list[str] = []
    for header in headers:
        for tensor in header.tensors:
            found = names.source(tensor.name) if tensor.name.endswith((".weight", ".bias")) else None
            if found is not None:
                name = found[0] if found[0].startswith(_HEADS) else counterpart.prefix + found[0]
                tensors.append(restored(name, header, tensor, found[1], hparams))
            elif tensor.name not in _IN_CONFIG:
                homeless.append(tensor.name)
    if homeless:
        raise UnsupportedError(
            f"{source} has {len(homeless)} tensors without a place in {counterpart.name}: {', '.join(homeless[:3])}",
            hint="it is a variant of its architecture, and what is left of it would be another model: "
            "use the checkpoint that it was made of",
        )
    documents, warnings = tokenizer_files(first)
    config, doubts = config_of(headers, counterpart, dtype)
    pooling = first.hyper("pooling_type")
    for name, content in (
        {"config.json": config} | pooling_documents(pooling if type(pooling) is int else None)
    ).items():
        documents[name] = msgspec.json.format(msgspec.json.encode(content))
    return RestorationPlan(
        architecture=counterpart.name,
        dtype=dtype,
        hparams=hparams,
        tensors=tuple(tensors),
        documents=documents,
        warnings=(*doubts, *warnings),
    )


def restore_checkpoint(
    source: Path, output: Path, *, outtype: RestoredType = "auto", force: bool = False, report: Report | None = None
) -> RestorationReport:
    """Write the model of a GGUF file as a checkpoint folder of safetensors.

    `force` replaces an existing folder and lets through weights that are not finite. Raises what `plan_restoration`
    does, and `OutputError`.
    """
    began = monotonic()
    plan = plan_restoration(source, outtype=outtype)
    require_space(output.parent, plan.bytes)
    with new_folder(output, inputs=[source], force=force) as part:
        for name, content in plan.documents.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(content)
        weights = part / "model.safetensors"
        faults = write_weights(weights, plan.tensors, plan.hparams, plan.dtype, report or silent, force=force)
    return RestorationReport(
        output=output,
        architecture=plan.architecture,
        dtype=plan.dtype,
        tensors=len(plan.tensors),
        bytes=plan.bytes,
        seconds=monotonic() - began,
        warnings=(*plan.warnings, *(fault(name, count) for name, count in faults.items())),
    )


def _dtype(headers: tuple[GgufHeader, ...]) -> Encoding:
    """Find the precision of the matrices."""
    kinds = {tensor.type.name for header in headers for tensor in header.tensors if len(tensor.shape) > 1}
    if "BF16" in kinds:
        return Encoding.BF16
    return Encoding.F32 if kinds == {"F32"} else Encoding.F16
