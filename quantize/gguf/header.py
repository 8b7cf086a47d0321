"""The doors of the GGUF preflight: read one file, or all shards of a model.

Invariant: what these functions return has passed every check of this package.
"""

from __future__ import annotations

from pathlib import Path

from lathe.quantize.gguf.parser import parse
from lathe.quantize.gguf.semantics import check_embedding, check_header
from lathe.quantize.gguf.shards import check_shards, shard_paths
from lathe.quantize.gguf.values import GgufArray, GgufHeader, GgufTensor

__all__ = ["GgufArray", "GgufHeader", "GgufTensor", "read_header", "read_sharded"]


def read_header(path: Path) -> GgufHeader:
    """Read and check one GGUF file of any kind; of a sharded model, only this shard.

    Raises `GgufError`, or `InputMissing` where there is no file.
    """
    header = parse(path)
    check_header(header)
    return header


def read_sharded(path: Path) -> tuple[GgufHeader, ...]:
    """Read and check all files of a model, given any of its shards; the first carries the metadata.

    Raises as `read_header` does, and `InputMissing` naming the shards that are not there.
    """
    given = read_header(path)
    headers = tuple(given if shard == path else read_header(shard) for shard in shard_paths(given))
    check_shards(headers)
    if len(headers) > 1:
        check_embedding(headers[0], [tensor for header in headers for tensor in header.tensors])
    return headers
