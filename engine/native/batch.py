"""Tokens for one call of llama.cpp, in arrays that Python owns and native code reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import InternalError
from lathe.quantize.libllama import bindings

Tokens = npt.NDArray[np.int32]


class Batch:
    """Tokens for one decode call, in arrays that Python owns and native code reads.

    Each token belongs to one sequence, those of `extend_shared` to several. `extend` appends a run of tokens with
    vectorised writes; `add` appends one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self.token = np.zeros(capacity, np.int32)
        self.position = np.zeros(capacity, np.int32)
        self.sequence = np.zeros(capacity, np.int32)
        self.output = np.zeros(capacity, np.int8)
        """1 where logits are wanted."""
        self._counts = np.ones(capacity, np.int32)
        # llama_batch.seq_id is an array of pointers, one list of sequences per token: here each points into `sequence`.
        self._lists = self.sequence.ctypes.data + np.arange(capacity, dtype=np.uintp) * 4
        self._shared: list[Tokens] = []
        """Lists of sequences that tokens of this batch point to; kept alive here."""
        lib = bindings()
        integers = ctypes.POINTER(ctypes.c_int32)
        self.native = lib.llama_batch(
            0,
            self.token.ctypes.data_as(integers),
            None,
            self.position.ctypes.data_as(integers),
            self._counts.ctypes.data_as(integers),
            self._lists.ctypes.data_as(ctypes.POINTER(integers)),
            self.output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        """Forget every token."""
        self.n_tokens = 0
        self.native.n_tokens = 0
        if self._shared:
            self._shared.clear()
            self._counts[:] = 1
            self._lists[:] = self.sequence.ctypes.data + np.arange(self.capacity, dtype=np.uintp) * 4

    def add(self, token: int, position: int, sequence: int = 0, output: bool = False) -> int:
        """Append one token; returns its index in the batch."""
        index = self.n_tokens
        self.token[index] = token
        self.position[index] = position
        self.sequence[index] = sequence
        self.output[index] = output
        self.n_tokens = self.native.n_tokens = index + 1
        return index

    def extend(
        self, tokens: Tokens | Sequence[int], start: int, sequence: int = 0, output: npt.ArrayLike = False
    ) -> slice:
        """Append tokens at positions `start, start + 1, ...`; `output` is one flag or one per token."""
        where = slice(self.n_tokens, self.n_tokens + len(tokens))
        if where.stop > self.capacity:
            raise InternalError(f"a batch of {self.capacity} tokens cannot take {where.stop}")
        self.token[where] = tokens
        self.position[where] = np.arange(start, start + len(tokens), dtype=np.int32)
        self.sequence[where] = sequence
        self.output[where] = output
        self.n_tokens = self.native.n_tokens = where.stop
        return where

    def extend_shared(
        self, tokens: Tokens | Sequence[int], start: int, sequences: Sequence[int], output: npt.ArrayLike = False
    ) -> slice:
        """Append tokens that several sequences have in common: each gets them, and they are computed once."""
        where = self.extend(tokens, start, sequences[0], output)
        if len(sequences) > 1:
            listed = np.array(sequences, np.int32)
            self._shared.append(listed)
            self._counts[where] = len(sequences)
            self._lists[where] = listed.ctypes.data
        return where

    @property
    def n_outputs(self) -> int:
        """How many rows of logits the batch asks for."""
        return int(np.count_nonzero(self.output[: self.n_tokens]))
