"""Numbers that several verbs take, with bounds: native code has no room for all that Python counts to, nor for NaN."""

from __future__ import annotations

import math
from typing import Any, get_args

import click
from lathe.engine.worker.messages import KvType

MOST_THREADS = 512
THREADS = click.IntRange(0, MOST_THREADS)
"""Zero leaves the choice to Lathe."""
SOME_THREADS = click.IntRange(1, MOST_THREADS)
LAYER = click.IntRange(0, 99_999)
GPU_LAYERS = click.IntRange(-1, 99_999)
"""-1: all."""
KV_TYPE = click.Choice(get_args(KvType), case_sensitive=False)


class Finite(click.FloatRange):
    """A number between its bounds; NaN is between any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


class _Chunks(click.IntRange):
    """Chunks of a text: some, or -1 for all; of none there is nothing to measure."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        number = super().convert(value, param, ctx)
        if number == 0:
            self.fail("0 chunks are nothing to measure; -1 takes all", param, ctx)
        return number


CHUNKS = _Chunks(min=-1)
