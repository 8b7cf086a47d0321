"""`Pane`: one model's side of the Playground: its conversation, its transcript, the pace of its answer.

The screen feeds it deltas; ten times a second it shows what came. Invariant: nothing is drawn while the place is
hidden, and everything is kept.
"""

from __future__ import annotations

import time

from lathe.engine.generation import Delta
from lathe.tui import chat, formats
from lathe.tui.chat import Conversation, Cost
from lathe.tui.widgets.base import Panel, Words, look_of
from lathe.tui.widgets.transcript import Said, Transcript
from textual.app import ComposeResult
from textual.timer import Timer

FLUSH_S = 0.1
PACE_FLUSHES = 5
"""Figures that change more often than twice a second cannot be read."""


class Pane(Panel):
    """One model's side: title, transcript, pace."""

    def __init__(self, letter: str) -> None:
        super().__init__(id=f"pane-{letter.lower()}", classes="-bare")
        self.letter = letter
        self.model = ""
        self.conversation = Conversation()
        self.streaming = False
        self._said: Said | None = None
        self._fresh = False
        self._tokens = 0
        self._first_s: float | None = None
        self._started = 0.0
        self._clock: Timer | None = None
        self._flushes = 0

    def compose(self) -> ComposeResult:
        """What is shown before the first turn, and the turns."""
        yield Words("", classes="empty")
        yield Transcript()

    def on_mount(self) -> None:
        """The clock runs only while something streams."""
        self._clock = self.set_interval(FLUSH_S, self.flush, pause=True)

    @property
    def transcript(self) -> Transcript:
        """The turns."""
        return self.query_one(Transcript)

    def say(self, role: str, speaker: str, text: str) -> None:
        """Put a whole turn."""
        self.query_one(".empty").display = False
        self.transcript.display = True
        self.transcript.put(Said(role, speaker, text))

    def begin(self, *, rich: bool) -> None:
        """An answer is on its way."""
        self._said = Said("assistant", self.model, rich=rich)
        self._flushes = 0
        self.streaming, self._tokens, self._first_s, self._started = True, 0, None, time.monotonic()
        self.transcript.put(self._said)
        if self._clock is not None:
            self._clock.resume()

    def take(self, delta: Delta) -> None:
        """A piece of it."""
        if self._first_s is None and delta.text:
            self._first_s = time.monotonic() - self._started
        self._tokens += len(delta.tokens) or bool(delta.text)
        if self._said is not None and delta.text:
            self._said.add(delta.text)
            self._fresh = True

    def flush(self) -> None:
        """Show what came, if the place is visible."""
        if not self.screen.is_current:
            return
        if self._fresh:
            self._fresh = False
            self.transcript.measure()
        if self._flushes % PACE_FLUSHES == 0:
            self.footnote(self.pace())
        self._flushes += 1

    def pace(self) -> str:
        """The live figures, as this front measures them."""
        if not self.streaming:
            return ""
        if self._first_s is None:
            return f"waiting {formats.ago(time.monotonic() - self._started)}"
        took = time.monotonic() - self._started - self._first_s
        speed = formats.rate((self._tokens - 1) / took) if self._tokens > 2 and took > 0.2 else formats.NONE
        held = "" if self.transcript.following else "  G follows"
        return f"first {formats.latency(self._first_s)}  {speed} tok/s  {self._tokens} tokens{held}"

    def end(self, cost: Cost, text: str, *, bad: str = "") -> None:
        """The answer is whole."""
        self.streaming = False
        if self._clock is not None:
            self._clock.pause()
        if self._said is not None:
            self._said.finish(bad or chat.cost_text(cost, look_of(self).glyphs), bad=bool(bad))
            self.transcript.measure()
        if text or not bad:
            self.conversation.answer(text, cost)
        self.footnote("")

    def rewind(self) -> str | None:
        """Take the last question back, on the screen too."""
        text = self.conversation.take_back()
        turns = self.transcript.turns
        last = next((index for index in range(len(turns) - 1, -1, -1) if turns[index].role == "user"), None)
        if last is not None:
            self.transcript.drop_from(last)
        return text

    def clear(self) -> None:
        """A new conversation; the system prompt stays."""
        system = self.conversation.system
        self.conversation = Conversation()
        self.conversation.system = system
        self.transcript.drop_from(0)
