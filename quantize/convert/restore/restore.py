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
from lathe.quantize.convert.names import Names
from lathe.quantize.convert.pooling import pooling_documents
from lathe.quantize.convert.restore.config import CHECKPOINTS, config_of, family_of, hparams_of
from lathe.quantize.convert.restore.tokenizer import tokenizer_files
from lathe.quantize.convert.restore.weights import RestoredTensor, restored, write_weights
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.folder_artefact import new_folder
from lathe.quantize.gguf.header import GgufHeader, read_sharded
from lathe.quantize.progress import Report, silent

RestoredType = Literal["auto", "f32", "f16", "bf16"]


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


def restore_checkpoint(
    source: Path, output: Path, *, outtype: RestoredType = "auto", force: bool = False, report: Report | None = None
) -> RestorationReport:
    """Write the model of a GGUF file as a checkpoint folder of safetensors.

    `outtype` auto keeps 32 bits where the file has them and the 16 bits it was made of, F16 for quantized files.
    `force` replaces an existing folder. Raises `GgufError`, `UnsupportedError` for an architecture without a way back,
    `OutputError`.
    """
    began = monotonic()
    headers = read_sharded(source)
    first = headers[0]
    architecture = first.architecture or ""
    if first.kind != "model" or architecture not in CHECKPOINTS:
        raise UnsupportedError(
            f"{source} is a {first.kind} of the architecture {architecture or 'nobody names'}; there is no way back",
            hint=f"models of {', '.join(sorted(CHECKPOINTS))} can be restored",
        )
    family, hparams = family_of(first), hparams_of(first)
    names, prefix = Names(family), CHECKPOINTS[architecture].prefix
    dtype = _dtype(headers) if outtype == "auto" else Encoding[outtype.upper()]
    tensors: list[RestoredTensor] = []
    for header in headers:
        for tensor in header.tensors:
            if (found := names.source(tensor.name)) is not None:
                name = found[0] if found[0].startswith("lm_head") else prefix + found[0]
                tensors.append(restored(name, header, tensor, found[1], hparams))
    documents, warnings = tokenizer_files(first)
    config, doubts = config_of(headers, dtype)
    pooling = first.hyper("pooling_type")
    for name, content in (
        {"config.json": config} | pooling_documents(pooling if type(pooling) is int else None)
    ).items():
        documents[name] = msgspec.json.format(msgspec.json.encode(content))
    size = sum(tensor.nbytes(dtype) for tensor in tensors)
    require_space(output.parent, size)
    with new_folder(output, force=force) as part:
        for name, content in documents.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(content)
        write_weights(part / "model.safetensors", tensors, hparams, dtype, report or silent)
    return RestorationReport(
        output=output,
        architecture=CHECKPOINTS[architecture].name,
        dtype=dtype,
        tensors=len(tensors),
        bytes=size,
        seconds=monotonic() - began,
        warnings=(*doubts, *warnings),
    )


def _dtype(headers: tuple[GgufHeader, ...]) -> Encoding:
    """Find the precision of the matrices."""
    kinds = {tensor.type.name for header in headers for tensor in header.tensors if len(tensor.shape) > 1}
    if "BF16" in kinds:
        return Encoding.BF16
    return Encoding.F32 if kinds == {"F32"} else Encoding.F16
