"""GBNF read and measured before llama.cpp sees it.

llama.cpp parses grammars by recursion and unfolds repetitions, and an error in the wrong place ends the process; so a
grammar from outside is parsed here first, by the same rules, and refused with a reason when it is wrong or when what
it unfolds to is out of proportion. Invariant: what `checked_grammar` returns parses in llama.cpp, has a rule `root`,
no left recursion, and unfolds to at most `MAX_ELEMENTS` elements.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterator

import msgspec
from lathe.engine.errors import UsageError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
"""Of nested groups."""
MAX_REPETITION = 2000
"""Of one item, and of nested repetitions multiplied; llama.cpp's own bound."""
MAX_ELEMENTS = 100_000
"""After repetitions are unfolded."""
MAX_CHAIN = 1024
"""Rules that begin with rules that begin with rules."""
MAX_BREADTH = 1000
"""Ways in which a text can go on at one place."""

_WORD = frozenset(string.ascii_letters + string.digits + "-")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = frozenset('trn\\"[]-')
_LAST_CODE_POINT = 0x10FFFF


class Item(msgspec.Struct):
    """Part of a sequence: characters, a token, a rule or a group, with how often it occurs."""

    size: int = 1
    """Elements of a literal or a character class."""
    rule: str | None = None
    """Name of the rule that is meant, synthesised for groups."""
    least: int = 1
    most: int | None = 1
    """None: no bound."""

    @property
    def unfolded(self) -> int:
        """Elements that the item becomes."""
        times = self.least + (1 if self.most is None else self.most - self.least)
        return self.size * max(1, times) + 2 * times


Sequence = list[Item]
Rules = dict[str, list[Sequence]]
"""Name -> alternatives."""


def checked_grammar(text: str) -> str:
    """Return a grammar that is safe to hand over.

    Raises:
        UsageError: what is wrong with it, and where.
    """
    size = len(text.encode())
    if size > MAX_BYTES:
        raise _refusal(f"it has {size} bytes, more than {MAX_BYTES}")
    rules = _Parser(text).parse()
    if "root" not in rules:
        raise _refusal("it has no rule named root")
    elements = sum(item.unfolded for sequence in _sequences(rules) for item in sequence)
    if elements > MAX_ELEMENTS:
        raise _refusal(f"its repetitions unfold to {elements} elements, more than {MAX_ELEMENTS}")
    for sequence in _sequences(rules):
        for item in sequence:
            if item.rule is not None and item.rule not in rules:
                raise _refusal(f"the rule {item.rule} is not defined")
    empty = _may_be_empty(rules)
    if any(item.most is None and item.rule in empty for sequence in _sequences(rules) for item in sequence):
        raise _refusal("something that may be empty is repeated without end")
    _check_beginnings(rules, empty)
    return text


def _refusal(reason: str) -> UsageError:
    return UsageError(f"grammar: {reason}", code="E_GRAMMAR")


class _Parser:
    """Recursive descent over llama.cpp's GBNF; groups become rules of their own, as they do there."""

    def __init__(self, text: str) -> None:
        self._text = text + "\0"
        self._at = 0
        self._rules: Rules = {}
        self._most: dict[str, int] = {}
        """Synthesised rule -> how often the most repeated thing in it occurs."""
        self._depth = 0

    def parse(self) -> Rules:
        end = len(self._text) - 1
        if "\0" in self._text[:end]:
            raise _refusal("it contains a NUL character")
        self._space(newlines=True)
        while self._at < end:
            name = self._name()
            self._space(newlines=False)
            self._expect("::=")
            self._space(newlines=True)
            self._rules[name] = self._alternatives(name, nested=False)
            if self._peek() not in "\r\n\0":
                raise self._unexpected("a new line")
            self._space(newlines=True)
        return self._rules

    def _alternatives(self, owner: str, *, nested: bool) -> list[Sequence]:
        alternatives = [self._sequence(owner, nested=nested)]
        while self._peek() == "|":
            self._at += 1
            self._space(newlines=True)
            alternatives.append(self._sequence(owner, nested=nested))
        return alternatives

    def _sequence(self, owner: str, *, nested: bool) -> Sequence:
        items: Sequence = []
        product = 1
        while True:
            character = self._peek()
            if character == '"':
                items.append(Item(self._literal()))
                product = 1
            elif character == "[":
                items.append(Item(self._class()))
                product = 1
            elif character in "<!":
                self._token()
                items.append(Item())
                product = 1
            elif character in _WORD:
                items.append(Item(rule=self._name()))
                product = 1
            elif character == "(":
                item, product = self._group(owner)
                items.append(item)
            elif character == ".":
                self._at += 1
                items.append(Item())
                product = 1
            elif character in "*+?{":
                least, most = self._repetition(nested=nested)
                if not items or not items[-1].size:
                    raise self._unexpected("something to repeat before this")
                product *= max(1, least if most is None else most)
                if product > MAX_REPETITION:
                    raise _refusal(f"repetitions multiply to {product}, more than {MAX_REPETITION}")
                self._repeat(owner, items, least, most)
            else:
                return items
            self._space(newlines=nested)

    def _repeat(self, owner: str, items: Sequence, least: int, most: int | None) -> None:
        last = items[-1]
        if (last.least, last.most) != (1, 1):
            items[-1] = last = Item(rule=self._synthesise(owner, [[last]]))
        last.least, last.most = least, most

    def _synthesise(self, owner: str, alternatives: list[Sequence]) -> str:
        name = f"{owner}({len(self._rules)})"  # no grammar can name it so
        self._rules[name] = alternatives
        self._most[name] = max((self._times(item) for one in alternatives for item in one), default=1)
        return name

    def _group(self, owner: str) -> tuple[Item, int]:
        """A group, and how often the most repeated thing in it occurs."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refusal(f"groups are nested more than {MAX_DEPTH} deep")
        self._at += 1
        self._space(newlines=True)
        alternatives = self._alternatives(owner, nested=True)
        self._expect(")")
        self._depth -= 1
        name = self._synthesise(owner, alternatives)
        return Item(rule=name), self._most[name]

    def _times(self, item: Item) -> int:
        """How often an item of a group is repeated, groups within counted."""
        own = max(1, item.least if item.most is None else item.most)
        return own if item.rule is None else own * self._most.get(item.rule, 1)

    def _repetition(self, *, nested: bool) -> tuple[int, int | None]:
        sign = self._peek()
        self._at += 1
        self._space(newlines=nested)
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        least = self._integer()
        most: int | None = least
        self._space(newlines=nested)
        if self._peek() == ",":
            self._at += 1
            self._space(newlines=nested)
            most = self._integer() if self._peek().isdecimal() else None
            self._space(newlines=nested)
        self._expect("}")
        if most is not None and most < least:
            raise _refusal(f"{{{least},{most}}} asks for more than it allows")
        if max(least, most or 0) > MAX_REPETITION:
            raise _refusal(f"a repetition of {max(least, most or 0)}, more than {MAX_REPETITION}")
        return least, most

    def _literal(self) -> int:
        self._at += 1
        count = 0
        while self._peek() != '"':
            self._character()
            count += 1
        self._at += 1
        return count

    def _class(self) -> int:
        self._at += 1
        if self._peek() == "^":
            self._at += 1
        count = 0
        while self._peek() != "]":
            low = self._character()
            count += 1
            if self._peek() == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                high = self._character()
                count += 1
                if high < low:
                    raise _refusal(f"a range runs backwards, from U+{low:04X} to U+{high:04X}")
        self._at += 1
        if not count:
            raise _refusal("a character class is empty")
        return count

    def _character(self) -> int:
        character = self._peek()
        if self._at >= len(self._text) - 1:
            raise self._unexpected("a closing quote or bracket")
        self._at += 1
        if character != "\\":
            return ord(character)
        escape = self._peek()
        self._at += 1
        if escape in _ESCAPES:
            return ord(escape)
        digits = _HEX.get(escape)
        if digits is None:
            raise _refusal(f"unknown escape \\{escape.rstrip(chr(0))}")
        code = self._text[self._at : self._at + digits]
        if len(code) < digits or not all(digit in string.hexdigits for digit in code):
            raise _refusal(f"\\{escape} needs {digits} hexadecimal digits")
        self._at += digits
        value = int(code, 16)
        if value > _LAST_CODE_POINT:
            raise _refusal(f"\\{escape}{code} is no character")
        return value

    def _token(self) -> None:
        """`<[17]>`, `<name>` and their negations with `!`."""
        if self._peek() == "!":
            self._at += 1
        self._expect("<")
        end = self._text.find(">", self._at)
        if end < 0:
            raise self._unexpected("a closing >")
        name = self._text[self._at : end]
        if name.startswith("["):
            if not (name.endswith("]") and name[1:-1].isdecimal() and name.isascii() and len(name) <= 12):
                raise _refusal(f"<{name[:32]}> is no token id")
        elif "\n" in name or len(name) > 256:
            raise self._unexpected("a token name")
        self._at = end + 1

    def _integer(self) -> int:
        start = self._at
        while self._peek() in string.digits:
            self._at += 1
        digits = self._text[start : self._at]
        if not digits or len(digits) > 18:
            raise self._unexpected("a number of at most 18 digits")
        return int(digits)

    def _name(self) -> str:
        start = self._at
        while self._peek() in _WORD:
            self._at += 1
        if self._at == start:
            raise self._unexpected("the name of a rule")
        return self._text[start : self._at]

    def _space(self, *, newlines: bool) -> None:
        blank = " \t\r\n" if newlines else " \t"
        while True:
            if self._peek() in blank:
                self._at += 1
            elif self._peek() == "#":
                while self._peek() not in "\r\n\0":
                    self._at += 1
            else:
                return

    def _expect(self, sign: str) -> None:
        if not self._text.startswith(sign, self._at):
            raise self._unexpected(sign)
        self._at += len(sign)

    def _peek(self) -> str:
        return self._text[self._at]

    def _unexpected(self, wanted: str) -> UsageError:
        before = self._text[: self._at]
        line, column = before.count("\n") + 1, self._at - before.rfind("\n")
        return _refusal(f"line {line}, column {column}: expected {wanted}")


def _sequences(rules: Rules) -> Iterator[Sequence]:
    for alternatives in rules.values():
        yield from alternatives


def _may_be_empty(rules: Rules) -> set[str]:
    """Rules that can match nothing."""
    empty: set[str] = set()
    missing: dict[tuple[str, int], int] = {}
    """Alternative -> rules in it that are not known to be empty yet."""
    users: defaultdict[str | None, list[tuple[str, int]]] = defaultdict(list)
    found: list[str] = []
    for name, alternatives in rules.items():
        for place, sequence in enumerate(alternatives):
            needed = [item.rule for item in sequence if not _skippable(item, empty)]
            if None in needed:
                continue  # a character is never nothing
            missing[name, place] = len(needed)
            for rule in needed:
                users[rule].append((name, place))
            if not needed:
                found.append(name)
    while found:
        name = found.pop()
        if name in empty:
            continue
        empty.add(name)
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                found.append(user[0])
    return empty


def _skippable(item: Item, empty: set[str]) -> bool:
    if item.least == 0:
        return True
    return item.size == 0 if item.rule is None else item.rule in empty


def _check_beginnings(rules: Rules, empty: set[str]) -> None:
    """Refuse left recursion, endless repetition of nothing, long chains of first rules, and too many ways to go on."""
    breadth: dict[str, int] = {}
    chain: dict[str, int] = {}
    for start in rules:
        # Depth first by hand: the chains of a hostile grammar are longer than Python's stack.
        stack: list[tuple[str, Iterator[str]]] = [(start, _firsts(rules[start], empty))] if start not in breadth else []
        open_rules = {start}
        while stack:
            name, firsts = stack[-1]
            following = next((one for one in firsts if one not in breadth), None)
            if following is not None:
                if following in open_rules:
                    raise _refusal(f"the rule {following.partition('(')[0]} begins with itself (left recursion)")
                open_rules.add(following)
                stack.append((following, _firsts(rules[following], empty)))
                continue
            stack.pop()
            open_rules.discard(name)
            chain[name] = 1 + max((chain[one] for one in _firsts(rules[name], empty)), default=0)
            if chain[name] > MAX_CHAIN:
                raise _refusal(f"more than {MAX_CHAIN} rules begin with one another")
            breadth[name] = sum(_breadth(one, empty, breadth) for one in rules[name])
            if breadth[name] > MAX_BREADTH:
                raise _refusal(f"a text could go on in {breadth[name]} ways, more than {MAX_BREADTH}")
    for sequence in _sequences(rules):
        ways = 0
        for item in reversed(sequence):
            ways = _ways(item, empty, breadth) + (ways if _skippable(item, empty) else 0)
            if ways > MAX_BREADTH:
                raise _refusal(f"a text could go on in more than {MAX_BREADTH} ways")


def _firsts(alternatives: list[Sequence], empty: set[str]) -> Iterator[str]:
    """Rules with which these alternatives can begin."""
    for sequence in alternatives:
        for item in sequence:
            if item.rule is not None:
                yield item.rule
            if not _skippable(item, empty):
                break


def _breadth(sequence: Sequence, empty: set[str], known: dict[str, int]) -> int:
    """In how many ways a text can go on at the beginning of a sequence."""
    total = 0
    for item in sequence:
        total += _ways(item, empty, known)
        if total > MAX_BREADTH or not _skippable(item, empty):
            break
    return total


def _ways(item: Item, empty: set[str], known: dict[str, int]) -> int:
    ways = 1 if item.rule is None else known[item.rule]
    return ways * max(1, item.most or 1) if item.rule in empty else ways
