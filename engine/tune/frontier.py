"""The points one can choose from, which of them no other beats, and which one answers a wish.

Pure values. Invariant: a point's figures were measured; what was not is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Measure = Literal["kld", "distance"]
"""What divergence is: Kullback-Leibler's of next tokens, in nats; or distance of an embedder's vectors, 1 - cosine."""
NOUNS: dict[Measure, str] = {"kld": "KLD", "distance": "distance"}
UNITS: dict[Measure, str] = {"kld": "1e-5 nats", "distance": "1e-5 of distance"}
"""Of the costs of single tensors."""
_MIDDLE = ("Q4_K", "IQ4_NL", "Q4_0")
"""Types between the coarse and the fine ones."""


class Closeness(msgspec.Struct, frozen=True, kw_only=True):
    """How close a file is to the original, measured."""

    divergence: float
    """The mean, over tokens or passages."""
    error: float
    """Its standard error."""
    divergence_99_9: float
    """The 99.9th percentile."""
    agreement: float
    """Share of tokens with the same most probable one, or of passages with the same nearest one."""
    perplexity: float | None = None
    neighbours: float | None = None
    """Share of a passage's ten nearest that are still among them."""


class Point(Closeness, frozen=True, kw_only=True):
    """One file that could be made."""

    label: str
    """A file type of llama.cpp, or `mix 2.89 MB` for a mix of ours."""
    mix: dict[str, str] | None = None
    """Tensor -> type; None for llama.cpp's own recipes."""
    bytes: int
    """Of the whole file."""
    bits_per_weight: float
    predicted: float | None = None
    """The divergence that the search expected of a mix."""
    prompt_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    """Generated; None where the model generates nothing."""
    load_s: float | None = None
    peak_bytes: int | None = None
    """Main memory of a process that runs it, at its highest."""

    @property
    def speed(self) -> float | None:
        """What a wish for speed is about: generated tokens per second, or those read where none are generated."""
        return self.prompt_tokens_per_s if self.tokens_per_s is None else self.tokens_per_s


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asks of a file; None asks nothing."""

    max_bytes: int | None = None
    max_divergence: float | None = None
    min_tokens_per_s: float | None = None

    def granted(self, point: Point) -> bool:
        """Whether a point answers it; a speed that was not measured does not."""
        fast = self.min_tokens_per_s is None or (point.speed or 0.0) >= self.min_tokens_per_s
        small = self.max_bytes is None or point.bytes <= self.max_bytes
        close = self.max_divergence is None or point.divergence <= self.max_divergence
        return fast and small and close


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other is both smaller and closer than, by size."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.bytes, one.divergence)):
        if not kept or point.divergence < kept[-1].divergence:
            kept.append(point)
    return kept


def best(points: Sequence[Point], wish: Wish) -> Point | None:
    """The point that answers a wish: the closest to the original, or the smallest where closeness is what is asked."""
    granted = [point for point in points if wish.granted(point)]
    if not granted:
        return None
    if wish.max_divergence is not None and wish.max_bytes is None:
        return min(granted, key=lambda point: (point.bytes, point.divergence))
    return min(granted, key=lambda point: (point.divergence, point.bytes))


def kinds_of(sensitivity: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Tensor types that something is known of, those of most tensors first."""
    return [kind for kind, _ in _counts(sensitivity).most_common()]


def telling_kind(sensitivity: Mapping[str, Mapping[str, float]]) -> str | None:
    """The type whose costs tell most: a middling one, of as many tensors as any; None where nothing is known."""
    counts = _counts(sensitivity)
    most = max(counts.values(), default=0)
    return next((kind for kind in (*_MIDDLE, *counts) if most and counts[kind] == most), None)


def _counts(sensitivity: Mapping[str, Mapping[str, float]]) -> Counter[str]:
    """Type -> tensors it is known of."""
    return Counter(kind for by_kind in sensitivity.values() for kind in by_kind)
