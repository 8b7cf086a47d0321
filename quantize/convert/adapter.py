"""LoRA adapters of PEFT to GGUF: pairs of small matrices, named and ordered like the weights they change.

llama.cpp scales every pair by alpha / rank with one alpha per file. PEFT has more ways to scale; what differs from the
first pair's is folded into the second matrix. Invariant: an adapter that this module wrote changes each weight by
exactly as much as PEFT would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
from lathe.quantize.artefact import new_artefact
from lathe.quantize.checkpoint import PICKLES, Checkpoint, open_weights, pickled, read_json
from lathe.quantize.convert.convert import ConversionReport, OutType
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.convert.hparams import Hparams, shared_facts
from lathe.quantize.convert.identity import describe
from lathe.quantize.convert.names import Names
from lathe.quantize.convert.plan import FilePlan, PlannedTensor, plan_entry, refuse_stored
from lathe.quantize.convert.registry import family_of
from lathe.quantize.convert.shapes import check_shapes
from lathe.quantize.convert.stream import encoded_pieces, refusing_faults
from lathe.quantize.convert.writer import Encoding, TensorEntry, f32, text, u32, write_gguf
from lathe.quantize.errors import CheckpointError, InputMissing, UnsupportedError
from lathe.quantize.gguf.header import read_header
from lathe.quantize.progress import Report, silent
from lathe.quantize.safetensors import Array, SafetensorsFile, TensorInfo
from lathe.quantize.types import FILE_TYPES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HALF = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_EMBEDDING = "token_embd"
_LAYER = re.compile(r"blk\.(\d+)\.")
_LONGEST_PATTERN = 200


class Pair(msgspec.Struct, frozen=True):
    """The two halves that change one weight: `up @ down`, times a scale."""

    name: str
    """Of the weight in the checkpoint, without its suffix."""
    down: TensorInfo
    up: TensorInfo

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds a LoRA adapter."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True, kw_only=True)
class AdapterPlan(FilePlan):
    """The file that an adapter becomes."""

    architecture: str
    kind: Encoding
    checkpoint: Checkpoint
    """The adapter's own tensors, under its base's configuration."""
    hparams: Hparams


def plan_adapter(source: Path, *, base: Path | None = None, outtype: OutType = "f16") -> AdapterPlan:
    """Plan the conversion of a PEFT LoRA folder; of the weights, only the headers are read.

    `base` is the checkpoint folder that the adapter was trained on, of which only config.json is read; None takes the
    one that the adapter names. Raises `UnsupportedError` for adapters that are more than pairs of matrices.
    """
    settings = _settings(source)
    config = read_json(_base(source, settings, base) / "config.json")
    checkpoint, tensors = _read(source, config)
    family = family_of(checkpoint)
    hparams = Hparams(checkpoint.config, family.defaults)
    pairs = _pairs(tensors)
    kind = Encoding.F16 if outtype == "auto" else Encoding[outtype.upper()]
    alpha = _scale(settings, pairs[0]) * pairs[0].rank
    names = Names(family)
    _check_base(family, hparams, pairs, names)
    return AdapterPlan(
        architecture=family.arch,
        kind=kind,
        checkpoint=checkpoint,
        hparams=hparams,
        tensors=tuple(
            tensor
            for pair in pairs
            for tensor in _planned(pair, names, hparams, kind, _scale(settings, pair) * pair.rank / alpha)
        ),
        metadata={"general.architecture": text(family.arch)}
        | describe(checkpoint, -sum(pair.up.shape[0] * pair.down.shape[1] for pair in pairs), adapter=True)
        | {"adapter.type": text("lora"), "adapter.lora.alpha": f32(alpha)}
        | {"general.file_type": u32(FILE_TYPES[kind].id), "general.quantization_version": u32(2)},
    )


def convert_adapter(
    source: Path,
    output: Path,
    *,
    base: Path | None = None,
    outtype: OutType = "f16",
    force: bool = False,
    report: Report | None = None,
) -> ConversionReport:
    """Convert a PEFT LoRA folder to a GGUF adapter; arguments and errors as `plan_adapter` has them."""
    began = monotonic()
    plan = plan_adapter(source, base=base, outtype=outtype)
    faults: dict[str, int] = {}
    with (
        new_artefact(output, inputs=plan.checkpoint.shards, expected_bytes=plan.bytes, force=force) as part,
        open_weights(plan.checkpoint) as weights,
    ):
        pieces = encoded_pieces(plan.tensors, weights, plan.hparams, report or silent, faults)
        write_gguf(part, plan.metadata, plan.entries, pieces if force else refusing_faults(pieces, faults))
        read_header(part)
    return ConversionReport(
        output=output,
        architecture=plan.architecture,
        file_type=plan.kind.name,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=plan.bytes,
        seconds=monotonic() - began,
    )


def _settings(source: Path) -> dict[str, Any]:
    """Read adapter_config.json; refuse what a pair of matrices cannot say."""
    if not is_adapter(source):
        raise InputMissing(f"{source} has no {CONFIG}", hint="name the folder of a PEFT adapter")
    settings = read_json(source / CONFIG)
    if (kind := settings.get("peft_type", "LORA")) != "LORA":
        raise UnsupportedError(f"{source} is a {str(kind)[:40]} adapter; llama.cpp has LoRA only")
    for field, what in (("use_dora", "DoRA"), ("modules_to_save", "whole retrained modules"), ("bias", "biases")):
        if settings.get(field) not in (None, False, [], "none"):
            raise UnsupportedError(
                f"{source} has {what} ({field}), which a GGUF adapter cannot hold",
                hint="merge the adapter into its base with PEFT, then convert the result",
            )
    return settings


def _base(source: Path, settings: Mapping[str, Any], base: Path | None) -> Path:
    named = settings.get("base_model_name_or_path")
    if base is None and not named:
        raise InputMissing(f"{source} names no base model", hint="name the folder of the base checkpoint")
    folder = base or Path(str(named or ""))
    if not (folder / "config.json").is_file():
        raise InputMissing(
            f"the base model {str(base or named)!r:.120} of {source} is not a folder with a config.json",
            hint="name the folder of the base checkpoint",
        )
    return folder


def _read(source: Path, config: dict[str, Any]) -> tuple[Checkpoint, dict[str, TensorInfo]]:
    path = source / WEIGHTS
    if not path.is_file():
        if names := sorted(entry.name for entry in source.iterdir() if entry.suffix in PICKLES):
            raise pickled(source, names)
        raise InputMissing(f"{source} has no {WEIGHTS}")
    with SafetensorsFile(path) as file:
        tensors = dict(sorted(file.tensors.items()))
    home = dict.fromkeys(tensors, path)
    return Checkpoint(folder=source, config=config, shards=(path,), tensors=tensors, home=home), tensors


def _pairs(tensors: Mapping[str, TensorInfo]) -> list[Pair]:
    """Join the halves; every tensor belongs to a pair."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = _HALF.fullmatch(name)
        if match is None:
            raise UnsupportedError(f"adapter tensor {name!r} is no half of a LoRA pair")
        refuse_stored(info)
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"adapter tensor {name!r} has the shape {list(info.shape)}, which is no matrix")
        if halves.setdefault(match[1], {}).setdefault(match[2], info) is not info:
            raise CheckpointError(f"adapter tensor {name!r} is there twice")
    if not halves:
        raise CheckpointError("the adapter has no tensors")
    for name, pair in halves.items():
        if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise CheckpointError(f"the adapter's matrices for {name!r} do not fit together")
    return [Pair(name, pair["A"], pair["B"]) for name, pair in halves.items()]


def _check_base(family: Family, hparams: Hparams, pairs: list[Pair], names: Names) -> None:
    """Raise `CheckpointError` where the adapter changes other weights than the base model has."""
    facts = shared_facts(hparams) | family.facts(hparams)
    changed = []
    for pair in pairs:
        target, _ = names.find(f"{pair.name}.weight") or ("", None)
        layer = _LAYER.match(target)
        if layer is not None and int(layer[1]) >= hparams.layers:
            raise CheckpointError(f"the adapter changes {pair.name!r}, and the base has {hparams.layers} layers")
        if layer is not None:
            changed.append(TensorEntry(target, (pair.up.shape[0], pair.down.shape[1]), Encoding.F16))
    check_shapes(family.arch, {f"{family.arch}.{key}": value for key, value in facts.items()}, changed, 0)


def _scale(settings: Mapping[str, Any], pair: Pair) -> float:
    """How much PEFT multiplies a pair by."""
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern")
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if _means(pattern, pair.name):
            alpha = value
            break
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise CheckpointError(f"{CONFIG} gives lora_alpha as {alpha!r:.40}")
    return float(alpha) / (math.sqrt(pair.rank) if settings.get("use_rslora") else pair.rank)


def _means(pattern: str, name: str) -> bool:
    """Whether a key of PEFT's patterns means a weight: an expression for the end of its name, with ^ for all of it.

    Raises:
        CheckpointError: it is no regular expression, or a very long one.
    """
    whole = pattern[1:] if pattern.startswith("^") else rf"(?:.*\.)?(?:{pattern})"
    if len(pattern) > _LONGEST_PATTERN:
        raise CheckpointError(f"{CONFIG} has a pattern of {len(pattern):,} characters")
    try:
        return re.fullmatch(whole, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{CONFIG} has the pattern {pattern!r:.60}, which is no regular expression") from error


def _planned(pair: Pair, names: Names, hparams: Hparams, kind: Encoding, factor: float) -> Iterator[PlannedTensor]:
    """Plan both halves; the order of a weight's rows is that of the second one's."""
    found = names.find(f"{pair.name}.weight")
    if found is None:
        raise CheckpointError(f"the adapter changes {pair.name!r}, which inference does not use")
    target, rule = found
    # PEFT keeps both halves upright, also for weights that are stored the other way round: no view applies.
    down = Rule(f"{target}.lora_a", view=_transposed if target.startswith(_EMBEDDING) else Rule("").view)
    up = Rule(f"{target}.lora_b", rows=rule.rows, value=_times(factor))
    for half, info in ((down, pair.down), (up, pair.up)):
        shape = info.shape[::-1] if half.view is _transposed else info.shape
        yield PlannedTensor(plan_entry(half.to, shape, kind), half, source=info)


def _transposed(stored: Array, hparams: Hparams) -> Array:
    return stored.T


def _times(factor: float) -> Any:
    """Multiply by a factor; None where there is nothing to multiply."""

    def scaled(values: Floats) -> Floats:
        return values * np.float32(factor)

    return None if factor == 1 else scaled
