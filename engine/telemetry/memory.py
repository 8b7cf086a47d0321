"""How much memory this process may really use: the machine's, or its control group's where that is less.

A container with a limit of 4 GiB on a host of 256 GiB has 4 GiB; psutil alone would say otherwise, and the OOM killer
would have the last word. Invariant: `available` never exceeds what every group on the way to the root leaves.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
from lathe.engine.telemetry.files import integer, text


class HostMemory(msgspec.Struct, frozen=True):
    """Main memory, in bytes."""

    total: int
    available: int
    """Without swapping, as the kernel estimates it; the page cache counts as available."""


def read_memory(root: Path = Path("/")) -> HostMemory:
    """Read the machine and the control groups below `root`."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for limit, free in _groups(root):
        total = min(total, limit)
        available = min(available, free)
    return HostMemory(total, max(0, min(available, total)))


def _groups(root: Path) -> list[tuple[int, int]]:
    """(limit, free) of every control group with a limit, from ours up to the root."""
    membership = text(root / "proc/self/cgroup") or ""
    found: list[tuple[int, int]] = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for folder in _upward(base, path):
            limit, used = integer(folder / names[0]), integer(folder / names[1])  # "max" is no number: no limit
            if limit is not None and used is not None and limit < 1 << 60:
                found.append((limit, limit - used + _cache(folder, names[2])))
    return found


def _upward(base: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _cache(folder: Path, key: str) -> int:
    """File pages that the kernel drops before it kills anybody."""
    for line in (text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0
