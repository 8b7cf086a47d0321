"""The plan of a conversion: which tensors the GGUF will hold, in which type, from which source.

Pure: a checkpoint's headers and a family's table in, a list of `PlannedTensor` out, or an error that names the tensor.
Invariant: every tensor of the checkpoint is placed or known to be unused, each target has one source, and all layers
have the same tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from lathe.quantize.convert.encode import Q8_BLOCK, SOURCE_TYPES, Floats
from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.names import Names
from lathe.quantize.convert.writer import Encoding, Metadata, TensorEntry, file_bytes
from lathe.quantize.errors import CheckpointError, UnsupportedError
from lathe.quantize.safetensors import TensorInfo

_ALWAYS_F32 = re.compile(
    r".*_norm\.weight|position_embd\.weight|token_types\.weight|blk\.\d+\.ffn_gate_inp\.weight"
    r"|.*(?<!\.weight)(?<!\.lora_[ab])"
)
"""Norms, lookup tables and biases: small, and llama.cpp's graphs expect them in full precision."""
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write; `source` is its tensor in the checkpoint, or `made` holds its values."""

    entry: TensorEntry
    rule: Rule
    source: TensorInfo | None = None
    made: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """Everything about a GGUF file to write but its values."""

    tensors: Sequence[PlannedTensor]
    metadata: Metadata

    @property
    def entries(self) -> list[TensorEntry]:
        """The tensor table."""
        return [tensor.entry for tensor in self.tensors]

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(math.prod(entry.shape) for entry in self.entries)

    @property
    def bytes(self) -> int:
        """Size as one file."""
        return file_bytes(self.metadata, self.entries)


def plan_tensors(
    family: Family, hparams: Hparams, tensors: Mapping[str, TensorInfo], outtype: Encoding
) -> list[PlannedTensor]:
    """Place every tensor of a checkpoint; computed tensors come first, then the checkpoint's order."""
    plan = [
        PlannedTensor(plan_entry(name, values.shape, outtype), Rule(name), made=values)
        for name, values in family.computed(hparams).items()
    ]
    names = Names(family)
    taken: dict[str, str] = {}
    for info in tensors.values():
        found = names.find(info.name)
        if found is None:
            continue
        target, rule = found
        if target in taken:
            raise CheckpointError(f"tensors {taken[target]!r} and {info.name!r} both become {target}")
        taken[target] = info.name
        plan.append(PlannedTensor(plan_entry(target, _viewed_shape(info, rule, hparams), outtype), rule, source=info))
    if _EMBEDDING not in taken:
        plan = _embedding_from_head(plan, hparams)
    elif hparams.get("tie_word_embeddings"):  # a head that was saved all the same is not the one that is used
        plan = [tensor for tensor in plan if tensor.entry.name != _HEAD]
    require_whole_layers([tensor.entry.name for tensor in plan], hparams.layers)
    return plan


def _embedding_from_head(plan: list[PlannedTensor], hparams: Hparams) -> list[PlannedTensor]:
    """Store tied weights as the embedding, where a checkpoint saved the one tensor under the head's name."""
    if not hparams.get("tie_word_embeddings") or all(tensor.entry.name != _HEAD for tensor in plan):
        raise CheckpointError("the checkpoint has no token embeddings")
    return [
        replace(tensor, entry=msgspec.structs.replace(tensor.entry, name=_EMBEDDING))
        if tensor.entry.name == _HEAD
        else tensor
        for tensor in plan
    ]


def guess_outtype(tensors: Mapping[str, TensorInfo]) -> Encoding:
    """Keep the precision of the checkpoint's first 16-bit matrix; F16 when there is none."""
    for info in tensors.values():
        if len(info.shape) >= 2 and info.dtype in ("BF16", "F16"):
            return Encoding[info.dtype]
    return Encoding.F16


def _viewed_shape(info: TensorInfo, rule: Rule, hparams: Hparams) -> tuple[int, ...]:
    """Find the shape after the rule's view, on an array that has the shape and no memory."""
    if math.prod(info.shape) == 0 or not info.shape:
        raise CheckpointError(f"tensor {info.name!r} has the shape {list(info.shape)}, which is no weight's")
    refuse_stored(info)
    try:
        shape = rule.view(np.broadcast_to(np.uint8(0), info.shape), hparams).shape
        if rule.rows is not None:
            rule.rows(shape[0], hparams)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"tensor {info.name!r} has the wrong shape {list(info.shape)}: {error}") from error
    return shape


def refuse_stored(info: TensorInfo) -> None:
    """Raise `UnsupportedError` for a tensor whose type is no weight's."""
    if info.dtype not in SOURCE_TYPES:
        raise UnsupportedError(
            f"tensor {info.name!r} is stored as {info.dtype}; only {', '.join(sorted(SOURCE_TYPES))} can be converted",
            hint="quantized checkpoints cannot be converted: take the original",
        )


def plan_entry(name: str, shape: tuple[int, ...], outtype: Encoding) -> TensorEntry:
    """Choose the type of a tensor as llama.cpp's converter does."""
    kind = outtype
    if len(shape) <= 1 or _ALWAYS_F32.fullmatch(name):
        kind = Encoding.F32
    elif outtype is Encoding.Q8_0 and shape[-1] % Q8_BLOCK:
        kind = Encoding.F16
    return TensorEntry(name, shape, kind)


def require_whole_layers(names: Sequence[str], layers: int) -> None:
    """Refuse a checkpoint whose layers differ in their tensors or in their number."""
    found: dict[int, set[str]] = {}
    for name in names:
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(match[2])
    expected = range(min(layers, len(found) + 1))
    if strange := sorted(set(expected) - found.keys()) or sorted(layer for layer in found if layer >= layers):
        raise CheckpointError(
            f"config.json promises {layers:,} layers, the weights hold {len(found):,}; "
            f"the first that differs is layer {strange[0]}"
        )
    everything = set[str]().union(*found.values())
    for layer, held in sorted(found.items()):
        if lacking := sorted(everything - held):
            raise CheckpointError(f"layer {layer} lacks {lacking[0]}, which other layers have")
