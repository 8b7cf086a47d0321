"""One request on its way to a remote server: its times, and what has come of its stream so far.

Invariant: each choice ends with exactly one delta with `finish`, and calls of tools are part of the text, written as
models write them, for whoever reads them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from lathe.engine.generation import Delta, FinishReason, GenerationRequest, Timing
from lathe.engine.worker.backends.protocol import Ask
from lathe.engine.worker.backends.remote import wire
from lathe.engine.worker.messages import RequestState


class Asked:
    """A request on its way."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.id = ask.id
        self.queued_at = time.monotonic()
        self.sent_at: float | None = None
        self.first_at: float | None = None
        self.prompt_tokens = 0
        self.generated = 0
        self.task: asyncio.Task[None] | None = None
        self.unwanted = False

    def timing(self) -> Timing:
        """Times up to now; what the server did with the prompt before its first token counts as prefill."""
        now, sent, first = time.monotonic(), self.sent_at or self.queued_at, self.first_at
        request = self.ask.request
        seed = request.sampling.seed if isinstance(request, GenerationRequest) else None
        return Timing(
            scheduled_s=sent - self.queued_at,
            first_token_s=None if first is None else first - self.queued_at,
            finished_s=now - self.queued_at,
            prefill_s=(first or now) - sent,
            decode_s=0.0 if first is None else now - first,
            seed=seed or 0,
        )

    def state(self, now: float) -> RequestState:
        return RequestState(
            id=self.id,
            stage="waiting" if self.sent_at is None else "prefill" if self.first_at is None else "decode",
            client=self.ask.request.client,
            principal=self.ask.request.principal,
            prompt_tokens=self.prompt_tokens,
            prefilled=0,
            generated=self.generated,
            age_s=now - self.queued_at,
            first_token_s=None if self.first_at is None else self.first_at - self.queued_at,
        )


class Reading:
    """What has come of a stream."""

    def __init__(self, choices: int) -> None:
        self.finish: dict[int, FinishReason] = {}
        self.spent: wire.Spent | None = None
        self._choices = choices
        self._calls: dict[tuple[int, int], tuple[str, str]] = {}

    def whole(self) -> bool:
        """Whether each choice has come to its end."""
        return self.finish.keys() >= set(range(self._choices))

    def deltas(self, event: dict[str, Any]) -> list[Delta]:
        """The text that an event adds; ends and tool calls are kept for later."""
        found = []
        for piece in wire.pieces(event):
            if piece.finish is not None:
                self.finish[piece.index] = piece.finish
            for number, name, arguments in piece.calls:
                known, so_far = self._calls.get((piece.index, number), ("", ""))
                self._calls[piece.index, number] = known or name, so_far + arguments
            if piece.text or piece.logprobs:
                found.append(Delta(index=piece.index, text=piece.text, logprobs=piece.logprobs))
        return found

    def ends(self) -> list[Delta]:
        """The last delta of each choice; calls of tools are written as models write them, for whoever reads them."""
        found = []
        for index in sorted(self.finish.keys() | set(range(self._choices))):
            calls = [call for (of, _), call in sorted(self._calls.items()) if of == index]
            text = "".join(_as_text(name, arguments) for name, arguments in calls)
            found.append(Delta(index=index, text=text, finish=self.finish.get(index, "stop")))
        return found


def _as_text(name: str, arguments: str) -> str:
    given = arguments.strip() or "{}"
    return f'<tool_call>\n{{"name": {msgspec.json.encode(name).decode()}, "arguments": {given}}}\n</tool_call>'
