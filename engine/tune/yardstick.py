"""How far a mix of types is from the original, as the search sees it: one number to make small, and what goes with it.

What is measured depends on what the model is for: next tokens (`token_yardstick`) or vectors of texts
(`vector_yardstick`). Both grow with the square of a small error, which is what the search builds on. Invariant: every
reading of one yardstick is of the same text, so readings of two mixes differ by the mixes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from lathe.engine.native.llama import LlamaModel
from lathe.engine.tune.frontier import Closeness


class Reading(Closeness, frozen=True, kw_only=True):
    """One mix, measured."""

    seconds: float


class Yardstick(ABC):
    """A text and what the original makes of it."""

    exact: bool = True
    """Whether nothing of what the original says is left out."""
    seconds: float
    """That the original took."""

    def __init__(self, threads: int, gpu_layers: int) -> None:
        self._threads = threads
        self._gpu_layers = gpu_layers

    @abstractmethod
    def read(self, files: Sequence[Path], *, kv_type: str = "f16") -> Reading:
        """Measure a model given as its files, in the order of its shards."""

    def _model(self, files: Sequence[Path]) -> LlamaModel:
        shards = files if len(files) > 1 else ()
        return LlamaModel(files[0], gpu_layers=self._gpu_layers, shards=shards)
