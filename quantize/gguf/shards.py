"""Models split over several files: their names, and whether they belong together.

llama.cpp finds shards by name alone, `<prefix>-00001-of-00003.gguf`, and so do we. Invariant: shards are looked for
in the folder of the one that was given, nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lathe.quantize.errors import GgufError, InputMissing
from lathe.quantize.gguf.values import GgufHeader

MAX_SHARDS = 1024
_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def shard_name(prefix: str, number: int, count: int) -> str:
    """Name shard `number` (from 1) of `count`."""
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def shard_paths(header: GgufHeader) -> list[Path]:
    """List the files of the model that a shard belongs to, all of them present."""
    count, path = header.shards, header.path
    if count == 1:
        return [path]
    if count > MAX_SHARDS:
        raise GgufError(f"{path}: {count:,} shards; the limit is {MAX_SHARDS:,}", code="E_GGUF_LIMIT")
    number = (header.number("split.no") or 0) + 1
    match = _NAME.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number, count):
        raise GgufError(
            f"{path} is shard {number} of {count}, but its name does not say so",
            hint=f"llama.cpp finds shards by name: call it {shard_name('NAME', number, count)}",
            code="E_GGUF_METADATA",
        )
    paths = [path.with_name(shard_name(match["prefix"], index, count)) for index in range(1, count + 1)]
    if missing := [shard.name for shard in paths if not shard.is_file()]:
        raise InputMissing(
            f"{len(missing)} of {count} shards are missing beside {path}: {', '.join(missing[:3])}",
            hint="put all shards into one folder",
        )
    return paths


def check_shards(headers: Sequence[GgufHeader]) -> None:
    """Raise unless the files number themselves in order and hold together the promised tensors, each once."""
    first = headers[0]
    seen: dict[str, Path] = {}
    for index, header in enumerate(headers):
        if len(headers) > 1 and header.number("split.no") != index:
            raise GgufError(
                f"{header.path}: key 'split.no' is {header.number('split.no')}; {index} was expected",
                code="E_GGUF_METADATA",
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise GgufError(
                    f"tensor {tensor.name!r} is in both {seen[tensor.name]} and {header.path}", code="E_GGUF_TENSOR"
                )
            seen[tensor.name] = header.path
    promised = first.number("split.tensors.count")
    if len(headers) > 1 and promised != len(seen):
        raise GgufError(
            f"{first.path}: key 'split.tensors.count' is {promised}; the shards hold {len(seen)} tensors",
            code="E_GGUF_TENSOR",
        )
