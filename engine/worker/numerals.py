"""Ranges of integers as GBNF: the decimal numerals between two bounds, without leading zeros. Pure."""

from __future__ import annotations

LONGEST = 16
"""Digits of a number without an upper bound."""


def integer_range(low: int | None, high: int | None) -> str:
    """An expression for the integers from `low` to `high`; None: no bound."""
    options = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        options.append(f'"-" ( {_natural(least, None if low is None else -low)} )')
    if high is None or high >= 0:
        options.append(_natural(max(0, low or 0), high))
    return " | ".join(options)


def _natural(low: int, high: int | None) -> str:
    """Natural numbers from `low` to `high`."""
    options = []
    digits = len(str(low))
    longest = LONGEST if high is None else len(str(high))
    for length in range(digits, longest + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = 10**length - 1 if high is None else min(high, 10**length - 1)
        options.append(_same_length(str(first), str(last)))
    return " | ".join(options)


def _same_length(low: str, high: str) -> str:
    """Numerals of one length between two of that length, by their first digit."""
    if not low:
        return '""'
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return _digit(low[0], high[0]) + _free(rest)
    if low[0] == high[0]:
        return f'"{low[0]}" ( {_same_length(low[1:], high[1:])} )'
    options = [f'"{low[0]}" ( {_same_length(low[1:], "9" * rest)} )']
    first, last = int(low[0]) + 1, int(high[0]) - 1
    if first <= last:
        options.append(_digit(str(first), str(last)) + _free(rest))
    options.append(f'"{high[0]}" ( {_same_length("0" * rest, high[1:])} )')
    return " | ".join(options)


def _digit(first: str, last: str) -> str:
    return f'"{first}"' if first == last else f"[{first}-{last}]"


def _free(count: int) -> str:
    return f" [0-9]{{{count}}}" if count else ""
