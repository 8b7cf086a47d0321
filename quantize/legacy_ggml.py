"""Model files from before GGUF: `ggml`, `ggmf` and `ggjt` containers, which name neither their architecture nor types.

The header is a row of bare integers whose meaning depends on the program that wrote it. Each known layout is tried in
turn: the right one has plausible numbers, then a vocabulary, then tensors that end exactly where the file ends.
Invariant: numbers are only compared and stepped over; nothing is allocated by their word.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections import Counter
from pathlib import Path
from typing import IO

import msgspec
from lathe.quantize.errors import FormatError, InputMissing

MAX_TENSORS = 65_536
MAX_VOCABULARY = 2_000_000
MAX_TOKEN_BYTES = 4096
MAX_NAME_BYTES = 256

_CONTAINERS = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt", b"algg": "ggla"}
"""The magic numbers as they stand in the file, little endian."""

_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
}  # fmt: skip
_SIZES_V1 = {0: (1, 4), 1: (1, 2), 2: (32, 20), 3: (32, 24), 4: (16, 10), 6: (32, 22), 7: (32, 24), 8: (32, 36)}
"""Type -> (values, bytes) per block while scales were float32: until ggjt 2, and quantization version 1 of ggml."""
_SIZES_V2 = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
}  # fmt: skip
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_1_SOME_F16", 5: "Q4_2", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
    10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K",
}  # fmt: skip


_QUANTIZATION_VERSION = 2
"""The last before GGUF; programs other than llama.cpp add a thousand of it to the file type."""


class _Layout(msgspec.Struct, frozen=True):
    """Header fields in order; `f:` marks a float that is stepped over."""

    architecture: str
    fields: tuple[str, ...]
    repeats_vocabulary: bool = True
    """Whether the number of tokens stands once more before the tokens."""


_LLAMA = _Layout(
    "llama",
    ("vocabulary", "embedding", "multiple", "heads", "layers", "rotation", "file_type"),
    repeats_vocabulary=False,
)
_LAYOUTS = (
    _LLAMA,
    _Layout("gpt2", ("vocabulary", "context", "embedding", "heads", "layers", "file_type")),
    _Layout("gptj", ("vocabulary", "context", "embedding", "heads", "layers", "rotation", "file_type")),
    _Layout("gptneox", ("vocabulary", "context", "embedding", "heads", "layers", "rotation", "residual", "file_type")),
    _Layout(
        "mpt",
        ("embedding", "context", "heads", "layers", "vocabulary", "f:alibi", "f:clip", "file_type"),
        repeats_vocabulary=False,
    ),
)


class LegacyGgml(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a pre-GGUF file; `architecture` is None where no known layout fits."""

    path: Path
    file_bytes: int
    container: str
    """`ggml`, `ggmf`, `ggjt`, or `ggla` for LoRA adapters."""
    version: int
    architecture: str | None = None
    file_type: str | None = None
    vocabulary: int | None = None
    context: int | None = None
    embedding: int | None = None
    heads: int | None = None
    layers: int | None = None
    tensors: int = 0
    parameters: int | None = None
    tensor_types: dict[str, int] = {}
    """Type -> bytes."""


class _Misfit(Exception):
    """The file does not follow the layout that is being tried."""


def is_legacy(magic: bytes) -> bool:
    """Tell whether a file that starts with these four bytes is a pre-GGUF model."""
    return magic in _CONTAINERS


def read_legacy(path: Path) -> LegacyGgml:
    """Read what can be told of a pre-GGUF file; raises `FormatError` where it is none or cut short."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic not in _CONTAINERS:
            raise FormatError(f"{path}: not a GGML file: it starts with {magic!r}", code="E_GGML")
        container, version = _CONTAINERS[magic], 1
        if container != "ggml":
            try:
                (version,) = _unpack(file, "<I")
            except _Misfit:
                raise FormatError(f"{path}: cut short in the header", code="E_GGML") from None
        if not 1 <= version <= (3 if container == "ggjt" else 1):
            raise FormatError(f"{path}: {container} version {version} is unknown", code="E_GGML")
        bare = LegacyGgml(path=path, file_bytes=size, container=container, version=version)
        start = file.tell()
        layouts = {"ggml": _LAYOUTS, "ggla": ()}.get(container, (_LLAMA,))
        for layout in layouts:
            for sizes in (_SIZES_V2, _SIZES_V1):
                file.seek(start)
                try:
                    return _follow(file, bare, layout, sizes)
                except _Misfit:
                    continue
        return bare


def _follow(file: IO[bytes], bare: LegacyGgml, layout: _Layout, sizes: dict[int, tuple[int, int]]) -> LegacyGgml:
    numbers = _header(file, layout)
    _skip_vocabulary(file, bare, layout, numbers["vocabulary"])
    types: Counter[str] = Counter()
    tensors = parameters = 0
    while file.tell() < bare.file_bytes:
        name, values, nbytes = _skip_tensor(file, bare, sizes)
        types[name] += nbytes
        parameters += values
        tensors += 1
        if tensors > MAX_TENSORS:
            raise _Misfit
    if not tensors:
        raise _Misfit
    return msgspec.structs.replace(
        bare,
        architecture=layout.architecture,
        file_type=_FILE_TYPES.get(numbers["file_type"] % 1000),
        vocabulary=numbers["vocabulary"],
        context=numbers.get("context"),
        embedding=numbers["embedding"],
        heads=numbers["heads"],
        layers=numbers["layers"],
        tensors=tensors,
        parameters=parameters,
        tensor_types=dict(types),
    )


def _header(file: IO[bytes], layout: _Layout) -> dict[str, int]:
    numbers = dict(zip(layout.fields, _unpack(file, f"<{len(layout.fields)}I"), strict=True))
    plausible = (
        0 < numbers["vocabulary"] <= MAX_VOCABULARY
        and 0 < numbers["embedding"] <= 1 << 17
        and 0 < numbers["heads"] <= 1024
        and numbers["embedding"] % numbers["heads"] == 0
        and 0 < numbers["layers"] <= 512
        and 0 < numbers.get("context", 1) <= 1 << 24
        and numbers.get("residual", 0) <= 1
        and numbers.get("rotation", 0) <= numbers["embedding"] // numbers["heads"]
        and numbers["file_type"] // 1000 <= _QUANTIZATION_VERSION
        and numbers["file_type"] % 1000 in _FILE_TYPES
    )
    if not plausible or (layout.repeats_vocabulary and _unpack(file, "<I")[0] != numbers["vocabulary"]):
        raise _Misfit
    return numbers


def _skip_vocabulary(file: IO[bytes], bare: LegacyGgml, layout: _Layout, count: int) -> None:
    score_bytes = 4 if layout is _LLAMA and bare.container != "ggml" else 0
    if count * (4 + score_bytes) > bare.file_bytes - file.tell():
        raise _Misfit
    for _ in range(count):
        (length,) = _unpack(file, "<I")
        if length > MAX_TOKEN_BYTES:
            raise _Misfit
        if len(file.read(length + score_bytes)) < length + score_bytes:
            raise _Misfit


def _skip_tensor(file: IO[bytes], bare: LegacyGgml, sizes: dict[int, tuple[int, int]]) -> tuple[str, int, int]:
    """Step over one tensor; returns its type, values and bytes."""
    dimensions, name_bytes, kind = _unpack(file, "<3I")
    if not 1 <= dimensions <= 4 or not 1 <= name_bytes <= MAX_NAME_BYTES or kind not in sizes:
        raise _Misfit
    shape = _unpack(file, f"<{dimensions}I")
    block, block_bytes = sizes[kind]
    if not all(shape) or shape[0] % block or not file.read(name_bytes).isascii():
        raise _Misfit
    values = math.prod(shape)
    nbytes = values // block * block_bytes
    start = file.tell()
    if bare.container == "ggjt":
        start += -start % 32
    if start + nbytes > bare.file_bytes:
        raise _Misfit
    file.seek(start + nbytes)
    return _TYPE_NAMES[kind], values, nbytes


def _unpack(file: IO[bytes], layout: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    data = file.read(size)
    if len(data) < size:
        raise _Misfit
    return struct.unpack(layout, data)


def _open(path: Path) -> IO[bytes]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InputMissing(f"there is no file {path}", hint="check the path") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError(f"{path} is not a regular file", code="E_GGML")
    return os.fdopen(handle, "rb")
