"""Importance matrices: mean squared activations per input channel, in the files of llama-imatrix.

A file holds, for each weight, the sums of squared activations over all tokens seen and how many those were, per
matrix of the weight (one for each expert). GGUF files are read and written, files of the older binary format are
read. Pure. Invariant: what is read has one finite, non-negative sum per channel.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize.artefact import new_artefact
from lathe.quantize.errors import FormatError, InputMissing
from lathe.quantize.gguf.header import read_header
from lathe.quantize.gguf.values import GgufHeader, GgufTensor

Floats = npt.NDArray[np.float32]

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_LEGACY_CHUNK = 512
"""Tokens per call assumed for the older format, which does not say."""
_LEGACY_LIMIT = 1 << 31
_MAX_ENTRIES = 1 << 16


class ImatrixError(FormatError):
    """A file that is no importance matrix, or two that do not belong together."""

    code = "E_IMATRIX"


class Entry(msgspec.Struct, frozen=True):
    """What was seen of one weight's input."""

    sums: Floats
    """Matrices x channels: sums of squares."""
    counts: npt.NDArray[np.int64]
    """Tokens that went into each matrix."""

    def means(self) -> Floats:
        """Mean squares, with ones for a matrix that saw no token; what quantizers weigh errors with."""
        seen = self.counts[:, None] > 0
        divisor = np.where(seen, self.counts[:, None], 1).astype(np.float32)
        means: Floats = np.where(seen, self.sums / divisor, np.float32(1))
        return means


class Imatrix(msgspec.Struct, frozen=True, kw_only=True):
    """A whole importance matrix."""

    entries: dict[str, Entry]
    """By the weight's name."""
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = _LEGACY_CHUNK
    """Tokens per chunk."""

    def importances(self) -> dict[str, Floats]:
        """One value per channel and matrix, flat, as llama.cpp's quantizer takes it."""
        return {name: np.ascontiguousarray(entry.means().ravel()) for name, entry in self.entries.items()}

    def check_serves(self, tensors: Iterable[GgufTensor], model: str) -> None:
        """Refuse a matrix whose weights have other inputs than the model's; native code reads as many as it expects.

        Raises:
            ImatrixError: it is another model's.
        """
        for tensor in tensors:
            entry, wanted = self.entries.get(tensor.name), tensor.shape[0] * math.prod(tensor.shape[2:])
            if entry is not None and entry.sums.size != wanted:
                raise ImatrixError(
                    f"the importance matrix does not serve {model}: "
                    f"{tensor.name} has {entry.sums.size} values there and {wanted} here",
                    hint="it is another model's; `lathe imatrix collect` makes one",
                )


def read_imatrix(path: Path) -> Imatrix:
    """Read a file of either format.

    Raises:
        ImatrixError: it is none, or its numbers are unusable.
        GgufError: its header is broken.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise InputMissing(f"there is no importance matrix at {path}") from error
    matrix = _read_gguf(read_header(path)) if magic == b"GGUF" else _read_legacy(path)
    for name, entry in matrix.entries.items():
        if not np.isfinite(entry.sums).all() or (entry.sums < 0).any() or (entry.counts < 0).any():
            raise ImatrixError(f"{path.name}: {name} holds values that are no sums of squares")
    return matrix


def write_imatrix(path: Path, matrix: Imatrix, *, inputs: Sequence[Path] = (), force: bool = False) -> None:
    """Write a GGUF file that llama-imatrix and llama-quantize read; `inputs` must not be written over."""
    with new_artefact(path, inputs=inputs, force=force) as part:
        part.write_bytes(_gguf(matrix))


def merge(matrices: Sequence[Imatrix]) -> Imatrix:
    """Add up matrices of the same model, as if their texts had been one.

    Raises:
        ImatrixError: a tensor has other channels in one than in another, or they have no tensor in common.
    """
    if any(not matrix.entries.keys() & matrices[0].entries.keys() for matrix in matrices[1:]):
        raise ImatrixError("the importance matrices have no tensor in common: they are not of one model")
    entries: dict[str, Entry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            entries[name] = _added(name, entries[name], entry) if name in entries else entry
    chunk_size = matrices[-1].chunk_size
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    return Imatrix(
        entries=entries,
        datasets=tuple(name for matrix in matrices for name in matrix.datasets),
        chunks=most // chunk_size,
        chunk_size=chunk_size,
    )


def _added(name: str, one: Entry, other: Entry) -> Entry:
    if one.sums.size != other.sums.size:
        raise ImatrixError(f"{name} has {one.sums.size} channels in one matrix and {other.sums.size} in another")
    if len(one.counts) < len(other.counts):
        one, other = other, one
    shape = one.sums.shape
    sums = one.sums.astype(np.float64) + other.sums.reshape(shape)
    return Entry(sums.astype(np.float32), one.counts + other.counts)


def _read_gguf(header: GgufHeader) -> Imatrix:
    tensors = {tensor.name: tensor for tensor in header.tensors}
    entries = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = tensors.get(weight + _COUNTS)
        if counts is None:
            raise ImatrixError(f"{header.path.name}: {weight} has sums and no counts")
        numbers = np.rint(_values(header, counts)).astype(np.int64)
        sums = _values(header, tensor)
        if not len(numbers) or sums.size % len(numbers):
            raise ImatrixError(f"{header.path.name}: {weight} has {sums.size} sums for {len(numbers)} counts")
        entries[weight] = Entry(sums.reshape(len(numbers), -1), numbers)
    if not entries:
        raise ImatrixError(f"{header.path.name} is a GGUF file without importances")
    datasets = header.array("imatrix.datasets")
    return Imatrix(
        entries=entries,
        datasets=tuple(str(name) for name in datasets) if datasets is not None else (),
        chunks=header.number("imatrix.chunk_count") or 0,
        chunk_size=header.number("imatrix.chunk_size") or _LEGACY_CHUNK,
    )


def _values(header: GgufHeader, tensor: GgufTensor) -> Floats:
    if tensor.type.name != "F32":
        raise ImatrixError(f"{header.path.name}: {tensor.name} is {tensor.type.name} where F32 belongs")
    return np.fromfile(header.path, np.float32, tensor.elements, offset=header.position(tensor))


def _read_legacy(path: Path) -> Imatrix:
    """The binary format before GGUF: entries of (name, calls, mean square x calls), then calls and data set."""
    if path.stat().st_size > _LEGACY_LIMIT:
        raise ImatrixError(f"{path.name} is too large for an importance matrix")
    data = memoryview(path.read_bytes())
    position = 0

    def integer() -> int:
        nonlocal position
        (value,) = struct.unpack_from("<i", data, position)
        position += 4
        return int(value)

    def text() -> str:
        nonlocal position
        size = integer()
        if not 0 <= size <= min(4096, len(data) - position):
            raise ImatrixError(f"{path.name} is no importance matrix")
        position += size
        return bytes(data[position - size : position]).decode("utf-8", "replace")

    try:
        entries = {}
        count = integer()
        if not 0 < count <= _MAX_ENTRIES:
            raise ImatrixError(f"{path.name} is no importance matrix")
        for _ in range(count):
            name, calls, values = text(), integer(), integer()
            if values < 1 or position + 4 * values > len(data):
                raise ImatrixError(f"{path.name} ends within {name!r}")
            means = np.frombuffer(data, "<f4", values, position)
            position += 4 * values
            sums = means * np.float32(_LEGACY_CHUNK)
            entries[name] = Entry(sums[None, :], np.array([max(calls, 1) * _LEGACY_CHUNK], np.int64))
        chunks = integer() if position < len(data) else 0
        datasets = (text(),) if position < len(data) else ()
    except struct.error as error:
        raise ImatrixError(f"{path.name} is no importance matrix") from error
    return Imatrix(entries=entries, datasets=datasets, chunks=chunks)


def _gguf(matrix: Imatrix) -> bytes:
    arrays: list[tuple[str, Floats]] = []
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        arrays.append((name + _SUMS, entry.sums))
        arrays.append((name + _COUNTS, entry.counts.astype(np.float32)[:, None]))
    keys = [
        _text("general.type") + struct.pack("<I", 8) + _text("imatrix"),
        _text("imatrix.datasets")
        + struct.pack("<IIQ", 9, 8, len(matrix.datasets))
        + b"".join(map(_text, matrix.datasets)),
        _text("imatrix.chunk_count") + struct.pack("<II", 4, matrix.chunks),
        _text("imatrix.chunk_size") + struct.pack("<II", 4, matrix.chunk_size),
    ]
    table, data = bytearray(), bytearray()
    for name, values in arrays:
        # ggml's order of dimensions, without trailing ones
        shape = [values.shape[1]] if values.shape[0] == 1 else [values.shape[1], values.shape[0]]
        table += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += _padded(np.ascontiguousarray(values, "<f4").tobytes())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(keys)) + b"".join(keys) + table
    return _padded(head) + bytes(data)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)
