"""One request's answers on their way from the worker to the caller.

Invariant: a caller that reads slowly holds at most `MAX_BYTES` here. Deltas that wait are joined, and beyond the limit
the exchange fails instead of growing; nobody else's answers wait for it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from lathe.engine.errors import BusyError, LatheError
from lathe.engine.generation import Delta
from lathe.engine.worker.messages import FromWorker, Piece

MAX_BYTES = 8 * 1024 * 1024
_JOIN_AT = 64
"""Waiting deltas that trigger a join."""
_PER_DELTA, _PER_LOGPROB = 160, 120
"""Bytes that Python objects of that kind take, roughly."""


class Observer(Protocol):
    """Who wants to know of answers as they arrive, whenever the caller reads them."""

    def placed(self, number: int) -> None:
        """The request was given to the worker under this number."""

    def on_delta(self, delta: Delta, at: float | None = None) -> None:
        """A delta has arrived that was made at that moment of the monotonic clock; None: now."""


class Exchange:
    """The inbox of one request id."""

    def __init__(self, number: int, observer: Observer | None = None) -> None:
        self.id = number
        self._observer = observer
        if observer is not None:
            observer.placed(number)
        self.ended = False
        """The child will send nothing more for it."""
        self._deltas: list[Delta] = []
        self._bytes = 0
        self._answer: FromWorker | None = None
        self._error: LatheError | None = None
        self._wake = asyncio.Event()

    def put(self, message: FromWorker) -> bool:
        """Keep an answer; False when the caller has fallen too far behind and the request should be cancelled."""
        self._wake.set()
        if not isinstance(message, Piece):
            self._answer = message
            return True
        if self._error is not None:
            return True
        deltas = join(list(message.deltas)) if len(message.deltas) > 1 else message.deltas
        if self._observer is not None:
            for delta in deltas:
                self._observer.on_delta(delta, message.at)
        self._deltas += deltas
        self._bytes += sum(map(_size, deltas))
        if len(self._deltas) >= _JOIN_AT:
            self._deltas = join(self._deltas)
        if self._bytes <= MAX_BYTES:
            return True
        self._deltas.clear()
        self._error = BusyError("the answer was not read fast enough and was given up", hint="read the stream faster")
        return False

    def end(self, error: LatheError | None = None) -> None:
        """Nothing more will come; callers first get what waits, then `error`."""
        self.ended = True
        self._error = self._error or error
        self._wake.set()

    async def deltas(self) -> list[Delta]:
        """Wait for deltas and take all that wait, joined: who falls behind gets fewer, longer ones; none is the end."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self.ended:
                return []
            self._wake.clear()
            await self._wake.wait()
        taken, self._deltas, self._bytes = self._deltas, [], 0
        return join(taken) if len(taken) > 1 else taken

    async def answer(self) -> FromWorker | None:
        """Wait for the end and return the one answer."""
        while not self.ended:
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None:
            raise self._error
        return self._answer


def join(deltas: list[Delta]) -> list[Delta]:
    """Join deltas of tokens of the same choice; what carries an end or the prompt stays as it is, in order."""
    runs: dict[int, list[Delta]] = {}
    joined: list[Delta] = []

    def flush(index: int) -> None:
        if run := runs.pop(index, None):
            joined.append(_joined(run))

    for delta in deltas:
        if delta.finish or delta.usage or delta.prompt_logprobs or not delta.tokens:
            flush(delta.index)
            joined.append(delta)
        else:
            runs.setdefault(delta.index, []).append(delta)
    for index in list(runs):
        flush(index)
    return joined


def _joined(run: list[Delta]) -> Delta:
    if len(run) == 1:
        return run[0]
    return msgspec.structs.replace(
        run[0],
        text="".join(delta.text for delta in run),
        tokens=tuple(token for delta in run for token in delta.tokens),
        logprobs=tuple(entry for delta in run for entry in delta.logprobs),
    )


def _size(delta: Delta) -> int:
    entries = sum(1 + len(entry.top) for entry in (*delta.logprobs, *delta.prompt_logprobs))
    return _PER_DELTA + len(delta.text) + 8 * len(delta.tokens) + _PER_LOGPROB * entries
