"""How long work on this floor tells where it is: a plain callback."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, float, float | None, str], None]
"""(label, done, total or None, unit): `unit` is `B` for bytes, else a word such as `tensor`."""


def silent(label: str, done: float, total: float | None, unit: str) -> None:
    """Report to nobody."""
