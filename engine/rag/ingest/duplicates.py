"""Passages that say the same: exact ones by hash, near ones by MinHash over word shingles (rensa).

Invariant: memory is bounded. Exact duplicates are found however far apart, at 16 bytes each; near ones among the last
`window` passages at least, because copies of a document tend to lie close, and the report says how many were compared.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

import msgspec
from lathe.engine.rag.ingest.errors import NeedsLibrary
from lathe.engine.rag.ingest.readers.base import library

_PERMUTATIONS = 128
_BANDS = 32
"""Bands of four: a pair of similarity 0.8 is compared with probability 0.9999, one of 0.3 with 0.23."""
_SEED = 42
_SHINGLE = 3
_CHARACTERS = 5
_LEAST_SHINGLES = 8
"""Shorter texts are compared exactly only: `Chapter 1` and `Chapter 2` are no copies."""
_WORD = re.compile(r"\w+")


class Duplicate(msgspec.Struct, frozen=True):
    """What a passage repeats."""

    of: int
    """The key of the passage that was seen first."""
    kind: Literal["exact", "near"]
    similarity: float
    """Share of shingles in common: 1.0, or MinHash's estimate (standard error at 0.8: 0.035)."""


class _Generation:
    def __init__(self, rensa: Any, threshold: float) -> None:
        self.index = rensa.RMinHashLSH(threshold, _PERMUTATIONS, _BANDS)
        self.sketches: dict[int, Any] = {}


class Duplicates:
    """Remembers what was seen; one instance per run, fed in order."""

    def __init__(self, threshold: float = 0.85, window: int = 100_000) -> None:
        self.threshold = threshold
        self.compared = 0
        """Passages that were long enough to be compared for nearness."""
        self._window = window
        self._exact: dict[bytes, int] = {}
        try:
            self._rensa: Any = library("rensa")
        except NeedsLibrary:
            self._rensa = None
        self.near = self._rensa is not None
        """Whether near duplicates are looked for; without the library only exact ones are."""
        self._now: _Generation | None = _Generation(self._rensa, threshold) if self.near else None
        self._before: _Generation | None = None

    def check(self, key: int, text: str) -> Duplicate | None:
        """What this passage repeats, or None, in which case it is remembered under its key."""
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words or [text]).encode("utf-8", "replace"), digest_size=16).digest()
        first = self._exact.setdefault(digest, key)
        if first != key:
            return Duplicate(first, "exact", 1.0)
        shingles = _shingles(words) if self._now is not None else []
        if len(shingles) < _LEAST_SHINGLES:
            return None
        self.compared += 1
        sketch = self._rensa.RMinHash(_PERMUTATIONS, _SEED)
        sketch.update(shingles)
        found = self._nearest(sketch)
        if found is None:
            self._remember(key, sketch)
        return found

    def _nearest(self, sketch: Any) -> Duplicate | None:
        best: Duplicate | None = None
        for generation in (self._now, self._before):
            if generation is None:
                continue
            for other in generation.index.query(sketch):
                similarity = float(sketch.jaccard(generation.sketches[other]))
                if similarity >= self.threshold and (best is None or similarity > best.similarity):
                    best = Duplicate(other, "near", similarity)
        return best

    def _remember(self, key: int, sketch: Any) -> None:
        assert self._now is not None
        if len(self._now.sketches) >= self._window:
            self._before, self._now = self._now, _Generation(self._rensa, self.threshold)
        self._now.index.insert(key, sketch)
        self._now.sketches[key] = sketch


def _shingles(words: list[str]) -> list[str]:
    """Runs of three words; of five characters where words are not written apart."""
    if len(words) <= 3 and sum(map(len, words)) > 40:
        joined = "".join(words)
        return [joined[start : start + _CHARACTERS] for start in range(len(joined) - _CHARACTERS + 1)]
    return [" ".join(words[start : start + _SHINGLE]) for start in range(len(words) - _SHINGLE + 1)]
