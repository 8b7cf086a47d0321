"""Distance of vectors: how far a mix turns an embedder's vectors of the same passages away from the original's.

Invariant: passages travel in the same batches for the original and for every mix, so what a batch does to rounding is
the same for both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lathe.engine.measure.vectors import Rows, compare, embed
from lathe.engine.tune.yardstick import Reading, Yardstick


class VectorYardstick(Yardstick):
    """Passages of a text, and the original's vectors of them."""

    def __init__(
        self, original: Sequence[Path], passages: Sequence[bytes], tokens: int, *, threads: int = 0, gpu_layers: int = 0
    ) -> None:
        """Run the original over the passages.

        Args:
            original: its files, in the order of its shards.
            tokens: the most that are read of a passage.
        """
        super().__init__(threads, gpu_layers)
        self._passages = passages
        self._tokens = tokens
        started = time.monotonic()
        self._base = self._vectors(original)
        self.seconds = time.monotonic() - started

    def read(self, files: Sequence[Path], *, kv_type: str = "f16") -> Reading:
        """Measure a model given as its files; vectors have no KV cache, so its type says nothing."""
        started = time.monotonic()
        found = compare(self._base, self._vectors(files))
        return Reading(
            divergence=found.distance.value,
            error=found.distance.error,
            divergence_99_9=found.distance_percentiles[99.9],
            agreement=found.same_nearest.value,
            neighbours=found.neighbours.value,
            seconds=time.monotonic() - started,
        )

    def _vectors(self, files: Sequence[Path]) -> Rows:
        with self._model(files) as model:
            return embed(model, self._passages, self._tokens, threads=self._threads)
