"""Noticing that folders of documents changed, by looking at them again: works on every file system, misses nothing.

Invariant: a change is told only after the tree has stood still for one interval, so that a file being copied is not
read half; looking costs at most a tenth of the time, however large the tree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
from lathe.engine.rag.ingest.walk import Found, walk

_SHARE = 10
"""Times its own cost that a look is apart from the next."""

_Look = dict[str, tuple[int, int]]


class Changes(msgspec.Struct, frozen=True):
    """What is different since the last time something was told."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


async def watch(roots: Sequence[Path], interval_s: float = 2.0) -> AsyncGenerator[Changes, None]:
    """Yield changes below some roots until the caller leaves the loop; first none, when the starting point is known."""
    told, cost = await _look(roots)
    last = told
    yield Changes()
    while True:
        await asyncio.sleep(max(interval_s, _SHARE * cost))
        now, cost = await _look(roots)
        if now == last and (changes := compare(told, now)):
            told = now
            yield changes
        last = now


def compare(before: _Look, after: _Look) -> Changes:
    """What is different between two looks."""
    return Changes(
        added=tuple(sorted(after.keys() - before.keys())),
        changed=tuple(sorted(path for path in after.keys() & before.keys() if after[path] != before[path])),
        removed=tuple(sorted(before.keys() - after.keys())),
    )


async def _look(roots: Sequence[Path]) -> tuple[_Look, float]:
    started = time.monotonic()
    look = await asyncio.to_thread(_files, roots)
    return look, time.monotonic() - started


def _files(roots: Sequence[Path]) -> _Look:
    return {entry.name: (entry.file_bytes, entry.modified_ns) for entry in walk(roots) if isinstance(entry, Found)}
