"""The effects of a plan on ONNX Runtime: whose past goes where, and one computation per group of rows.

Streams share one computation, padded on the left; each prompt chunk is one of its own. Decides nothing. Invariant:
pasts change only when every computation of a plan succeeded, so an aborted plan leaves nothing behind.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from lathe.engine.errors import InternalError
from lathe.engine.scheduler.ledger import Discard, Drop, Effect, Restore, Save, Share
from lathe.engine.scheduler.sequence import Chunk, Plan
from lathe.engine.worker.backends.llama.probabilities import Rows
from lathe.engine.worker.backends.onnx.decoder import Decoder, Past
from lathe.engine.worker.backends.onnx.runtime import runtime

_WORTH_ABORTING = 32
"""Prompt tokens in a plan from which on it is aborted for a cancelled request; less is done soon."""


class Ring:
    """The pasts of running sequences."""

    handle = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._alone: dict[int, Past] = {}
        """Native sequences with a past of their own."""
        self._members: list[int] = []
        """Native sequences that stream together, in the order of their rows."""
        self._together: Past | None = None
        self._saved: dict[int, Past] = {}
        """Pasts of sequences that left the cache, by entry."""
        self._rows: Rows = np.empty((0, 0), np.float32)
        self._flight: dict[int, int] | None = None
        self._options: Any = None
        self.busy_since = 0.0

    def apply(self, effects: list[Effect]) -> None:
        """Carry out what the ledger wrote down."""
        for effect in effects:
            match effect:
                case Drop(sequence, 0, None):
                    self._forget(sequence)
                case Drop(sequence, start, None):
                    past = self._own(sequence)
                    if past is not None and past.width > start:
                        self._alone[sequence] = self._decoder.cut(past, start)
                case Save(sequence, entry):
                    past = self._own(sequence)
                    assert past is not None, "a sequence without a past was saved"
                    self._saved[entry] = past
                case Restore(entry, sequence):
                    self._forget(sequence)
                    self._alone[sequence] = self._saved[entry]
                case Discard(entry):
                    del self._saved[entry]
                case Share() | Drop():
                    raise InternalError(f"sequences of ONNX models share no cells: {effect}")

    def compute(self, plan: Plan) -> float | None:
        """Compute a plan's tokens; returns the seconds it took, None when it was aborted."""
        self._options = runtime().RunOptions()
        if plan.rows - plan.streams > _WORTH_ABORTING:
            flight: dict[int, int] = {}
            for chunk in plan.chunks:
                flight[chunk.sequence.request] = flight.get(chunk.sequence.request, 0) + chunk.count
            self._flight = flight
        begun = self.busy_since = time.monotonic()
        try:
            self._compute(plan)
        except Exception as error:
            if self._options.terminate:
                return None
            line = str(error).strip().splitlines()[0][:300]
            raise InternalError(f"ONNX Runtime could not compute a batch: {line}") from error
        finally:
            self.busy_since = 0.0
            self._flight = None
        return time.monotonic() - begun

    def rows(self) -> Rows:
        """The logits of the last plan, a row per output in its order."""
        return self._rows

    def interrupt(self, request: int) -> None:
        """End the running computation if most of it is this request's prompt. Any thread."""
        flight = self._flight
        if flight is not None and 2 * flight.get(request, 0) > sum(flight.values()):
            self._options.terminate = True

    def _compute(self, plan: Plan) -> None:
        decoder = self._decoder
        streams, prompts = plan.chunks[: plan.streams], plan.chunks[plan.streams :]
        if not decoder.pads:
            streams, prompts = [], plan.chunks
        found: list[Rows] = []
        together: Past | None = None
        if streams:
            self._gather([_native(chunk) for chunk in streams])
            assert self._together is not None
            tokens = [[chunk.sequence.tokens[chunk.start]] for chunk in streams]
            together, logits = decoder.compute(self._together, tokens, self._options)
            found.append(logits.numpy()[:, 0].astype(np.float32, copy=False))
        alone: dict[int, Past] = {}
        for chunk in prompts:
            native = _native(chunk)
            past = self._own(native) or decoder.start()
            tokens = [chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]]
            alone[native], logits = decoder.compute(past, tokens, self._options)
            if chunk.outputs:
                found.append(logits.numpy()[0, chunk.count - chunk.outputs :].astype(np.float32, copy=False))
        if together is not None:
            self._together = together
        self._alone.update(alone)
        if found:
            self._rows = np.concatenate(found) if len(found) > 1 else found[0]

    # -- where pasts are -----------------------------------------------------------------------------------------
    def _gather(self, wanted: list[int]) -> None:
        """Make the group's rows those that are wanted."""
        if wanted == self._members:
            return
        parts = []
        for native in wanted:
            if native in self._alone:
                parts.append((self._alone[native], 0))
            else:
                assert self._together is not None
                parts.append((self._together, self._members.index(native)))
        joined = self._decoder.joined(parts) if len(parts) > 1 or parts[0][0] is self._together else parts[0][0]
        for native in [one for one in self._members if one not in wanted and one >= 0]:
            self._own(native)
        self._members, self._together = wanted, joined
        for native in wanted:
            self._alone.pop(native, None)

    def _own(self, native: int) -> Past | None:
        """A sequence's past by itself, out of the group if it was in it; None before its first token."""
        if native in self._members:
            assert self._together is not None
            place = self._members.index(native)
            self._alone[native] = self._decoder.taken(self._together, place)
            self._leave(place)
        return self._alone.get(native)

    def _forget(self, native: int) -> None:
        if native in self._members:
            self._leave(self._members.index(native))
        self._alone.pop(native, None)

    def _leave(self, place: int) -> None:
        """Take a row out of the group; its values go when the group is next made."""
        self._members = [*self._members]
        self._members[place] = -1
        if not any(one >= 0 for one in self._members):
            self._members, self._together = [], None


def _native(chunk: Chunk) -> int:
    hold = chunk.sequence.hold
    assert hold is not None
    return hold.sequence
