"""The transcript of one model and the prompt: what is said, as it is said.

Text reaches the screen at most ten times a second, and not at all while the reader has scrolled up or the place is
hidden; it waits and is shown at once on return. Invariant: model output is cleaned before Markdown sees it, links open
nothing, and the number of mounted turns is bounded.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, cast

from lathe.tui.text import Cleaner, paragraphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets.base import Look, Words
from lathe.tui.widgets.boxes import TextPad
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownStream

FLUSH_S = 0.1
MAX_TURNS = 120
"""Turns kept on the screen; older ones stay in the conversation."""
MAX_SHOWN = 200_000
"""Characters of one answer that are drawn."""


class Said(Vertical):
    """One turn."""

    DEFAULT_CSS = "Said { height: auto; }"

    def __init__(self, role: str, name: str, text: str = "", *, rich: bool = True) -> None:
        super().__init__(classes=f"-{role}")
        self.role = role
        self.text = text
        """What was said, as received."""
        self._speaker = name
        self._rich = rich
        self._cleaner = Cleaner()
        self._pending: list[str] = []
        self._shown = 0
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        """Who, what, at what cost."""
        inks = cast(Look, self.app).inks
        ink = {"user": "dim", "assistant": "accent", "problem": "bad"}.get(self.role, "dim")
        yield Words(Text(one_line(self._speaker, 80), inks[ink]), classes="who")
        if self.role == "assistant" and self._rich:
            yield Markdown(open_links=False, classes="what")
        else:
            yield Words(paragraphs(self.text, limit=MAX_SHOWN), classes="what")
        yield Words("", classes="cost")

    def on_mount(self) -> None:
        """An answer that is whole already is shown at once."""
        self.query_one(".cost").display = False
        if self.role == "assistant" and self.text:
            self._pending.append(self._cleaner.feed(self.text) + self._cleaner.close())
            self.call_after_refresh(self.flush)

    def add(self, piece: str) -> None:
        """Take a piece of the answer; it is shown by the next flush."""
        self.text += piece
        self._pending.append(self._cleaner.feed(piece))

    @property
    def waiting(self) -> bool:
        """Whether something is not shown yet."""
        return bool(self._pending)

    async def flush(self) -> None:
        """Show what has come since the last time."""
        text = "".join(self._pending)
        self._pending.clear()
        if not text or not self.is_mounted:
            return
        room = MAX_SHOWN - self._shown
        if room <= 0:
            return
        if len(text) > room:
            text = text[:room] + "\n\n(shown up to here; y copies the whole answer)"
        self._shown += len(text)
        if self._rich:
            if self._stream is None:
                self._stream = Markdown.get_stream(self.query_one(Markdown))
            await self._stream.write(text)
        else:
            self.query_one(".what", Words).say(paragraphs(self.text, limit=MAX_SHOWN))

    async def finish(self, cost: str, *, bad: bool = False) -> None:
        """Show the rest and the cost."""
        self._pending.append(self._cleaner.close())
        await self.flush()
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        if self.is_mounted and cost:
            inks = cast(Look, self.app).inks
            line = self.query_one(".cost", Words)
            line.say(Text(one_line(cost, 300), inks["bad" if bad else "dim"]))
            line.display = True


class Transcript(VerticalScroll, can_focus=True):
    """The turns; follows the end until the reader scrolls up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "down", show=False, id="transcript.down"),
        Binding("k", "scroll_up", "up", show=False, id="transcript.up"),
        Binding("ctrl+d", "page_down", "page down", show=False, id="transcript.page_down"),
        Binding("ctrl+u", "page_up", "page up", show=False, id="transcript.page_up"),
        Binding("g", "scroll_home", "first", show=False, id="transcript.first"),
        Binding("G", "scroll_end", "last", show=False, id="transcript.last"),
    ]

    @property
    def at_end(self) -> bool:
        """Whether the end is in sight."""
        return self.scroll_offset.y >= self.max_scroll_y - 1

    async def put(self, said: Said) -> None:
        """Append a turn and go to the end."""
        await self.mount(said)
        turns = list(self.query_children(Said))
        if len(turns) > MAX_TURNS:
            await self.remove_children(turns[: len(turns) - MAX_TURNS])
        self.to_end()

    def to_end(self) -> None:
        """Show the newest line, once the layout knows where it is."""
        self.call_after_refresh(self.scroll_end, animate=False, immediate=True)


class Prompt(TextPad):
    """The text box of the Playground: enter sends, ctrl+j breaks the line, up and down go through what was sent."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "send", id="prompt.send", tooltip="Send the prompt"),
        Binding("ctrl+j", "newline", "newline", id="prompt.newline", tooltip="Break the line"),
        Binding(
            "tab", "complete", "complete", show=False, id="prompt.complete", tooltip="Complete a /command, else go on"
        ),
    ]
    KEPT = 100

    class Sent(Message):
        """The user pressed enter."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, examples: tuple[str, ...] = (), placeholder: str = "", id: str | None = None) -> None:
        super().__init__(placeholder=placeholder, id=id)
        self.recent: deque[str] = deque(examples, self.KEPT)
        self._at: int | None = None
        self._draft = ""

    def action_send(self) -> None:
        """Hand the text over and empty the box."""
        text = self.text.strip("\n")
        if not text.strip():
            return
        if not self.recent or self.recent[-1] != text:
            self.recent.append(text)
        self._at = None
        self.text = ""
        self.post_message(self.Sent(text))

    def action_newline(self) -> None:
        """Break the line."""
        self.insert("\n")

    def action_complete(self) -> None:
        """Complete a command, else move the focus on."""
        from lathe.tui.chat import complete

        completed = complete(self.text)
        if completed != self.text:
            self.put(completed)
        else:
            self.screen.focus_next()

    def on_key(self, event: events.Key) -> None:
        """Take the keys that mean something else here than in an editor."""
        row, _ = self.cursor_location
        if event.key == "enter":
            self.action_send()
        elif event.key == "ctrl+j":
            self.action_newline()
        elif event.key == "tab":
            self.action_complete()
        elif event.key == "up" and row == 0 and self.recent:
            self._recall(-1)
        elif event.key == "down" and row == self.document.line_count - 1 and self._at is not None:
            self._recall(1)
        else:
            return
        event.prevent_default()
        event.stop()

    def _recall(self, step: int) -> None:
        if self._at is None:
            self._draft = self.text
            index = len(self.recent) - 1
        else:
            index = self._at + step
        if index >= len(self.recent):
            self._at = None
            self.put(self._draft)
        else:
            self._at = max(0, index)
            self.put(self.recent[self._at])
