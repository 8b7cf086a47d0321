"""Prefixes that left the KV cache for main memory: what is there, what goes when it is full.

An entry is the state of a whole sequence. Bringing one back costs a copy, computing it anew costs the prompt; and
cells that only wait make every batch slower, since attention passes over them. Invariant: entries together have at
most `capacity` tokens, and none is found from another realm.
"""

from __future__ import annotations

from collections.abc import Hashable

from lathe.engine.scheduler.radix import common_prefix

WORTH = 64
"""Tokens below which a prefix is computed again rather than kept."""
OWN = 8
"""Of a prefix one in so many tokens must be its own: else those few are computed again, and no rest is kept twice."""


class Entry:
    """A saved prefix."""

    __slots__ = ("number", "realm", "tokens", "used_at")

    def __init__(self, number: int, realm: Hashable, tokens: list[int], used_at: int) -> None:
        self.number = number
        self.realm = realm
        self.tokens = tokens
        self.used_at = used_at


class Spill:
    """The index of saved prefixes; the states themselves are with whoever carries effects out."""

    def __init__(self, capacity: int, *, whole: bool) -> None:
        """Start empty.

        Args:
            capacity: tokens.
            whole: whether an entry is of use only to texts that begin with all of it (recurrent states).
        """
        self._capacity = capacity
        self._whole = whole
        self._entries: dict[int, Entry] = {}
        self._size = 0
        self._numbers = 0
        self._clock = 0

    def find(self, realm: Hashable, tokens: list[int], limit: int) -> tuple[Entry | None, int]:
        """The entry that shares most with the first `limit` tokens, and how many."""
        best, best_at = None, 0
        for entry in self._entries.values():
            if entry.realm == realm:
                same = min(common_prefix(entry.tokens, tokens), limit)
                if same > best_at and not (self._whole and same < len(entry.tokens)):
                    best, best_at = entry, same
        return best, best_at

    def takes(self, tokens: int) -> bool:
        """Whether a prefix of so many tokens is worth an entry and can have one."""
        return WORTH <= tokens <= self._capacity

    def add(self, realm: Hashable, tokens: list[int]) -> tuple[int | None, list[int]]:
        """Make an entry.

        Returns:
            Its number, None when it is there already or is not worth it, and the numbers of those that make way.
        """
        if not self.takes(len(tokens)):
            return None, []
        gone: list[int] = []
        for entry in self._entries.values():
            same = common_prefix(entry.tokens, tokens) if entry.realm == realm else 0
            if same == len(tokens) and not (self._whole and same < len(entry.tokens)):
                self.touch(entry)
                return None, []
            if same and not self._whole and len(entry.tokens) - same <= len(entry.tokens) // OWN:
                gone.append(entry.number)  # the new one holds all but little of it
        for number in gone:
            self._remove(number)
        while self._size + len(tokens) > self._capacity:
            oldest = min(self._entries.values(), key=lambda entry: entry.used_at).number
            self._remove(oldest)
            gone.append(oldest)
        self._numbers += 1
        self._clock += 1
        self._entries[self._numbers] = Entry(self._numbers, realm, tokens, self._clock)
        self._size += len(tokens)
        return self._numbers, gone

    def touch(self, entry: Entry) -> None:
        """Note that an entry was used."""
        self._clock += 1
        entry.used_at = self._clock

    def forget(self, realm: Hashable) -> list[int]:
        """Drop a realm's entries; returns their numbers."""
        gone = [entry.number for entry in self._entries.values() if entry.realm == realm]
        for number in gone:
            self._remove(number)
        return gone

    def _remove(self, number: int) -> None:
        self._size -= len(self._entries.pop(number).tokens)
