"""What a quantization will do, tensor by tensor, before anything is written: types, exact bytes, objections.

llama.cpp chooses each tensor's type; its dry run says which, and this module turns that into a `QuantPlan`. Pure:
`lathe.quantize.quantizer` does the native calls. Invariant: `QuantPlan.bytes` is the size of the file that will be.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec
from lathe.quantize.errors import InputMissing, QuantizeError, UnsafeError, UnsupportedError
from lathe.quantize.gguf.types import DEFAULT_ALIGNMENT
from lathe.quantize.gguf.values import GgufHeader
from lathe.quantize.types import CRASH_WITHOUT_IMATRIX, NEED_IMATRIX, FileType, file_type, tensor_type

COPY = "COPY"
"""Instead of a file type: keep every tensor as it is (to prune layers, change metadata or join shards)."""

Override = str | int | float | bool


class QuantizeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to quantize: everything llama_model_quantize can be told."""

    type: str = "Q4_K_M"
    """A file type, or `COPY`."""
    tensor_types: dict[str, str] = {}
    """Regular expression over tensor names -> tensor type; the first match wins."""
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    keep_output: bool = False
    """Leave output.weight as it is."""
    pure: bool = False
    """The base type for every tensor, without the recipe's exceptions."""
    allow_requantize: bool = False
    imatrix: Path | None = None
    imatrix_only: tuple[str, ...] = ()
    """Use importances for tensors with one of these in their name."""
    imatrix_except: tuple[str, ...] = ()
    """Use no importances for tensors with one of these in their name."""
    prune_layers: tuple[int, ...] = ()
    keep_split: bool = False
    """As many shards as the source has."""
    metadata: dict[str, Override] = {}
    """Written into the file; strings of at most 127 bytes."""
    threads: int = 0
    """0: as many as the machine has."""
    buffer_bytes: int = 512 * 1024 * 1024
    """Of tensor rows in memory at a time."""


class PlannedTensor(msgspec.Struct, frozen=True):
    """What becomes of one tensor."""

    name: str
    """In the output."""
    origin: str
    """Its name in the source; another where layers below it were pruned."""
    shape: tuple[int, ...]
    source: str
    target: str
    shard: int
    """Index of the source file it comes from."""
    bytes: int
    """In the output."""

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class QuantPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it."""

    type: str
    tensors: tuple[PlannedTensor, ...]
    """In the order they will be written."""
    source_bytes: int
    files: tuple[int, ...]
    """Size of each output file, in bytes."""
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the output, all files together."""
        return sum(self.files)

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors."""
        return 8 * sum(tensor.bytes for tensor in self.tensors) / sum(tensor.elements for tensor in self.tensors)

    @property
    def mix(self) -> dict[str, int]:
        """Tensor type -> bytes, largest first."""
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.target] = totals.get(tensor.target, 0) + tensor.bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def chosen_type(options: QuantizeOptions) -> FileType | None:
    """The recipe; None for `COPY`."""
    return None if options.type.upper() == COPY else file_type(options.type)


def check_options(options: QuantizeOptions, header: GgufHeader) -> None:
    """Refuse what could only fail later, or would be ignored in silence."""
    recipe = chosen_type(options)
    chosen = (options.tensor_types, options.output_tensor_type, options.token_embedding_type, options.pure)
    if recipe is None and any(chosen):
        raise UnsupportedError(
            "COPY keeps every tensor as it is, and a type was chosen for some",
            hint="choose a quantized file type as the base, such as Q8_0, or leave the types of tensors out",
        )
    if options.keep_output and options.output_tensor_type is not None:
        raise UnsupportedError(
            f"output.weight is kept as it is, or becomes {options.output_tensor_type}, not both",
            hint="leave one of the two out",
        )
    if recipe is not None and options.tensor_types and not tensor_type(recipe.base).quantized:
        raise UnsupportedError(
            f"tensor types are ignored by llama.cpp when the file type is {recipe.name}",
            hint="choose a quantized file type as the base, such as Q8_0",
        )
    for pattern, name in options.tensor_types.items():
        tensor_type(name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise QuantizeError(f"{pattern!r} is no regular expression: {error}", code="E_PATTERN") from error
    for wanted in (options.output_tensor_type, options.token_embedding_type):
        if wanted is not None:
            tensor_type(wanted)
    for key, value in options.metadata.items():
        if len(key.encode()) > 127 or (isinstance(value, str) and len(value.encode()) > 127):
            raise QuantizeError(f"metadata {key!r} is longer than the 127 bytes llama.cpp can set")
    if header.alignment != DEFAULT_ALIGNMENT:
        raise UnsupportedError(
            f"{header.path.name} is aligned to {header.alignment} bytes, and llama.cpp's quantizer writes 32",
            hint="convert the model again with the default alignment",
        )
    layers = header.hyper("block_count")
    missing = [layer for layer in options.prune_layers if not isinstance(layers, int) or not 0 <= layer < layers]
    if missing:
        raise QuantizeError(f"there is no layer {missing[0]} to prune: {header.path.name} has {layers}")


_LINE = re.compile(r"\[\s*\d+/\s*\d+\] (?P<name>.*\S)\s+- \[(?P<shape>[\s\d,]+)\], type = +\w+, size = (?P<rest>.*)")
_NEW_TYPE = re.compile(r"MiB \((?P<type>\w+)\)$")
_PRUNED_NAME = re.compile(r"blk\.(\d+)\.")


def read_dry_run(
    lines: Iterable[str], headers: Sequence[GgufHeader], pruned: Collection[int] = ()
) -> list[PlannedTensor]:
    """Turn llama.cpp's dry-run log into the plan of each tensor."""
    known = {
        _renumbered(tensor.name, pruned): (shard, tensor)
        for shard, header in enumerate(headers)
        for tensor in header.tensors
    }
    planned = []
    for line in lines:
        if not (found := _LINE.match(line)):
            continue
        shard, tensor = known[found["name"]]
        changed = _NEW_TYPE.search(found["rest"])
        target = tensor_type(changed["type"]) if changed else tensor.type
        size = target.size(tensor.shape)
        planned.append(
            PlannedTensor(found["name"], tensor.name, tensor.shape, tensor.type.name, target.name, shard, size)
        )
    return planned


def _renumbered(name: str, pruned: Collection[int]) -> str:
    """The name of a tensor once the pruned layers are gone; layers above move down."""
    if not (found := _PRUNED_NAME.search(name)):
        return name
    layer = int(found[1])
    if layer in pruned:
        return f"pruned {name}"
    return name[: found.start(1)] + str(layer - sum(1 for gone in pruned if gone < layer)) + name[found.end(1) :]


def require_importances(
    tensors: Iterable[PlannedTensor], options: QuantizeOptions, importances: Collection[str]
) -> None:
    """Refuse types that llama.cpp cannot write, or will not, without importances for the tensor."""
    for tensor in tensors:
        if tensor.target == tensor.source or tensor.origin in importances:
            continue
        free = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
        needs = NEED_IMATRIX | ({"Q2_K"} if options.type.upper() == "Q2_K_S" else set())
        if tensor.target in CRASH_WITHOUT_IMATRIX or (tensor.target in needs and not free):
            have = "and the importance matrix has none for it" if importances else "and there is no importance matrix"
            raise InputMissing(
                f"{tensor.name} as {tensor.target} needs importances, {have}",
                hint="`lathe imatrix collect MODEL --text FILE` makes a matrix; pass it with --imatrix",
                code="E_IMATRIX_NEEDED",
            )


def refuse_requantizing(tensors: Iterable[PlannedTensor], options: QuantizeOptions) -> None:
    """Refuse to quantize what has been quantized, unless told to."""
    if options.allow_requantize:
        return
    for tensor in tensors:
        if tensor.target != tensor.source and tensor_type(tensor.source).quantized:
            raise UnsafeError(
                f"{tensor.name} is {tensor.source} already, and quantizing it again adds loss to loss",
                hint="start from an F16, BF16 or F32 file, or pass --allow-requantize",
                code="E_REQUANTIZE",
            )


def unmatched(patterns: Iterable[str], tensors: Sequence[PlannedTensor]) -> list[str]:
    """The patterns that name no tensor."""
    return [pattern for pattern in patterns if not any(re.search(pattern, tensor.name) for tensor in tensors)]
