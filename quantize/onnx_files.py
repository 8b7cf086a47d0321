"""What an ONNX file holds and which other files it would read, found out without the onnx package.

ONNX Runtime opens whatever path a tensor names as its external data; this module names those files first and refuses
every one that is not a plain file below the model's folder. Invariant: all places where a tensor can hide are looked
at (initializers, sparse ones, attributes, sub-graphs, functions, training graphs), to a bounded depth.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import msgspec
from lathe.quantize.errors import FormatError, UnsafeError
from lathe.quantize.protobuf import Span, WireFile

MAX_DEPTH = 16
"""Of sub-graphs inside nodes."""
MAX_TENSORS = 262_144
MAX_DIMENSIONS = 32
_EXTERNAL_KEYS = ("location", "offset", "length", "checksum")

_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "STRING": 8, "BOOL": 8,
    "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16,
    "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4,
    "FLOAT4E2M1": 4, "FLOAT8E8M0": 8, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6,
}  # fmt: skip
"""`TensorProto.DataType` from 1 on, in the order of its numbers; strings are counted as one byte each."""
_TYPES = ("UNDEFINED", *_BITS)


class OnnxTensor(msgspec.Struct, frozen=True):
    """One constant of a model."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    location: str | None = None
    """External file, relative to the model's folder; None when the data is inside."""
    offset: int = 0

    @property
    def elements(self) -> int:
        """Number of values as stored."""
        return math.prod(self.shape)


class OnnxFile(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one ONNX file; its external files exist and are safe to open."""

    path: Path
    file_bytes: int
    producer: str
    opsets: dict[str, int]
    """Domain (empty for the standard one) -> version."""
    operators: dict[str, int]
    """Operator -> number of nodes, sub-graphs included."""
    tensors: tuple[OnnxTensor, ...]
    external: tuple[Path, ...]
    """Files that the tensors' data is in, sorted."""
    parameters: int
    """Values of all weights; block-quantized ones count as what they stand for."""
    uses: dict[str, tuple[str, ...]]
    """Tensor -> the operators that read it, sorted."""


def read_onnx(path: Path) -> OnnxFile:
    """Read the structure of an ONNX file and check its external data.

    Raises `FormatError` for malformed files, `UnsafeError` for external data outside of the model's folder or behind
    links, `InputMissing` where there is no file.
    """
    with WireFile(path, "E_ONNX") as wire:
        walk = _Walk(wire)
        walk.model(wire.message)
        if not walk.graphs:
            raise wire.error("not an ONNX file: it has no graph")
        external = _check_external(wire, walk.tensors)
        return OnnxFile(
            path=path,
            file_bytes=wire.message.size,
            producer=walk.producer,
            opsets=walk.opsets,
            operators=dict(walk.operators.most_common()),
            tensors=tuple(walk.tensors),
            external=external,
            parameters=walk.parameters(),
            uses=walk.uses(),
        )


class _Walk:
    """One pass over a model; collects tensors, operators and opsets."""

    def __init__(self, wire: WireFile) -> None:
        self.wire = wire
        self.producer = ""
        self.graphs = 0
        self.opsets: dict[str, int] = {}
        self.operators: Counter[str] = Counter()
        self.tensors: list[OnnxTensor] = []
        self._blocks: dict[str, int] = {}
        """Weight of a block-quantized operator -> how many values it stands for."""
        self._scales: set[str] = set()
        self._readers: dict[str, set[str]] = {}
        """Value -> operators that read it."""

    def model(self, message: Span) -> None:
        for number, value in self.wire.fields(message):
            if number == 2:
                self.producer = self.wire.text(value)
            elif number == 8:
                self._opset(self.wire.span(value))
            elif number == 7:
                if self.graphs:
                    raise self.wire.error("it has two graphs")
                self.graph(self.wire.span(value), 0)
            elif number == 20:  # training_info: initialization = 1, algorithm = 2
                for part, inner in self.wire.fields(self.wire.span(value)):
                    if part in (1, 2):
                        self.graph(self.wire.span(inner), 0)
            elif number == 25:  # functions: node = 7, attribute_proto = 11
                for part, inner in self.wire.fields(self.wire.span(value)):
                    if part == 7:
                        self._node(self.wire.span(inner), 0)
                    elif part == 11:
                        self._attribute(self.wire.span(inner), 0)

    def graph(self, message: Span, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.wire.error(f"sub-graphs are nested more than {MAX_DEPTH} deep")
        self.graphs += 1
        nodes: list[tuple[list[str], list[str]]] = []
        for number, value in self.wire.fields(message):
            if number == 1:
                nodes.append(self._node(self.wire.span(value), depth))
            elif number == 5:
                self._tensor(self.wire.span(value))
            elif number == 15:
                self._sparse(self.wire.span(value))
        producers = {name: index for index, (_, outputs) in enumerate(nodes) for name in outputs if name}
        try:
            TopologicalSorter(
                {
                    index: {producers[name] for name in inputs if name in producers}
                    for index, (inputs, _) in enumerate(nodes)
                }
            ).prepare()
        except CycleError:
            raise self.wire.error("its graph has a cycle") from None

    def parameters(self) -> int:
        """Count the weights, without indices, scales and zero points of block-quantized operators."""
        return sum(
            self._blocks.get(tensor.name, tensor.elements)
            for tensor in self.tensors
            if tensor.name not in self._scales and tensor.type not in ("INT64", "STRING", "BOOL")
        )

    def uses(self) -> dict[str, tuple[str, ...]]:
        """Tell what reads each tensor."""
        return {
            tensor.name: tuple(sorted(self._readers[tensor.name]))
            for tensor in self.tensors
            if tensor.name in self._readers
        }

    def _opset(self, message: Span) -> None:
        domain, version = "", 0
        for number, value in self.wire.fields(message):
            if number == 1:
                domain = self.wire.text(value)
            elif number == 2 and isinstance(value, int):
                version = value
        self.opsets[domain] = version

    def _node(self, message: Span, depth: int) -> tuple[list[str], list[str]]:
        inputs: list[str] = []
        outputs: list[str] = []
        operator = ""
        integers: dict[str, int] = {}
        for number, value in self.wire.fields(message):
            if number == 1:
                inputs.append(self.wire.text(value))
            elif number == 2:
                outputs.append(self.wire.text(value))
            elif number == 4:
                operator = self.wire.text(value)
            elif number == 5:
                name, integer = self._attribute(self.wire.span(value), depth)
                integers[name] = integer
        self.operators[operator] += 1
        for name in inputs:
            self._readers.setdefault(name, set()).add(operator)
        if operator == "MatMulNBits" and len(inputs) > 1:  # weight [N, blocks, bytes] stands for K x N values
            self._blocks[inputs[1]] = integers.get("K", 0) * integers.get("N", 0)
            self._scales.update(inputs[2:4])
        return inputs, outputs

    def _attribute(self, message: Span, depth: int) -> tuple[str, int]:
        """Look for tensors and graphs; return the name and the value of an integer attribute."""
        name, integer = "", 0
        seen: set[int] = set()
        for number, value in self.wire.fields(message):
            if number in (5, 6, 22) and number in seen:
                # a parser merges the two halves, and each half alone may look harmless
                raise self.wire.error(f"attribute {name!r} has two values")
            seen.add(number)
            if number == 1:
                name = self.wire.text(value)
            elif number == 3 and isinstance(value, int):
                integer = value
            elif number in (5, 10):
                self._tensor(self.wire.span(value))
            elif number in (6, 11):
                self.graph(self.wire.span(value), depth + 1)
            elif number in (22, 23):
                self._sparse(self.wire.span(value))
        return name, integer

    def _sparse(self, message: Span) -> None:
        seen: set[int] = set()
        for number, value in self.wire.fields(message):
            if number in (1, 2):
                if number in seen:
                    raise self.wire.error("a sparse tensor has two values")
                seen.add(number)
                self._tensor(self.wire.span(value))

    def _tensor(self, message: Span) -> None:
        shape: list[int] = []
        kind, name, stored = 0, "", 0
        is_external = False
        external: dict[str, str] = {}
        for number, value in self.wire.fields(message):
            if number == 1:
                shape += self.wire.numbers(value, MAX_DIMENSIONS)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 8:
                name = self.wire.text(value)
            elif number in (4, 5, 6, 7, 9, 10, 11):
                stored += value.size if isinstance(value, Span) else 8
            elif number == 13:
                key, text = self._entry(self.wire.span(value))
                if key in external or key not in _EXTERNAL_KEYS:
                    raise self._unsafe(name, f"has the external data key {key!r} twice or unknown")
                external[key] = text
            elif number == 14 and value == 1:
                is_external = True
        if len(self.tensors) >= MAX_TENSORS:
            raise self.wire.error(f"more than {MAX_TENSORS:,} tensors")
        tensor = self._measured(name, kind, tuple(shape))
        if is_external or external:
            tensor = self._external(tensor, external)
        elif tensor.elements > 8 * stored:
            raise self.wire.error(f"tensor {name!r} promises {tensor.elements:,} values in {stored:,} bytes")
        self.tensors.append(tensor)

    def _measured(self, name: str, kind: int, shape: tuple[int, ...]) -> OnnxTensor:
        if not 0 < kind < len(_TYPES):
            raise self.wire.error(f"tensor {name!r} has the unknown type {kind}")
        if len(shape) > MAX_DIMENSIONS or any(size >= 1 << 63 for size in shape) or math.prod(shape) >= 1 << 48:
            raise self.wire.error(f"tensor {name!r} has the impossible shape {shape[:8]}")
        return OnnxTensor(name, _TYPES[kind], shape, -(-math.prod(shape) * _BITS[_TYPES[kind]] // 8))

    def _external(self, tensor: OnnxTensor, entries: dict[str, str]) -> OnnxTensor:
        location = entries.get("location", "")
        parts = PurePosixPath(location).parts
        if (
            not parts
            or location.startswith("/")
            or any(part in ("..", ".") for part in location.split("/"))
            or any(mark in location for mark in ("\\", ":", "\0", "_ORT_MEM_ADDR_"))
        ):
            raise self._unsafe(tensor.name, f"names the external file {location[:120]!r}, outside of its folder")
        offset, length = entries.get("offset", "0"), entries.get("length", str(tensor.nbytes))
        if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in (offset, length)):
            raise self._unsafe(tensor.name, f"has the external range {offset[:20]!r}, {length[:20]!r}")
        if int(length) != tensor.nbytes:
            raise self.wire.error(f"tensor {tensor.name!r} needs {tensor.nbytes:,} external bytes, not {int(length):,}")
        return msgspec.structs.replace(tensor, location=location, offset=int(offset))

    def _entry(self, message: Span) -> tuple[str, str]:
        key = text = ""
        for number, value in self.wire.fields(message):
            if number == 1:
                key = self.wire.text(value)
            elif number == 2:
                text = self.wire.text(value)
        return key, text

    def _unsafe(self, name: str, what: str) -> UnsafeError:
        return UnsafeError(f"{self.wire.path}: tensor {name[:120]!r} {what}", code="E_ONNX_EXTERNAL")


def _check_external(wire: WireFile, tensors: list[OnnxTensor]) -> tuple[Path, ...]:
    """Stat every external file once; each is regular, reached without links, and long enough."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.location is None:
            continue
        if tensor.location not in sizes:
            sizes[tensor.location] = _plain_size(wire.path.parent, tensor.location)
        if tensor.offset + tensor.nbytes > sizes[tensor.location]:
            raise FormatError(
                f"{wire.path}: tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes:,} of "
                f"{tensor.location}, which has {sizes[tensor.location]:,}",
                code="E_ONNX",
            )
    return tuple(sorted(wire.path.parent / location for location in sizes))


def _plain_size(folder: Path, location: str) -> int:
    path = folder
    for part in PurePosixPath(location).parts:
        path = path / part
        try:
            status = path.lstat()
        except OSError as error:
            raise FormatError(f"the external data {path} cannot be read: {error.strerror}", code="E_ONNX") from error
        if stat.S_ISLNK(status.st_mode):
            status = _cached(path)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise UnsafeError(f"the external data {path} is not a plain file of its own", code="E_ONNX_EXTERNAL")
    return status.st_size


def _cached(link: Path) -> os.stat_result:
    """Follow the one kind of link that is normal: from a snapshot of the Hugging Face cache to its blob."""
    target = Path(os.path.normpath(link.parent / link.readlink()))
    for folder in link.parents:
        if folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs":
            return target.lstat()
    raise UnsafeError(f"the external data {link} is a link to {target}", code="E_ONNX_EXTERNAL")
