"""A GGUF file boiled down to what must be equal: metadata by value, tensors by type, shape and hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lathe.quantize.gguf.header import GgufArray, read_header


def digest(path: Path) -> dict[str, Any]:
    """Return `metadata` and `tensors` as plain values; arrays of more than 8 items by number and hash."""
    header = read_header(path)
    metadata: dict[str, Any] = {}
    for key, value in header.metadata.items():
        kind = header.value_types[key].name
        if not isinstance(value, GgufArray):
            metadata[key] = [kind, value]
        elif len(value) <= 8:
            metadata[key] = [f"{kind} of {value.items.name}", value.tolist()]
        else:
            items = hashlib.sha256(repr(value.tolist()).encode()).hexdigest()
            metadata[key] = [f"{kind} of {value.items.name}", len(value), items]
    tensors: dict[str, Any] = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            file.seek(header.data_offset + tensor.offset)
            content = hashlib.sha256(file.read(tensor.nbytes)).hexdigest()
            tensors[tensor.name] = [tensor.type.name, list(tensor.shape), content]
    return {"metadata": metadata, "tensors": tensors}
