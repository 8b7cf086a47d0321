"""Durable files beside a store: written whole or not at all.

Invariant: after `publish` returns, the new content is on disk under its name, whatever happens to the power.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def publish(part: Path, path: Path) -> None:
    """Give a finished temporary file its name, durably."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a temporary file that may not exist."""
    with suppress(FileNotFoundError):
        path.unlink()
