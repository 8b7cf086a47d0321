"""`Pane`: one model's side of the Playground: its conversation, its transcript, the pace of its answer.

The screen feeds it deltas; the pane decides when they are shown. Invariant: nothing is drawn while nobody looks at the
end of the transcript, and everything is kept.
"""

from __future__ import annotations

import time

from lathe.engine.generation import Delta
from lathe.tui import chat, formats
from lathe.tui.chat import Conversation, Cost
from lathe.tui.widgets.base import Panel, Words, look_of
from lathe.tui.widgets.chat import FLUSH_S, Said, Transcript
from textual.app import ComposeResult
from textual.timer import Timer


class Pane(Panel):
    """One model's side: title, transcript, pace."""

    def __init__(self, letter: str) -> None:
        super().__init__(id=f"pane-{letter.lower()}", classes="-bare")
        self.letter = letter
        self.model = ""
        self.conversation = Conversation()
        self.said: Said | None = None
        self.streaming = False
        self.tokens = 0
        self.first_s: float | None = None
        self.started = 0.0
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """The transcript."""
        yield Words("", id=f"empty-{self.letter.lower()}", classes="empty")
        yield Transcript()

    def on_mount(self) -> None:
        """The flushing clock runs only while something streams."""
        self._timer = self.set_interval(FLUSH_S, self.flush, pause=True)

    @property
    def transcript(self) -> Transcript:
        """The turns."""
        return self.query_one(Transcript)

    async def begin(self, *, rich: bool) -> None:
        """An answer is on its way."""
        self.said = Said("assistant", self.model, rich=rich)
        self.streaming, self.tokens, self.first_s, self.started = True, 0, None, time.monotonic()
        await self.transcript.put(self.said)
        if self._timer is not None:
            self._timer.resume()

    def take(self, delta: Delta) -> None:
        """A piece of it."""
        if self.first_s is None and delta.text:
            self.first_s = time.monotonic() - self.started
        self.tokens += len(delta.tokens) or bool(delta.text)
        if self.said is not None and delta.text:
            self.said.add(delta.text)

    async def flush(self) -> None:
        """Show what came, unless nobody looks at the end."""
        said = self.said
        if said is None or not self.screen.is_current:
            return
        if said.waiting and (self.transcript.at_end or not self.streaming):
            await said.flush()
            self.transcript.to_end()
        self.footnote(self.pace())

    def pace(self) -> str:
        """The live figures, as this front measures them."""
        if not self.streaming:
            return ""
        if self.first_s is None:
            return f"waiting {formats.ago(time.monotonic() - self.started)}"
        took = time.monotonic() - self.started - self.first_s
        speed = formats.rate((self.tokens - 1) / took) if self.tokens > 2 and took > 0.2 else formats.NONE
        held = "" if self.transcript.at_end else "  paused: G goes on"
        return f"first {formats.latency(self.first_s)}  {speed} tok/s  {self.tokens} tokens{held}"

    async def end(self, cost: Cost, text: str, *, bad: str = "") -> None:
        """The answer is whole."""
        self.streaming = False
        if self._timer is not None:
            self._timer.pause()
        following = self.transcript.at_end
        if self.said is not None:
            await self.said.finish(bad or chat.cost_text(cost, look_of(self).glyphs), bad=bool(bad))
        if text or not bad:
            self.conversation.answer(text, cost)
        if following:
            self.transcript.to_end()
        self.footnote("")

    async def say(self, role: str, name: str, text: str, *, rich: bool = True) -> None:
        """Put a whole turn."""
        await self.transcript.put(Said(role, name, text, rich=rich))

    async def rewind(self) -> str | None:
        """Take the last question back, on the screen too."""
        text = self.conversation.take_back()
        turns = list(self.transcript.query_children(Said))
        for index in range(len(turns) - 1, -1, -1):
            if turns[index].role == "user":
                await self.transcript.remove_children(turns[index:])
                break
        return text

    async def clear(self) -> None:
        """A new conversation; the system prompt stays."""
        system = self.conversation.system
        self.conversation = Conversation()
        self.conversation.system = system
        await self.transcript.remove_children()
