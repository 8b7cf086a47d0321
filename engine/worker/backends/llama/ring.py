"""The effects of a plan on llama.cpp: cache operations, one decode, its logits.

Decides nothing. Invariants: what is written to the batch is what the plan says, in its order; an aborted decode leaves
nothing behind that the scheduler does not know of.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import InternalError
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import LlamaContext, bindings, complaint
from lathe.engine.scheduler.ledger import Discard, Drop, Effect, Restore, Save, Share
from lathe.engine.scheduler.sequence import Chunk, Plan
from lathe.engine.worker.backends.llama.abort import AbortFlag
from lathe.engine.worker.backends.llama.probabilities import Rows
from lathe.engine.worker.backends.llama.threads import Threads

_ABORTED = 2
"""llama_decode's status."""
_WORTH_ABORTING = 32
"""Prompt tokens in a batch from which on it is aborted for a cancelled request; less is done soon."""


class Ring:
    """A context and the batch that it is fed with."""

    def __init__(self, context: LlamaContext, max_outputs: int, threads: Threads | None = None) -> None:
        """Begin with an empty batch; `threads` decides how many compute, where that is open."""
        self._lib = bindings()
        self._context = context
        self._max_outputs = max_outputs
        self._threads = threads
        self._batch = Batch(context.n_batch)
        self._abort = AbortFlag(context)
        self._view: tuple[int, Rows] | None = None
        self._saved: dict[int, npt.NDArray[np.uint8]] = {}
        """States of sequences that left the cache."""
        self._flight: dict[int, int] | None = None
        """Prompt tokens per request in the batch that is being decoded."""
        self.busy_since = 0.0
        """When the running decode began; 0 when none runs."""

    @property
    def handle(self) -> int:
        """llama.cpp's context, for samplers."""
        return self._context.handle

    def apply(self, effects: list[Effect]) -> None:
        """Carry out what the ledger wrote down; what is saved takes the memory of what was just forgotten for it.

        Touching new memory takes longer than the copy.
        """
        spare: list[npt.NDArray[np.uint8]] = []
        for effect in effects:
            match effect:
                case Share(source, target, start, end):
                    self._context.copy(source, target, start, end)
                case Drop(sequence, start, end):
                    if not self._context.remove(sequence, start, -1 if end is None else end):
                        raise InternalError(f"llama.cpp cannot cut sequence {sequence} at {start}")
                case Save(sequence, entry):
                    self._saved[entry] = self._state(sequence, spare)
                case Restore(entry, sequence):
                    self._bring_back(self._saved[entry], sequence)
                case Discard(entry):
                    spare.append(self._saved.pop(entry))

    def compute(self, plan: Plan) -> float | None:
        """Decode a plan's tokens; returns the seconds it took, None when it was aborted.

        Raises:
            InternalError: llama.cpp refused the batch; the state of its cache is unknown then.
        """
        self._fill(plan)
        flight: dict[int, int] | None = None
        if plan.short + plan.long > _WORTH_ABORTING:
            flight = {}
            for chunk in plan.chunks:
                flight[chunk.sequence.request] = flight.get(chunk.sequence.request, 0) + chunk.count
        return self.decode(self._batch, flight, streams=plan.streams)

    def decode(self, batch: Batch, flight: dict[int, int] | None = None, *, streams: int = 0) -> float | None:
        """Decode a batch; returns the seconds it took, None when it was aborted.

        Args:
            flight: how many of its tokens are whose, where it is worth aborting.
            streams: how many of its tokens are the next ones of running answers.
        """
        if flight is not None:
            self._abort.clear()
            self._flight = flight
        begun = self.busy_since = time.monotonic()
        try:
            status = self._context.try_decode(batch)
            self._context.synchronize()
        finally:
            self.busy_since = 0.0
            self._flight = None
        if status == _ABORTED:
            self._abort.clear()
            return None
        if status:
            raise InternalError(f"llama.cpp could not decode a batch (status {status}): {complaint()}")
        seconds = time.monotonic() - begun
        self._adapt(batch, streams, seconds)
        return seconds

    def _adapt(self, batch: Batch, streams: int, seconds: float) -> None:
        """Let the next batch be computed by as many threads as have a processor."""
        if self._threads is not None:
            before = self._threads.count
            now = self._threads.note(streams, batch.n_tokens - streams, batch.n_outputs, seconds)
            if now != before:
                self._context.set_threads(now)

    def interrupt(self, request: int) -> None:
        """Abort the running decode if most of it is this request's prompt. Any thread."""
        flight = self._flight
        if flight is not None and 2 * flight.get(request, 0) > sum(flight.values()):
            self._abort.set()

    def rows(self) -> Rows:
        """The logits of the last decode, a row per output in the order of the batch.

        A view of llama.cpp's buffer, which always has room for the most rows: those beyond the last output are old.
        """
        address = ctypes.addressof(self._lib.llama_get_logits(self._context.handle).contents)
        if self._view is None or self._view[0] != address:
            self._view = address, self._context.logits(self._max_outputs)
        return self._view[1]

    def _state(self, sequence: int, spare: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        size = self._lib.llama_state_seq_get_size(self._context.handle, sequence)
        state = _memory(size, spare)
        written = self._lib.llama_state_seq_get_data(self._context.handle, _bytes(state), size, sequence)
        if written != size:
            raise InternalError(f"llama.cpp saved {written} of {size} bytes of sequence {sequence}")
        return state

    def _bring_back(self, state: npt.NDArray[np.uint8], sequence: int) -> None:
        if not self._lib.llama_state_seq_set_data(self._context.handle, _bytes(state), len(state), sequence):
            raise InternalError(f"llama.cpp could not bring back a prefix: {complaint()}")

    def _fill(self, plan: Plan) -> None:
        batch = self._batch
        batch.clear()
        streams = plan.chunks[: plan.streams]
        if streams:
            where = slice(len(streams))
            batch.token[where] = [chunk.sequence.tokens[chunk.start] for chunk in streams]
            batch.position[where] = [chunk.start for chunk in streams]
            batch.sequence[where] = [_native(chunk) for chunk in streams]
            batch.output[where] = 1
            batch.n_tokens = batch.native.n_tokens = len(streams)
        for chunk in plan.chunks[len(streams) :]:
            end = batch.extend(chunk.tokens, chunk.start, _native(chunk)).stop
            batch.output[end - chunk.outputs : end] = 1


def _bytes(state: npt.NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _native(chunk: Chunk) -> int:
    hold = chunk.sequence.hold
    assert hold is not None
    return hold.sequence


def _memory(size: int, spare: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Room for a state, and some more, so that the next of its kind can take its place."""
    for index, one in enumerate(spare):
        if size <= len(one) <= 2 * size:
            return spare.pop(index)
    return np.empty(size + size // 8, np.uint8)
