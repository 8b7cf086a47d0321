"""Safetensors files: a header nobody needs to trust, and tensors read through mmap.

The layout is an 8-byte little-endian header length, a JSON header, and the tensors' bytes. Invariant: a
`SafetensorsFile` that opened has tensors that tile the data section exactly, so that no read can leave the file.
Limits are tighter than the format's own (a 100 MB header with any number of entries is legal there).
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize.errors import InputMissing, SafetensorsError

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 1024

Array = npt.NDArray[Any]

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16: the bits, tagged by TensorInfo.dtype
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""How each stored type is held in memory, little endian."""


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a header; `start` and `end` count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class SafetensorsFile:
    """An open safetensors file; use it in a `with` block.

    Raises `InputMissing` when the path is no regular file and `SafetensorsError` when the header breaks a rule.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe by that name must not block
        except OSError as error:
            raise InputMissing(f"cannot open {path}: {error.strerror}") from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InputMissing(f"{path} is not a regular file")
            self.size = facts.st_size
            if self.size < 8:
                raise _broken(path, f"only {self.size} bytes long, too short for a header")
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        try:
            self.tensors, self.metadata = parse_header(self._map, self.size, path)
        except BaseException:
            self._map.close()
            raise

    def read(self, name: str) -> Array:
        """View a tensor's elements without copying; bfloat16 comes as its uint16 bits."""
        info = self.tensors[name]
        dtype = np.dtype(NUMPY_TYPES[info.dtype]).newbyteorder("<")
        count = math.prod(info.shape)
        return np.frombuffer(self._map, dtype, count, info.start).reshape(info.shape)

    def release(self, name: str) -> None:
        """Let the kernel drop the tensor's pages, so that reading a file does not keep it in memory."""
        info = self.tensors[name]
        start = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = info.end // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)

    def close(self) -> None:
        """Unmap the file; views that are still alive keep the mapping until they go."""
        try:
            self._map.close()
        except BufferError:  # a caller holds a view: its last reference unmaps
            del self._map

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_header(data: Any, size: int, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check the header of `data`, a buffer of `size` bytes: tensors in file order of offsets, metadata."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(path, f"its header claims {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}", "LIMIT")
    if length > size - 8:
        raise _broken(path, f"its header claims {length:,} bytes, the file holds {size - 8:,} after the length")
    entries = _load(bytes(data[8 : 8 + length]), path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "__metadata__ must map strings to strings")
    if len(entries) > MAX_TENSORS:
        raise _broken(path, f"it lists {len(entries):,} tensors; the limit is {MAX_TENSORS:,}", "LIMIT")
    base = 8 + length
    tensors = [_tensor(name, entry, base, path) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.end))
    expected = base
    for info in tensors:
        if info.start != expected:
            word = "overlaps the one before it" if info.start < expected else "leaves a hole before it"
            raise _broken(path, f"tensor {info.name!r} {word}", "TENSOR")
        expected = info.end
    if expected != size:
        what = "is cut short" if expected > size else "has bytes after its last tensor"
        raise _broken(path, f"the file {what}: tensors end at byte {expected:,}, the file at {size:,}", "TENSOR")
    return {info.name: info for info in tensors}, metadata


def _load(header: bytes, path: Path) -> dict[str, Any]:
    """Decode the JSON, refusing duplicate keys, deep nesting and bombs of tiny containers."""
    if not header.startswith(b"{"):
        raise _broken(path, "its header does not start with '{'")
    if header.count(b"[") + header.count(b"{") > 4 * MAX_TENSORS:  # a real entry has three
        raise _broken(path, "its header holds too many lists and objects", "LIMIT")
    try:
        entries = json.loads(header, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise _broken(path, "its header nests too deeply", "LIMIT") from error
    except ValueError as error:  # JSON, UTF-8, duplicate keys, over-long integers
        raise _broken(path, f"its header is no valid JSON: {error}") from error
    assert isinstance(entries, dict)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} appears twice")
    return mapping


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _tensor(name: str, entry: Any, base: int, path: Path) -> TensorInfo:
    """Check one entry on its own: known type, sane shape, and exactly the bytes that shape needs."""

    def broken(reason: str) -> SafetensorsError:
        return _broken(path, f"tensor {name[:80]!r} {reason}", "TENSOR")

    if not name or len(name) > MAX_NAME_LENGTH or "\0" in name:
        raise broken("has an unusable name")
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_TYPES:
        raise broken(f"has the unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise broken(f"has no usable shape (at most {MAX_DIMENSIONS} sizes of 0 or more)")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken("has no usable data_offsets")
    needed = math.prod(shape) * np.dtype(NUMPY_TYPES[dtype]).itemsize
    start, end = offsets
    if end - start != needed:
        raise broken(f"of {dtype} {shape} needs {needed:,} bytes, its offsets give {end - start:,}")
    return TensorInfo(name, dtype, tuple(shape), base + start, base + end)


def _naturals(value: Any) -> bool:
    """Tell whether `value` is a list of integers of 0 or more (JSON's true and 1.0 are neither)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _broken(path: Path, reason: str, kind: str = "HEADER") -> SafetensorsError:
    return SafetensorsError(
        f"{path.name} is not a valid safetensors file: {reason}",
        hint="the file is damaged, incomplete or hostile: fetch it again and compare its hash",
        code=f"E_SAFETENSORS_{kind}",
    )
