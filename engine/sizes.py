"""Sizes of files as people write them."""

from __future__ import annotations

import re

from lathe.engine.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_LONGEST = 40


def bytes_of(text: str) -> int:
    """`4GB`, `2.5 GiB` or a number, in bytes; K to T are powers of 1000, with an i of 1024.

    Raises:
        UsageError: it is no size, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        raise UsageError(f"{text[:_LONGEST]!r} is no size", hint="write 4GB, 2.5GiB or a number of bytes")
    power = "KMGT".find(found[2].upper()) + 1 if found[2] else 0
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        raise UsageError("a file has at least a byte", hint="write 4GB, 2.5GiB or a number of bytes")
    return size
