"""Glyph sets: the characters that graphs, trees, marks and borders are drawn with.

`unicode` is for terminal emulators, `blocks` for the Linux console and code page 437 fonts, `ascii` for everything
that is not UTF-8. Invariant: meaning never depends on the set; each has a sign for every state.
"""

from __future__ import annotations

import locale
import os
from collections.abc import Mapping

import msgspec


class Glyphs(msgspec.Struct, frozen=True):
    """One set."""

    name: str
    levels: str
    """Column heights, from empty to full."""
    partial: str
    """Widths of a bar's last cell, from nearly empty to nearly full; may be empty."""
    full: str
    track: str
    """The rest of a bar."""
    border: str
    """Textual's border type for panels."""
    ellipsis: str
    branch: str
    last_branch: str
    cursor: str
    marked: str
    unmarked: str
    good: str
    busy: str
    idle: str
    bad: str
    warn: str
    arrow: str
    up: str
    down: str
    separator: str
    rule: str
    bar: str
    """A vertical line."""
    bullet: str


UNICODE = Glyphs(
    name="unicode", levels=" ▁▂▃▄▅▆▇█", partial="╸", full="━", track="─", border="round", ellipsis="…", branch="├ ",
    last_branch="╰ ", cursor="▌", marked="●", unmarked="·", good="●", busy="◐", idle="○", bad="✕", warn="▲",
    arrow="→", up="▲", down="▼", separator="·", rule="─", bar="│", bullet="•",
)  # fmt: skip
BLOCKS = Glyphs(
    name="blocks", levels=" ▄█", partial="▌", full="█", track="░", border="solid", ellipsis="..", branch="├ ",
    last_branch="└ ", cursor=">", marked="*", unmarked=" ", good="*", busy="~", idle="-", bad="x", warn="!", arrow="->",
    up="^", down="v", separator="·", rule="─", bar="│", bullet="*",
)  # fmt: skip
ASCII = Glyphs(
    name="ascii", levels=" _.:-=+*#", partial="", full="#", track=".", border="ascii", ellipsis="..", branch="|-",
    last_branch="'-", cursor=">", marked="*", unmarked=" ", good="*", busy="~", idle="-", bad="x", warn="!", arrow="->",
    up="^", down="v", separator="|", rule="-", bar="|", bullet="*",
)  # fmt: skip
SETS = {glyphs.name: glyphs for glyphs in (UNICODE, BLOCKS, ASCII)}


def choose(wanted: str = "auto", environment: Mapping[str, str] | None = None, encoding: str | None = None) -> Glyphs:
    """Pick the set a terminal can show, from its name and the locale's encoding; a set named by the user wins."""
    if wanted in SETS:
        return SETS[wanted]
    environment = os.environ if environment is None else environment
    encoding = locale.getencoding() if encoding is None else encoding
    terminal = environment.get("TERM", "")
    if encoding.lower().replace("-", "") != "utf8" or terminal.startswith(("vt", "dumb")):
        return ASCII
    return BLOCKS if terminal == "linux" else UNICODE
