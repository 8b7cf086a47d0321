"""A model as loose tensors: every tensor in every wanted type as a shard of its own, mixed freely without copying.

llama.cpp takes a model split over any number of files, so a mix of types is a list of paths: one head with the
metadata, then one shard per tensor. A variant is quantized when it is first asked for and kept. Invariant: shard `n`
always holds tensor `n` of the source, whatever its type, and is complete once it has its name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lathe.quantize.artefact import new_artefact
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.feedback import Feedback
from lathe.quantize.gguf.packing import packed_tensor, packed_text, packed_value, padded
from lathe.quantize.gguf.types import ValueType
from lathe.quantize.gguf.values import GgufHeader, GgufTensor
from lathe.quantize.imatrix import Imatrix
from lathe.quantize.moments import MomentFolder
from lathe.quantize.tensor_quantizer import quantize_tensor, sampled_error
from lathe.quantize.types import TensorType, tensor_type

_ALIGNMENT = 32
_COPY_BYTES = 1 << 24


class Variants:
    """The shards of one model in a folder."""

    def __init__(
        self,
        headers: Sequence[GgufHeader],
        folder: Path,
        imatrix: Imatrix | None = None,
        moments: MomentFolder | None = None,
        threads: int = 1,
    ) -> None:
        """Prepare a folder; what it holds from before is used again.

        Args:
            headers: the checked headers of the source, all shards.
            imatrix: importances for every tensor it names; the folder is for this matrix alone.
            moments: second moments, with which weights are rounded again; the folder is for these alone.

        Raises:
            UnsupportedError: the source is aligned otherwise than llama.cpp's quantizer writes.
            ImatrixError: the importances are another model's.
        """
        if headers[0].alignment != _ALIGNMENT:
            raise UnsupportedError(f"{headers[0].path.name} is aligned to {headers[0].alignment} bytes instead of 32")
        self._folder = folder
        self._threads = threads
        self._importances = imatrix.importances() if imatrix else {}
        self._moments = moments
        self.tensors: dict[str, GgufTensor] = {tensor.name: tensor for header in headers for tensor in header.tensors}
        if imatrix is not None:
            imatrix.check_serves(self.tensors.values(), headers[0].path.name)
        self._header_of = {tensor.name: header for header in headers for tensor in header.tensors}
        self._numbers = {name: number for number, name in enumerate(self.tensors, 1)}
        self._main = headers[0]
        self.source = headers[0].path
        """The model's file, or the first of its shards."""
        folder.mkdir(parents=True, exist_ok=True)

    def paths(self, mix: Mapping[str, str]) -> list[Path]:
        """The files of a mix: tensor -> type; tensors it does not name stay as they are in the source."""
        head = self._folder / self.source.name  # messages name the model by it
        if not head.exists():
            with new_artefact(head) as part:
                part.write_bytes(padded(self._head()))
        return [head, *(self._shard(name, mix.get(name)) for name in self.tensors)]

    def missing(self, mix: Mapping[str, str]) -> int:
        """How many weights of a mix have not been quantized yet."""
        return sum(
            self.tensors[name].elements
            for name, kind in mix.items()
            if not self._path(name, tensor_type(kind)).exists()
        )

    def size(self, mix: Mapping[str, str]) -> int:
        """Bytes of tensor data in one file of this mix, padding included."""
        total = 0
        for name, tensor in self.tensors.items():
            size = tensor_type(mix[name]).size(tensor.shape) if name in mix else tensor.nbytes
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
        return total

    def error(self, name: str, kind: str) -> float:
        """Expected squared error of the tensor's output as a type, from a sample of rows."""
        tensor = self.tensors[name]
        return sampled_error(
            self._header_of[name], tensor, tensor_type(kind), self._importances.get(name), self._feedback(tensor)
        )

    def has_importances(self, name: str) -> bool:
        """Whether the matrix names a tensor."""
        return name in self._importances

    def write(self, path: Path, mix: Mapping[str, str], metadata: Mapping[str, str | int]) -> None:
        """Write the mix as one GGUF file.

        Args:
            metadata: set besides what the source has; strings, or integers stored as uint32.
        """
        shards = self.paths(mix)[1:]
        keys = {
            key: packed_text(key) + packed_value(self._main.value_types[key], value)
            for key, value in self._main.metadata.items()
            if not key.startswith("split.")
        }
        for key, value in metadata.items():
            keys[key] = packed_text(key) + packed_value(
                ValueType.STRING if isinstance(value, str) else ValueType.UINT32, value
            )
        table, offset, sizes = b"", 0, []
        for name, tensor in self.tensors.items():
            stored = tensor_type(mix[name]) if name in mix else tensor.type
            table += packed_tensor(name, tensor.shape, stored.id, offset)
            sizes.append(stored.size(tensor.shape))
            offset += -(-sizes[-1] // _ALIGNMENT) * _ALIGNMENT
        with path.open("wb") as file:
            file.write(
                padded(struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), len(keys)) + b"".join(keys.values()) + table)
            )
            for shard, size in zip(shards, sizes, strict=True):
                with shard.open("rb") as source:
                    source.seek(-size, 2)
                    while data := source.read(_COPY_BYTES):
                        file.write(data)
                file.write(bytes(-size % _ALIGNMENT))

    def _shard(self, name: str, kind: str | None) -> Path:
        tensor = self.tensors[name]
        stored = tensor.type if kind is None else tensor_type(kind)
        path = self._path(name, stored)
        if path.exists():
            return path
        with new_artefact(path) as part, part.open("wb") as file:
            table = packed_tensor(name, tensor.shape, stored.id, 0)
            file.write(padded(struct.pack("<4sIQQ", b"GGUF", 3, 1, 3) + self._split(self._numbers[name]) + table))
            header = self._header_of[name]
            if stored.name == tensor.type.name:
                for start in range(0, tensor.nbytes, _COPY_BYTES):
                    size = min(_COPY_BYTES, tensor.nbytes - start)
                    np.fromfile(header.path, np.uint8, size, offset=header.position(tensor) + start).tofile(file)
            else:
                for slab in quantize_tensor(
                    header, tensor, stored, self._importances.get(name), self._feedback(tensor), self._threads
                ):
                    slab.tofile(file)
        return path

    def _path(self, name: str, stored: TensorType) -> Path:
        return self._folder / f"{self._numbers[name]:05d}-{stored.name}.gguf"

    def _feedback(self, tensor: GgufTensor) -> Feedback | None:
        single = len(tensor.shape) == 2
        return self._moments.feedback(tensor.name) if self._moments is not None and single else None

    def _head(self) -> bytes:
        keys = [
            packed_text(key) + packed_value(self._main.value_types[key], value)
            for key, value in self._main.metadata.items()
            if not key.startswith("split.")
        ]
        return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys) + 3) + b"".join(keys) + self._split(0)

    def _split(self, number: int) -> bytes:
        return (
            packed_text("split.no") + struct.pack("<IH", ValueType.UINT16, number)
            + packed_text("split.count") + struct.pack("<IH", ValueType.UINT16, len(self.tensors) + 1)
            + packed_text("split.tensors.count") + struct.pack("<Ii", ValueType.INT32, len(self.tensors))
        )  # fmt: skip
