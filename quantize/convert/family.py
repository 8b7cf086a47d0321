"""What a model family is to the converter: data.

A `Family` says where each tensor of a checkpoint goes, which hyper-parameters mean what, and the few transforms its
layout needs. Invariant: a family holds no state and reads no file; one conversion cannot influence another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.writer import Metadata
from lathe.quantize.safetensors import Array

RowOrder = Callable[[int, Hparams], npt.NDArray[np.intp]]
View = Callable[[Array, Hparams], Array]


def _whole(stored: Array, hparams: Hparams) -> Array:
    return stored


@dataclass(frozen=True)
class Rule:
    """Where a tensor goes and how its layout changes on the way.

    `view` rearranges without copying (a transpose, a slice), `rows` gives the source row of each output row, and
    `value` maps float32 values to float32 values; they apply in this order.
    """

    to: str
    view: View = _whole
    rows: RowOrder | None = None
    value: Callable[[Floats], Floats] | None = None
    undo: Callable[[Floats], Floats] | None = None
    """The way back from `value`."""
    view_back: View | None = None
    """The way back from `view`, where it has one."""

    @property
    def reversible(self) -> bool:
        """Whether a checkpoint's tensor can be made of the GGUF's again."""
        return (self.view is _whole or self.view_back is not None) and (self.value is None or self.undo is not None)


def _no_facts(hparams: Hparams) -> Metadata:
    return {}


def _no_window(hparams: Hparams) -> int | None:
    return None


def _no_tensors(hparams: Hparams) -> dict[str, Floats]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the table of architectures."""

    arch: str
    """llama.cpp's name for it."""
    tensors: Mapping[str, str | Rule]
    """Checkpoint name -> GGUF name, both without `.weight`/`.bias`; `{n}` stands for the layer."""
    prefixes: tuple[str, ...] = ("model.", "language_model.")
    """Stripped from checkpoint names, as often as they occur."""
    unused: tuple[str, ...] = ()
    """Regular expressions for tensors (after stripping) that inference does not need."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What transformers assumes when config.json does not say."""
    facts: Callable[[Hparams], Metadata] = _no_facts
    """Metadata beyond the shared keys, below the architecture's name."""
    silent: frozenset[str] = frozenset()
    """Shared keys that llama.cpp does not expect of this architecture."""
    computed: Callable[[Hparams], dict[str, Floats]] = _no_tensors
    """Tensors that are computed from hyper-parameters."""
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Hyper-parameters that llama.cpp's graph takes for granted -> the values it computes; see `graph.py`."""
    dense: bool = False
    """Whether llama.cpp's graph goes on through matrices behind the pooled vector; see `dense.py`."""
    ignored_window: Callable[[Hparams], int | None] = _no_window
    """Tokens of a sliding window that llama.cpp's graph does not have."""
