"""From token bytes to text that may be shown: UTF-8 assembly and stop strings, with hold-back.

A stop string may begin in one token and end in another, and a character may be split over tokens; text is released
only when it can be neither. Invariant: what is released, concatenated, is the decoded output up to the first place
where a stop string is complete, without that stop string; it does not depend on how the bytes were cut into tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopMatcher:
    """Finds the first complete stop string in text that arrives in pieces.

    Where several end at the same character the longest wins. Knuth-Morris-Pratt per stop string: constant work per
    character and stop, whatever they hold.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._failures = tuple(_failure(stop) for stop in self._stops)
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take text and return what is safe to release; once `found` is set nothing more comes."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        start = len(self._held)
        text = self._held + text
        for position in range(start, len(text)):
            stop = self._step(text[position])
            if stop is not None:
                self.found = stop
                self._held = ""
                return text[: position + 1 - len(stop)]
        keep = len(text) - max(self._matched)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """Release what was held back, when nothing more will come."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        found = None
        for index, stop in enumerate(self._stops):
            matched, failure = self._matched[index], self._failures[index]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                found = found or stop  # they are sorted by length
                matched = failure[-1]
            self._matched[index] = matched
        return found


def _failure(stop: str) -> list[int]:
    """Length of the longest proper prefix of each prefix that is also its suffix."""
    table = [0] * len(stop)
    matched = 0
    for position in range(1, len(stop)):
        while matched and stop[matched] != stop[position]:
            matched = table[matched - 1]
        if stop[matched] == stop[position]:
            matched += 1
        table[position] = matched
    return table


class TextStream:
    """The text of one choice, from the bytes of its tokens."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(stops) if stops else None

    def feed(self, piece: bytes) -> str:
        """Take the bytes of a token and return the text that may be shown."""
        text = self._decoder.decode(piece)
        return text if self._matcher is None else self._matcher.feed(text)

    def finish(self) -> str:
        """Return what was held back; incomplete characters become U+FFFD."""
        rest = self._decoder.decode(b"", final=True)
        if self._matcher is None:
            return rest
        return self._matcher.feed(rest) + self._matcher.flush()

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was completed."""
        return None if self._matcher is None else self._matcher.found
