"""Regular expressions of JSON Schema as GBNF: the part of the language that is regular and unambiguous to read.

`^` and `$` around the whole, literals, `.`, classes, `\\d \\w \\s` and their complements, groups, `|`, `* + ? {m,n}`.
No look-around, no back-references. The expression describes the *decoded* string; what comes out describes its JSON
form, so quotes, backslashes and control characters appear escaped. Invariant: everything else is refused by name.
"""

from __future__ import annotations

from lathe.engine.errors import UsageError

MAX_PATTERN_CHARS = 4096
MAX_GROUPS_DEEP = 32

Ranges = list[tuple[int, int]]

_LAST = 0x10FFFF
_DIGIT: Ranges = [(48, 57)]
_WORD: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
_SPACE: Ranges = [(9, 13), (32, 32)]
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_NAMED = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_SURROGATES = (0xD800, 0xDFFF)


def literal(text: str) -> str:
    """Text as a GBNF literal."""
    return '"' + "".join(_quoted(character) for character in text) + '"'


def _quoted(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    return character if code >= 32 and code != 127 else f"\\x{code:02X}"


def pattern_to_gbnf(pattern: object) -> str:
    """An expression for the JSON strings that a pattern matches in full.

    Raises:
        UsageError: it is no text, not anchored at both ends, or uses what is not supported.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
        raise _refusal(f"it must be text of at most {MAX_PATTERN_CHARS} characters")
    if not (pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith("\\$")):
        raise _refusal("it must begin with ^ and end with $: only whole strings can be enforced")
    body = _Parser(pattern[1:-1]).parse()
    return rf'"\"" {body} "\""'


def _refusal(reason: str) -> UsageError:
    return UsageError(f"json_schema: pattern: {reason}", code="E_SCHEMA")


class _Parser:
    """Recursive descent; depth is bounded by `MAX_GROUPS_DEEP`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> str:
        expression = self._alternatives()
        if self._at < len(self._text):
            raise _refusal(f"unexpected {self._text[self._at]!r} at {self._at + 1}")
        return expression

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise _refusal("it ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> str:
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        return "( " + " | ".join(options) + " )"

    def _sequence(self) -> str:
        parts = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._atom() + self._quantifier())
        return " ".join(parts) or '""'

    def _atom(self) -> str:
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            return _in_json(self._class())
        if character == ".":
            return _in_json(_complement([(10, 10), (13, 13)]))
        if character == "\\":
            return _in_json(self._escape())
        if character in "^$":
            raise _refusal(f"{character} within the pattern cannot be enforced")
        if character in "*+?{":
            raise _refusal(f"nothing before {character} to repeat")
        return _in_json([(ord(character), ord(character))])

    def _group(self) -> str:
        self._depth += 1
        if self._depth > MAX_GROUPS_DEEP:
            raise _refusal(f"groups are nested more than {MAX_GROUPS_DEEP} deep")
        if self._peek() == "?":
            if not self._text.startswith("?:", self._at):
                raise _refusal("look-around and named groups cannot be enforced")
            self._at += 2
        expression = self._alternatives()
        if self._next() != ")":
            raise _refusal("a group is not closed")
        self._depth -= 1
        return expression

    def _quantifier(self) -> str:
        sign = self._peek()
        if sign not in ("*", "+", "?", "{"):
            return ""
        self._at += 1
        if sign == "{":
            end = self._text.find("}", self._at)
            inside = self._text[self._at : end] if end >= 0 else ""
            bounds = inside.split(",")
            if (
                len(bounds) > 2
                or not bounds[0].isdecimal()
                or (len(bounds) == 2 and not (bounds[1] or "0").isdecimal())
            ):
                raise _refusal(f"{{{inside[:20]} is no repetition")
            self._at = end + 1
            sign = f"{{{inside}}}"
        if self._peek() in ("*", "+"):
            raise _refusal("a repetition of a repetition cannot be enforced")
        if self._peek() == "?":  # lazy: the same strings match
            self._at += 1
        return sign

    def _escape(self) -> Ranges:
        letter = self._next()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter.lower() in _CLASSES:
            return _complement(_CLASSES[letter.lower()])
        if letter in _NAMED:
            return [(_NAMED[letter], _NAMED[letter])]
        if letter in ("x", "u"):
            digits = self._text[self._at : self._at + (2 if letter == "x" else 4)]
            try:
                code = int(digits, 16)
            except ValueError:
                raise _refusal(f"\\{letter}{digits} is no character") from None
            self._at += len(digits)
            return [(code, code)]
        if letter.isalnum():
            raise _refusal(f"\\{letter} cannot be enforced")
        return [(ord(letter), ord(letter))]

    def _class(self) -> Ranges:
        negated = self._peek() == "^"
        self._at += negated
        ranges: Ranges = []
        while self._peek() != "]" or not ranges:
            first = self._member()
            if len(first) == 1 and first[0][0] == first[0][1] and self._peek() == "-" and self._following() != "]":
                self._at += 1
                last = self._member()
                if len(last) != 1 or last[0][0] != last[0][1] or last[0][0] < first[0][0]:
                    raise _refusal("a range of a class runs backwards or has no end")
                first = [(first[0][0], last[0][0])]
            ranges += first
        self._at += 1
        return _complement(ranges) if negated else ranges

    def _following(self) -> str:
        return self._text[self._at + 1 : self._at + 2]

    def _member(self) -> Ranges:
        character = self._next()
        if character == "\\":
            return [(8, 8)] if self._peek() == "b" and self._next() else self._escape()
        return [(ord(character), ord(character))]


def _complement(ranges: Ranges) -> Ranges:
    result: Ranges = []
    start = 0
    for low, high in sorted(ranges):
        if low > start:
            result.append((start, low - 1))
        start = max(start, high + 1)
    if start <= _LAST:
        result.append((start, _LAST))
    return result


def _without(ranges: Ranges, low: int, high: int) -> Ranges:
    result: Ranges = []
    for first, last in ranges:
        if last < low or first > high:
            result.append((first, last))
            continue
        if first < low:
            result.append((first, low - 1))
        if last > high:
            result.append((high + 1, last))
    return result


def _in_json(ranges: Ranges) -> str:
    """A character class, with what JSON strings must escape written as its escapes."""
    plain = ranges
    for low, high in ((0, 31), (34, 34), (92, 92), _SURROGATES):
        plain = _without(plain, low, high)
    options = []
    if plain:
        options.append("[" + "".join(_range(low, high) for low, high in sorted(set(plain))) + "]")
    for code in (*range(32), 34, 92):
        if any(low <= code <= high for low, high in ranges):
            short = _SHORT_ESCAPES.get(code)
            options.append(literal("\\" + short if short else f"\\u{code:04x}"))
    if not options:
        raise _refusal("a class is empty")
    return options[0] if len(options) == 1 else "( " + " | ".join(options) + " )"


def _range(low: int, high: int) -> str:
    return _point(low) if low == high else f"{_point(low)}-{_point(high)}"


def _point(code: int) -> str:
    character = chr(code)
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 65536 else f"\\U{code:08X}"
