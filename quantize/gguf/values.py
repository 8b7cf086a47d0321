"""What a GGUF header holds, as values: tensors, arrays that stay on disk until asked, and the header itself.

Invariant: a `GgufHeader` was checked when it was made; an array re-checks its bounds when it is decoded, because the
file may have changed since.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize.gguf.source import Source
from lathe.quantize.gguf.types import LAYOUTS, MAX_STRING_BYTES, ValueType
from lathe.quantize.types import TensorType

Kind = Literal["model", "vocabulary", "adapter", "imatrix", "projector", "control-vector", "shard"]


class GgufArray(msgspec.Struct, frozen=True):
    """An array value: its bounds were checked, its items are read when asked for."""

    path: Path
    key: str
    items: ValueType
    count: int
    position: int
    """Of the first item in the file."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def numpy(self) -> npt.NDArray[Any]:
        """Read the numbers of a non-string array."""
        layout = LAYOUTS[self.items]
        with self._open() as source:
            return np.frombuffer(source.take(self.count * int(layout[-1])), layout)

    def batches(self) -> Iterator[list[bytes]]:
        """Read the strings of a string array, exactly as stored, in lists of bounded size."""
        with self._open() as source:
            yield from source.strings(self.count, MAX_STRING_BYTES)

    def tolist(self) -> list[Any]:
        """Decode every item; invalid UTF-8 in strings becomes U+FFFD."""
        if self.items is ValueType.STRING:
            return [item.decode("utf-8", "replace") for batch in self.batches() for item in batch]
        values: list[Any] = self.numpy().tolist()
        return values

    def _open(self) -> Source:
        source = Source(self.path, self.position)
        source.place = f"key {self.key!r}"
        return source


Scalar = int | float | bool | str
Value = Scalar | GgufArray


class GgufTensor(msgspec.Struct, frozen=True):
    """One tensor of the table."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    """ggml's order: the first is the row length."""
    offset: int
    """From the start of the data section, as in the file."""
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class GgufHeader(msgspec.Struct, frozen=True):
    """Everything before the tensor data of one file, checked."""

    path: Path
    file_bytes: int
    version: int
    alignment: int
    metadata: dict[str, Value]
    value_types: dict[str, ValueType]
    """How each value is stored, in the file's order; for writing it again."""
    tensors: tuple[GgufTensor, ...]
    """In the file's order."""
    data_offset: int
    """Where the data section starts; without tensors, where the header ends."""

    @property
    def architecture(self) -> str | None:
        """llama.cpp's name of the model's family."""
        return self.text("general.architecture")

    @property
    def kind(self) -> Kind:
        """What the file is for, by its own word."""
        if self.number("split.no"):
            return "shard"
        declared = self.text("general.type")
        if declared == "imatrix":
            return "imatrix"
        if declared == "adapter" or "adapter.type" in self.metadata:
            return "adapter"
        if declared == "mmproj" or self.architecture == "clip":
            return "projector"
        if self.architecture == "controlvector":
            return "control-vector"
        if not self.tensors and self.shards == 1:
            return "vocabulary"
        return "model"

    @property
    def shards(self) -> int:
        """Files that the model is split into."""
        return max(1, self.number("split.count") or 1)

    def text(self, key: str) -> str | None:
        """Return a string value, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return an integer value, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def array(self, key: str) -> GgufArray | None:
        """Return an array value, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, GgufArray) else None

    def hyper(self, name: str) -> Value | None:
        """Return the hyper-parameter `<architecture>.<name>`."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def position(self, tensor: GgufTensor) -> int:
        """Where the tensor's bytes start in the file."""
        return self.data_offset + tensor.offset
