"""The same question in other clothes: what a robust model answers alike.

Each transform is a function of the text and a seeded generator; `reorder` turns the choices. Invariant: a transform
never changes what is right, so an answer that changes is the model's weakness, and equal seeds give equal variants.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import msgspec
from lathe.engine.evals.values import Item

TextTransform = Callable[[str, random.Random], str]
_NEIGHBOURS = {
    "a": "qs", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
"""Keys beside each key."""
_PROSE_WORD = re.compile(r"(?<![\w.])[a-z]{5,}(?![\w.(])")
"""Lower-case words that are no identifier: typos and case go only there."""
_TYPO_SHARE = 0.15


def lower(text: str, _: random.Random) -> str:
    """Capital letters of prose words become small; identifiers stay."""
    return re.sub(r"(?<![\w.])[A-Z][a-z]+(?![\w.(])", lambda match: match.group().lower(), text)


def upper(text: str, _: random.Random) -> str:
    """Prose words become capitals; identifiers stay."""
    return _PROSE_WORD.sub(lambda match: match.group().upper(), text)


def typo(text: str, chance: random.Random) -> str:
    """In some words, one letter is swapped, doubled, lost, or hit beside its key."""

    def strike(match: re.Match[str]) -> str:
        word = match.group()
        if chance.random() >= _TYPO_SHARE:
            return word
        at = chance.randrange(1, len(word) - 1)
        kind = chance.choice(("swap", "double", "drop", "beside"))
        if kind == "swap":
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == "double":
            return word[:at] + word[at] + word[at:]
        if kind == "drop":
            return word[:at] + word[at + 1 :]
        return word[:at] + chance.choice(_NEIGHBOURS[word[at]]) + word[at + 1 :]

    return _PROSE_WORD.sub(strike, text)


def whitespace(text: str, chance: random.Random) -> str:
    """Single blanks are doubled here and there."""
    return re.sub(r"(?<=\S) (?=\S)", lambda _: "  " if chance.random() < 0.2 else " ", text)


TEXT: dict[str, TextTransform] = {"lower": lower, "upper": upper, "typo": typo, "whitespace": whitespace}
NAMES = (*TEXT, "reorder")


def reordered(item: Item) -> Item:
    """The choices turned by one place, the right ones following."""
    count = len(item.continuations)
    if count < 2:
        return item
    turned = (*item.continuations[1:], item.continuations[0])
    return msgspec.structs.replace(item, continuations=turned, gold=tuple((i - 1) % count for i in item.gold))
