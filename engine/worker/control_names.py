"""The names of control tokens in text: where they are, which are forged, and how to keep the two apart.

A mark, a character that occurs nowhere, is put into users' text before it meets a template; a name that lies across a
mark afterwards was written by a user. Invariant: text without names, or parts of names at its ends, is not changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec


class ControlNames:
    """The names of control tokens, found in text without a regular expression of thousands of branches."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name for name in names if len(name) > 1}
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._firsts = {name[0] for name in self._names}
        self._beginnings = {name[:end] for name in self._names for end in range(1, len(name))}
        self._endings = {name[start:] for name in self._names for start in range(1, len(name))}

    def marked(self, text: str, mark: str) -> str:
        """Put `mark` wherever a name, or a part of one at an end of the text, could become a control token."""
        cuts = [position + 1 for position in sorted(self._found(text))]
        text = mark.join(text[start:end] for start, end in pairwise((0, *cuts, len(text))))
        longest = min(max(self._lengths, default=0), len(text) + 1)
        if any(text[-length:] in self._beginnings for length in range(1, longest)):
            text += mark
        if any(text[:length] in self._endings for length in range(1, longest)):
            text = mark + text
        return text

    def split(self, text: str, marks: Sequence[int]) -> list[Part] | None:
        """Cut text at its control tokens, longest names first, as llama.cpp does.

        Args:
            marks: positions in the text, sorted; a name with one strictly inside was forged and stays text.

        Returns:
            The parts in order; None when no name was forged, so that cutting by hand is not needed.
        """
        found = self._found(text)
        spans = [(start, name) for start, names in found.items() for name in names]
        if not any(_inside(marks, start, start + len(name)) for start, name in spans):
            return None
        taken = bytearray(len(text))
        controls = []
        for start, name in sorted(spans, key=lambda span: (-len(span[1]), span[1], span[0])):
            end = start + len(name)
            # What is taken is at least as long, so where it overlaps a name it covers one of its ends.
            if not (taken[start] or taken[end - 1] or _inside(marks, start, end)):
                taken[start:end] = bytes([1]) * len(name)
                controls.append(Part(start, end, name))
        parts = []
        last = 0
        for control in sorted(controls, key=lambda part: part.start):
            parts += [Part(last, control.start), control]
            last = control.end
        parts.append(Part(last, len(text)))
        return [part for part in parts if part.end > part.start]

    def _found(self, text: str) -> dict[int, list[str]]:
        """Position -> names that begin there, longest first."""
        found: dict[int, list[str]] = {}
        for first in self._firsts:
            position = text.find(first)
            while position >= 0:
                candidates = (text[position : position + length] for length in self._lengths)
                names = [name for name in candidates if name in self._names]
                if names:
                    found[position] = list(dict.fromkeys(names))
                position = text.find(first, position + 1)
        return found


class Part(msgspec.Struct, frozen=True):
    """A stretch of a rendered text."""

    start: int
    end: int
    control: str | None = None
    """The control token that it is; None: plain text."""


def _inside(marks: Sequence[int], start: int, end: int) -> bool:
    """Whether one of the sorted marks is strictly between two positions."""
    after = bisect_right(marks, start)
    return after < len(marks) and marks[after] < end
