"""The filter language of every list and log.

    q4 loaded        both words          !failed      not this word
    state=running    a field             size>4       a number, also < >= <=
    /re.*x/          a regular expression

Pure; a filter never raises: what cannot be understood is searched for as a word.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, str | float | None]
Test = Callable[[Fields], bool]
MAX_CHARS = 200
_TERM = re.compile(r'/(?:\\.|[^/])+/|[\w.]+(?:>=|<=|=|>|<)"[^"]*"|"[^"]*"|\S+')
_COMPARISON = re.compile(r"([\w.]+)(>=|<=|=|>|<)(.+)")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def compile_filter(text: str) -> Test | None:
    """Turn what the user typed into a test of one row; None where nothing is filtered."""
    tests = [_term(term) for term in _TERM.findall(text[:MAX_CHARS])]
    if not tests:
        return None
    return lambda fields: all(test(fields) for test in tests)


def words(text: str) -> list[str]:
    """The literal words of a filter, to be highlighted."""
    found = (term.strip('"').lower() for term in _TERM.findall(text[:MAX_CHARS]))
    return [word for word in found if word and word[0] not in "!/" and not _COMPARISON.fullmatch(word)]


def _term(term: str) -> Test:
    if term.startswith("!") and len(term) > 1:
        inner = _term(term[1:])
        return lambda fields: not inner(fields)
    if len(term) > 2 and term[0] == term[-1] == "/":
        return _pattern(term[1:-1])
    found = _COMPARISON.fullmatch(term)
    if found:
        return _comparison(*found.groups())
    return _word(term.strip('"'))


def _word(word: str) -> Test:
    wanted = word.lower()
    return lambda fields: any(wanted in str(value).lower() for value in fields.values() if value is not None)


def _pattern(text: str) -> Test:
    # Nested repetition can take for ever; such a pattern is searched for as a word.
    if re.search(r"[*+}]\)?[*+{]", text) or re.search(r"\([^)]*[*+][^)]*\)[*+{]", text):
        return _word(text)
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error:
        return _word(text)
    return lambda fields: any(pattern.search(str(value)[:4096]) for value in fields.values() if value is not None)


def _comparison(key: str, sign: str, text: str) -> Test:
    value = text.strip('"').lower()
    if sign == "=":
        return lambda fields: key.lower() in fields and str(fields[key.lower()] or "").lower() == value
    try:
        number = float(value)
    except ValueError:
        return _word(f"{key}{sign}{text}")
    compare = _OPERATORS[sign]

    def test(fields: Fields) -> bool:
        held = fields.get(key.lower())
        return isinstance(held, int | float) and compare(held, number)

    return test
