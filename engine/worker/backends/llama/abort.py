"""Stopping a decode that is running, from another thread.

llama.cpp asks an abort callback before every node of its graph, a thousand times per batch; asking Python each time
would cost a good part of a small model's speed. C's own `strlen` over a two-byte buffer is a callback that costs
nothing: 0 while the flag is an empty string, 1 once it is not. Works on the CPU; GPU backends do not ask.
"""

from __future__ import annotations

import ctypes

from lathe.engine.native.llama import LlamaContext, bindings


class AbortFlag:
    """A flag that a running decode sees between two nodes."""

    def __init__(self, context: LlamaContext) -> None:
        lib = bindings()
        self._flag = ctypes.create_string_buffer(2)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
        lib.llama_set_abort_callback(context.handle, self._strlen, ctypes.addressof(self._flag))

    def set(self) -> None:
        """Stop the decode that is running. Any thread."""
        self._flag[0] = b"x"

    def clear(self) -> None:
        """Let the next decode run."""
        self._flag[0] = b"\0"
