"""From a checkpoint folder to a GGUF file, in one pass over the weights.

    read_checkpoint -> family -> plan (pure) -> vocabulary -> write, tensor by tensor, piece by piece

Invariant: the output appears whole or not at all, and memory stays bounded by a piece of a tensor plus the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import msgspec
from lathe.quantize.checkpoint import Checkpoint, open_weights, read_checkpoint
from lathe.quantize.convert.conformance.conform import Conformance
from lathe.quantize.convert.dense import dense_facts, dense_layers, module_cautions
from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.graph import cautions, require_computable
from lathe.quantize.convert.hparams import Hparams, shared_facts
from lathe.quantize.convert.identity import describe
from lathe.quantize.convert.plan import FilePlan, PlannedTensor, guess_outtype, plan_entry, plan_tensors
from lathe.quantize.convert.pooling import pooling_facts
from lathe.quantize.convert.registry import family_of
from lathe.quantize.convert.rope import rope_facts
from lathe.quantize.convert.shapes import check_shapes
from lathe.quantize.convert.shards import GgufFiles
from lathe.quantize.convert.stream import encoded_pieces, fault, refusing_faults
from lathe.quantize.convert.vocabulary.choose import Draft, draft_vocabulary
from lathe.quantize.convert.vocabulary.settle import settle
from lathe.quantize.convert.writer import Encoding, text, u32
from lathe.quantize.gguf.header import read_header
from lathe.quantize.progress import Report, silent
from lathe.quantize.types import FILE_TYPES

OutType = Literal["auto", "f32", "f16", "bf16", "q8_0"]

_QUANTIZATION_VERSION = 2


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion made."""

    output: Path
    """The first file."""
    shards: int = 1
    architecture: str
    """llama.cpp's name."""
    file_type: str
    """`F16` and the like."""
    tensors: int
    parameters: int
    bytes: int
    seconds: float
    pre_tokenizer: str | None = None
    conformance: Conformance | None = None
    """How the converted tokenizer did against the original; None for an adapter, which has none."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConversionPlan(FilePlan):
    """What a conversion will do.

    `metadata` has the vocabulary as drafted: the tokenizer's comparison may still change a few bytes of it.
    """

    family: Family
    hparams: Hparams
    encoding: Encoding
    draft: Draft


def convert_checkpoint(
    source: Path,
    output: Path,
    *,
    outtype: OutType = "auto",
    split_max_bytes: int | None = None,
    force: bool = False,
    report: Report | None = None,
) -> ConversionReport:
    """Convert a checkpoint folder to GGUF: one file, or several where `split_max_bytes` does not hold all tensors.

    `force` overwrites an existing output and lets through weights that are not finite. Raises the errors of
    `read_checkpoint`, `UnsupportedError` for an unknown architecture or tokenizer, `OutputError`.
    """
    began = monotonic()
    checkpoint = read_checkpoint(source)
    plan = plan_conversion(checkpoint, outtype)
    vocabulary, conformance = settle(plan.draft, plan.metadata)
    metadata = plan.metadata | vocabulary.metadata()
    files = GgufFiles(output, metadata, plan.entries, split_max_bytes)
    faults: dict[str, int] = {}
    inputs = [path for path in source.iterdir() if path.is_file() and path.suffix != ".gguf"]
    with files.parts(inputs, force=force) as parts, open_weights(checkpoint) as weights:
        pieces = encoded_pieces(plan.tensors, weights, plan.hparams, report or silent, faults)
        files.write(parts, pieces if force else refusing_faults(pieces, faults))
        for part in parts:
            read_header(part)
    return ConversionReport(
        output=files.paths[0],
        shards=len(files.paths),
        architecture=plan.family.arch,
        file_type=plan.encoding,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=files.bytes,
        seconds=monotonic() - began,
        pre_tokenizer=vocabulary.pre,
        conformance=conformance,
        warnings=(
            *plan.draft.warnings,
            *cautions(plan.family, plan.hparams),
            *module_cautions(checkpoint, plan.family),
            *_warnings(checkpoint, conformance),
            *(fault(name, count) for name, count in faults.items()),
        ),
    )


def plan_conversion(checkpoint: Checkpoint, outtype: OutType = "auto") -> ConversionPlan:
    """Decide everything about a conversion that needs no weights; raises what `convert_checkpoint` raises."""
    family = family_of(checkpoint)
    hparams = Hparams(checkpoint.config, family.defaults)
    require_computable(family, hparams)
    encoding = guess_outtype(checkpoint.tensors) if outtype == "auto" else Encoding[outtype.upper()]
    tensors = plan_tensors(family, hparams, checkpoint.tensors, encoding)
    behind = dense_layers(checkpoint, family, hparams)
    tensors += [
        PlannedTensor(plan_entry(name, matrix.shape, encoding), Rule(name), made=matrix)
        for name, matrix in behind.items()
    ]
    draft = draft_vocabulary(checkpoint, hparams)
    facts = {key: value for key, value in shared_facts(hparams).items() if key not in family.silent}
    facts |= {key: value for key, value in rope_facts(hparams).items() if key not in family.silent}
    facts |= family.facts(hparams) | pooling_facts(checkpoint) | dense_facts(behind)
    kept = {"file_type": FILE_TYPES[encoding].id, "quantization_version": _QUANTIZATION_VERSION}
    metadata = (
        {"general.architecture": text(family.arch)}
        | describe(checkpoint, sum(math.prod(tensor.entry.shape) for tensor in tensors))
        | {f"{family.arch}.{key}": value for key, value in facts.items()}
        | {f"general.{key}": u32(value) for key, value in kept.items()}
        | draft.vocabulary.metadata()
    )
    plan = ConversionPlan(
        family=family, hparams=hparams, encoding=encoding, tensors=tensors, draft=draft, metadata=metadata
    )
    check_shapes(family.arch, metadata, plan.entries, len(draft.vocabulary.tokens))
    return plan


def _warnings(checkpoint: Checkpoint, conformance: Conformance) -> Iterator[str]:
    for reason in checkpoint.remote_code:
        yield f"{reason}: its code was not run; this architecture was converted by the known rules"
    if conformance.crashes:
        yield (
            f"characters outside the vocabulary make llama.cpp abort, as in {conformance.crashes[0].text[:30]!a}: "
            "the tokenizer has neither byte tokens nor a token for them"
        )
    for differences, what in (
        (conformance.naughty, "unusual characters or leading spaces"),
        (conformance.marked, "control tokens"),
    ):
        if differences:
            yield f"{len(differences)} texts with {what} are tokenized differently, as {differences[0].text[:40]!a}"
    if (around := conformance.surrounded) is not None:
        yield f"a text is surrounded by other tokens: {around.original} originally, {around.converted} converted"
