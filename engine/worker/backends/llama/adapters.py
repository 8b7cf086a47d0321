"""LoRA adapters: loaded beside the model, chosen per request.

llama.cpp applies adapters to a whole batch, so requests with different adapters are in different lanes, and the
scheduler gives each batch to one lane. Invariant: the context carries exactly the adapters of the lane it computes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lathe.engine.errors import DataError, UsageError
from lathe.engine.native.llama import LlamaContext, LlamaModel, bindings, complaint, forget
from lathe.engine.worker.backends.llama.admission import Lane

_LARGEST_SCALE = 100.0


class Adapters:
    """The adapters of one model."""

    def __init__(self, model: LlamaModel, context: LlamaContext, paths: Sequence[str]) -> None:
        """Load adapters; each is known by the name of its file.

        Raises:
            DataError: a file is no adapter for this model.
        """
        self._lib = bindings()
        self._context = context
        self._handles: dict[str, int] = {}
        self._active: Lane = ()
        for path in paths:
            name = Path(path).stem
            if name in self._handles:
                raise UsageError(f"two adapters are called {name}", hint="rename one of the files")
            forget()
            handle = self._lib.llama_adapter_lora_init(model.handle, os.fsencode(path))
            if not handle:
                raise DataError(f"{path} is no adapter for {model.path.name}: {complaint()}", code="E_ADAPTER")
            self._handles[name] = handle

    def lane(self, wanted: Mapping[str, float]) -> Lane:
        """Check a request's adapters. Any thread.

        Raises:
            UsageError: an adapter is not loaded, or its scale is out of range.
        """
        for name, scale in wanted.items():
            if name not in self._handles:
                known = ", ".join(sorted(self._handles)) or "none"
                raise UsageError(f"no adapter is called {name}", hint=f"loaded with the model: {known}")
            if not abs(scale) <= _LARGEST_SCALE:
                raise UsageError(f"adapter {name}: scale {scale!r} is larger than {_LARGEST_SCALE:g}")
        return tuple(sorted((name, float(scale)) for name, scale in wanted.items() if scale))

    def activate(self, lane: Lane) -> None:
        """Make the next batches of the context those of a lane."""
        if lane == self._active:
            return
        handles = (self._lib.llama_adapter_lora_p_ctypes * len(lane))(*(self._handles[name] for name, _ in lane))
        scales = (ctypes.c_float * len(lane))(*(scale for _, scale in lane))
        if self._lib.llama_set_adapters_lora(self._context.handle, handles, len(lane), scales):
            raise DataError(f"llama.cpp refuses the adapters {lane}: {complaint()}", code="E_ADAPTER")
        self._active = lane
