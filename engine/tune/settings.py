"""How to tune, and who hears of it. Pure values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from lathe.engine.tune.frontier import Measure
from lathe.engine.tune.sensitivity import KINDS

Report = Callable[[str, float, float | None, str], None]
"""(what is done, steps done, steps in all where that is known, unit)."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to tune."""

    kinds: tuple[str, ...] = KINDS
    imatrix: Path | None = None
    feedback: bool = True
    n_ctx: int = 256
    n_chunks: int = 48
    seconds: float = 1800
    threads: int = 0
    gpu_layers: int = 0
    wished: Measure | None = None
    """The measure that the result is asked to be close by."""
