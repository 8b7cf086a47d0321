"""Characters that nobody sees: counted by kind and taken out, with the honest uses of each kept.

Invariant: what `scrub` returns can always be encoded as UTF-8 and holds no control, bidi, tag or zero-width character,
except joiners inside emoji and inside scripts that are spelt with them, and the tags of a subdivision's flag.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|\x1b[ -~]?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f]")
_FLAG = "\U0001f3f4[\U000e0030-\U000e007a]{1,8}\U000e007f"
_TAG = re.compile(f"({_FLAG})|[\U000e0000-\U000e007f\U000e0100-\U000e01ef]")
_SPELT = "\u0600-\u08ff\u0900-\u0dff\u0e80-\u0fff\u1000-\u109f\u1780-\u18af\ufb50-\ufeff"
_EMOJI = "\u200d\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
_ZERO = re.compile(
    f"((?<=[{_SPELT}])[\u200c\u200d](?=[{_SPELT}])|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}]))"
    "|[\u200b-\u200d\u2060-\u2064\ufeff\u180b-\u180e\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5\u00ad]"
)
_STACK = re.compile("([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})"
                    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")  # fmt: skip
"""More marks on one letter than any orthography has."""
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufb00-\ufb06\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef]"
    "|[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{5}"
)
"""One pass tells that a text needs nothing of the above, which is nearly every text."""
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
"""A typesetter's choice, never an author's: PDF is full of them and no query has them."""

_HIDDEN = (("control", _ESCAPE), ("control", _CONTROL), ("bidi", _BIDI), ("tag", _TAG), ("zero_width", _ZERO))

Form = Literal["NFC", "NFKC", "none"]


def scrub(text: str, flags: Counter[str], form: Form = "NFC", *, strip: bool = True) -> str:
    """Normalise a text and strip what is hidden in it; `flags` counts every finding by kind.

    With `strip` false the hidden characters are counted and stay, all but halves of surrogate pairs, which are no text.
    """
    if not _SUSPECT.search(text):
        return text if form == "none" or unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)
    text = text.replace("\f", "\n").replace("\v", "\n")
    text, count = _SURROGATE.subn("\ufffd", text)
    _add(flags, "replaced", count)
    for kind, pattern in _HIDDEN:
        cleared, count = _sub(pattern, text)
        _add(flags, kind, count)
        text = cleared if strip else text
    cleared, count = _STACK.subn(r"\1", text)
    _add(flags, "combining", count)
    text = cleared if strip else text
    if form == "none":
        return text
    return unicodedata.normalize(form, text.translate(_LIGATURES))


def sound(text: str) -> str:
    """A text that can be encoded, whatever a parser made of it."""
    return _SURROGATE.sub("\ufffd", text)


def _sub(pattern: re.Pattern[str], text: str) -> tuple[str, int]:
    """Remove matches except those of the group that is kept; soft hyphens go without being counted."""
    count = 0

    def decide(match: re.Match[str]) -> str:
        nonlocal count
        if match.lastindex and match[1]:
            return match[1]
        count += match[0] != "\u00ad"
        return ""

    return pattern.sub(decide, text), count


def _add(flags: Counter[str], kind: str, count: int) -> None:
    if count:
        flags[kind] += count
