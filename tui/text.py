"""The sanitiser: foreign text (model output, file names, metadata, logs, errors) on its way to a terminal.

Removes what a terminal would obey (C0, C1, ESC and CSI, OSC, DCS strings), what reorders or hides text (bidi controls,
zero-width, variation-selector and tag characters), surrogates that cannot be encoded, and floods (length, stacks of
combining marks). Printable text stays as it is; nothing here reads markup.
Invariant: `clean(clean(x)) == clean(x)`, and its result holds no control character but line feeds.
"""

from __future__ import annotations

import re

from rich.text import Text

MAX_CHARS = 65_536
"""Longest text that one call lets through; a terminal shows some 10,000 cells at once."""
MAX_LINE_CHARS = 1_000
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_MAX_MARKS = 4
"""Combining marks kept per character; no orthography stacks more."""

# ECMA-48 sequences, 7-bit (ESC Fe) and 8-bit (C1). A string (OSC, DCS, SOS, PM, APC) runs to BEL, ST or its line's end.
_ESCAPE = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
_UNFINISHED = re.compile(
    r"(?:(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*\x1b?|(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[ -/]*)\Z"
)
_MAX_UNFINISHED = 4_096
_ENDS_STRINGS = "\x07\x9c\n"
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but HT and LF, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # musical controls, tags, variation selectors
)
_DROP = re.compile(f"[{_UNSAFE}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BREAK = re.compile("\r\n?|[\u0085\u2028\u2029]")
_STACK = re.compile(f"([{_MARKS}]{{{_MAX_MARKS}}})[{_MARKS}]+")
_SUSPECT = re.compile(f"[\t\r\u2028\u2029\ud800-\udfff{_UNSAFE}]|[{_MARKS}]{{{_MAX_MARKS + 1}}}")
_BLANKS = re.compile(r"\s+")
_LEADING_MARKS = re.compile(f"[{_MARKS}]+")


def clean(text: str, limit: int = MAX_CHARS) -> str:
    """Return `text` safe to write to a terminal; line feeds stay, tabs become blanks."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if not _SUSPECT.search(text):
        return text
    return _scrub(text)


def advice(message: str, hint: str) -> str:
    """What went wrong and what to do, as one line that does not run together."""
    if not (message and hint):
        return message or hint
    return f"{message}{' ' if message.endswith(('.', '!', '?')) else '; '}{hint}"


def line(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """Return `text` as one line: cleaned, with runs of blanks and line ends made one blank."""
    # Cut before the costly passes: a 10 MB name must not stall a repaint.
    text = clean(text[: limit * 8], limit * 8)
    text = _BLANKS.sub(" ", text).strip() if "\n" in text or "  " in text else text
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(text: str, style: str = "", limit: int = MAX_LINE_CHARS) -> Text:
    """Return one line of foreign text as a Rich `Text`, without reading markup."""
    return Text(line(text, limit), style=style, no_wrap=True, end="")


def paragraphs(text: str, style: str = "", limit: int = MAX_CHARS) -> Text:
    """Return foreign text of several lines as a Rich `Text`, without reading markup."""
    return Text(clean(text, limit), style=style, end="")


class Cleaner:
    """Clean a stream whose pieces may cut an escape sequence or a stack of marks anywhere."""

    def __init__(self) -> None:
        self._held = ""
        self._marks = 0

    def feed(self, piece: str) -> str:
        """Return what is safe to show now; an unfinished sequence waits for its rest."""
        text = self._held + piece
        found = _UNFINISHED.search(text, _latest_start(text))
        cut = found.start() if found and len(text) - found.start() <= _MAX_UNFINISHED else len(text)
        # A carriage return may be the first half of CR LF.
        if cut == len(text) and text.endswith("\r"):
            cut -= 1
        self._held = text[cut:]
        return self._limit_marks(clean(text[:cut], max(MAX_CHARS, cut)))

    def close(self) -> str:
        """Return what is left of the stream."""
        held, self._held = self._held, ""
        return self._limit_marks(clean(held))

    def _limit_marks(self, text: str) -> str:
        if not text:
            return text
        leading = _LEADING_MARKS.match(text)
        if leading:
            keep = max(0, _MAX_MARKS - self._marks)
            if leading.end() == len(text):
                self._marks += leading.end()
                return text[:keep]
            text = text[: min(keep, leading.end())] + text[leading.end() :]
        self._marks = len(text) - len(text.rstrip(_ALL_MARKS))
        return text


def _latest_start(text: str) -> int:
    """Where a sequence that is unfinished at the end can begin at the earliest: the search from there is linear."""
    after = max(text.rfind(mark) for mark in _ENDS_STRINGS) + 1
    return max(after, text.rfind("\x1b", after, -1))


def _scrub(text: str) -> str:
    text = _ESCAPE.sub("", _BREAK.sub("\n", text))
    text = _SURROGATE.sub("\ufffd", _DROP.sub("", text)).replace("\t", "    ")
    return _STACK.sub(r"\1", text)


def _characters(ranges: str) -> str:
    """Write out a regular expression's character ranges."""
    pairs = re.findall("(.)-(.)", ranges)
    return "".join(chr(code) for first, last in pairs for code in range(ord(first), ord(last) + 1))


_ALL_MARKS = _characters(_MARKS)
