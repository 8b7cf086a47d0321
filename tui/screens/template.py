"""The template view: the prompt exactly as the model gets it, with its tokens and where it would stop."""

from __future__ import annotations

import re
from typing import ClassVar, cast

from lathe.engine.generation import RenderedPrompt
from lathe.tui import formats
from lathe.tui.screens.reading import Reading
from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from lathe.tui.themes import Inks
from lathe.tui.widgets.base import Look, Panel, Words
from rich.text import Text
from textual.binding import Binding, BindingType

_SPECIAL = re.compile(r"<\|[^|>\n]{1,40}\|>|</?s>|\[/?(?:INST|SYS)\]|<</?SYS>>|<(?:start|end)_of_turn>|<bos>|<eos>")
MOST_IDS = 2_000


class TemplateView(Reading):
    """Text, or token ids."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "ids", "ids", show=False, id="template.ids", tooltip="Text or token ids"),
    ]

    def __init__(self, model: str, rendered: RenderedPrompt) -> None:
        stops = "  ".join(repr(text) for text in rendered.stop) or "the end of text"
        count = formats.many(len(rendered.tokens), "token")
        facts = f"{count}   template {rendered.template_sha256[:8]}   stops at {one_line(stops)}"
        super().__init__(f"Prompt as {model} sees it", rendered.text, facts)
        self._rendered = rendered
        self._ids = False

    def on_mount(self) -> None:
        """Colour the special tokens."""
        self.query_one(Panel).add_class("-broad")
        self._fill()
        self.say_footnote("t token ids")

    def action_ids(self) -> None:
        """Text or ids."""
        self._ids = not self._ids
        self._fill()

    def _fill(self) -> None:
        inks = cast(Look, self.app).inks
        ids = " ".join(str(token) for token in self._rendered.tokens[:MOST_IDS])
        self.query_one(".reading Words", Words).say(Text(ids) if self._ids else coloured(self._rendered.text, inks))


def coloured(text: str, inks: Inks) -> Text:
    """A rendered prompt with its special tokens in colour."""
    shown = Text(clean(text))
    for found in _SPECIAL.finditer(shown.plain):
        shown.stylize(inks["b"], found.start(), found.end())
    return shown
