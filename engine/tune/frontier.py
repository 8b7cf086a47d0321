"""The points one can choose from, which of them no other beats, and which one answers a wish.

Pure values. Invariant: a point's figures were measured; what was not is None.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One file that could be made."""

    label: str
    """A file type of llama.cpp, or `mix 2.89 MB` for a mix of ours."""
    mix: dict[str, str] | None = None
    """Tensor -> type; None for llama.cpp's own recipes."""
    bytes: int
    """Of the whole file."""
    bits_per_weight: float
    predicted_kld: float | None = None
    kld: float
    kld_error: float
    kld_99_9: float
    same_top: float
    perplexity: float
    prompt_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    load_s: float | None = None
    peak_bytes: int | None = None
    """Main memory of a process that runs it, at its highest."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asks of a file; None asks nothing."""

    max_bytes: int | None = None
    max_kld: float | None = None
    min_tokens_per_s: float | None = None

    def granted(self, point: Point) -> bool:
        """Whether a point answers it; a speed that was not measured does not."""
        fast = self.min_tokens_per_s is None or (point.tokens_per_s or 0.0) >= self.min_tokens_per_s
        small = self.max_bytes is None or point.bytes <= self.max_bytes
        close = self.max_kld is None or point.kld <= self.max_kld
        return fast and small and close


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other is both smaller and closer than, by size."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.bytes, one.kld)):
        if not kept or point.kld < kept[-1].kld:
            kept.append(point)
    return kept


def best(points: Sequence[Point], wish: Wish) -> Point | None:
    """The point that answers a wish: the closest to the original, or the smallest where closeness is what is asked."""
    granted = [point for point in points if wish.granted(point)]
    if not granted:
        return None
    if wish.max_kld is not None and wish.max_bytes is None:
        return min(granted, key=lambda point: (point.bytes, point.kld))
    return min(granted, key=lambda point: (point.kld, point.bytes))
