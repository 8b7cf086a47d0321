"""From bytes to characters, by evidence: marks, strict decoding, declarations, and scripts that cannot be an accident.

Invariant: decoding always says as what it decoded and how many characters it had to replace; where there is no
evidence the answer is cp1252, which is what most such files are, and never a guess that merely decodes.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from lathe.engine.rag.ingest.errors import NotADocument

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark starts with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # without tab, line ends, form feed and escape
_BINARY_SHARE = 0.02
_DECLARED = re.compile(rb"(?i)(?:charset|encoding|coding)\s*[=:]\s*[\"']?([a-z][\w.:-]{1,30})")
_DECLARED_BYTES = 1024
_NEWLINES = re.compile(r"\r\n?|\x85|\u2028|\u2029")


class Decoded(NamedTuple):
    """Text with `\\n` line ends and the account of how it came about."""

    text: str
    encoding: str
    replaced: int = 0


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """Decode a text file; `declared` is what a protocol or header says its encoding is.

    Raises:
        NotADocument: the bytes are no text in any encoding.
    """
    decoded = _decode(data, declared)
    sample = decoded.text[:_SAMPLE]
    if len(_CONTROL.findall(sample)) > max(1, len(sample) * _BINARY_SHARE):
        raise NotADocument("the file is binary, not text", hint="only documents give passages")
    return decoded._replace(text=_NEWLINES.sub("\n", decoded.text))


def _decode(data: bytes, declared: str | None) -> Decoded:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _replacing(data, encoding)
    if b"\0" in data[:_SAMPLE] and (wide := _wide(data[:_SAMPLE])):
        return _replacing(data, wide)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        pass
    for name in (declared, _declaration(data)):
        if name and (text := _strictly(data, name)) is not None:
            return Decoded(text, codecs.lookup(name).name)
    if (almost := _almost_utf8(data)) is not None:
        return almost
    if script := _by_script(data):
        return _replacing(data, script)
    return _replacing(data, "cp1252")


def _replacing(data: bytes, encoding: str) -> Decoded:
    text = data.decode(encoding, "replace")
    name = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    return Decoded(text.removeprefix("\ufeff"), name, text.count("\ufffd"))


def _wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by where the zero bytes of its Latin letters, digits and blanks stand."""
    zeros = [sample[place::4].count(0) / max(1, len(sample[place::4])) for place in range(4)]
    if min(zeros[1:]) > 0.7 and zeros[0] < 0.3:
        return "utf-32-le"
    if min(zeros[:3]) > 0.7 and zeros[3] < 0.3:
        return "utf-32-be"
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if odd > 0.3 and even < 0.05:
        return "utf-16-le"
    if even > 0.3 and odd < 0.05:
        return "utf-16-be"
    return None


def _declaration(data: bytes) -> str | None:
    """What the file says in its head: an XML declaration, an HTML meta element, a source file's coding line."""
    found = _DECLARED.search(data[:_DECLARED_BYTES])
    return found[1].decode("ascii") if found else None


def _strictly(data: bytes, name: str) -> str | None:
    try:
        if codecs.lookup(name).name.startswith(("utf-16", "utf-32", "utf-7", "punycode", "idna", "undefined")):
            return None
        return data.decode(name)
    except (LookupError, ValueError, AssertionError):  # not text encodings (`hex`) raise LookupError too
        return None


def _almost_utf8(data: bytes) -> Decoded | None:
    """UTF-8 with damage: far more multi-byte sequences are right than wrong, which no other encoding does by chance."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    right = sum(1 for character in text if character > "\x7f") - broken
    return Decoded(text, "utf-8", broken) if right >= 2 * broken else None


def _by_script(data: bytes) -> str | None:
    """A legacy encoding that yields one non-Latin script nearly everywhere; nothing tells Latin ones from cp1252."""
    sample = data[:_SAMPLE]
    high = sum(1 for byte in sample if byte > 0x7F)
    if high < 8:
        return None
    for encoding, is_own, share in _SCRIPTS if _UNDEFINED.isdisjoint(sample) else (*_SCRIPTS, _KANJI):
        text = sample.decode(encoding, "ignore")
        foreign = [character for character in text if character > "\x7f" and character.isalpha()]
        lost = len(sample) - len(text.encode(encoding))
        if len(foreign) < 4 or lost > max(2, high // 50):
            continue
        if sum(map(is_own, foreign)) >= share * len(foreign) and _plausible(text):
            return encoding
    return None


def _named(*scripts: str) -> Callable[[str], bool]:
    return lambda character: unicodedata.name(character, "").startswith(scripts)


def _among(characters: str) -> Callable[[str], bool]:
    return frozenset(characters).__contains__


_SCRIPTS: tuple[tuple[str, Callable[[str], bool], float], ...] = (
    ("cp932", _named("HIRAGANA", "KATAKANA"), 0.25),
    ("euc_jp", _named("HIRAGANA", "KATAKANA"), 0.25),
    ("euc_kr", _named("HANGUL"), 0.9),
    ("gb18030", _among("的一是不了人我在有他这为之大来以个中上们"), 0.06),
    ("big5", _among("的一是不了人我在有他這為之大來以個中上們"), 0.06),
    ("cp1251", _named("CYRILLIC"), 0.98),
    ("koi8_r", _named("CYRILLIC"), 0.98),
)
"""Encoding, which characters speak for it, and their least share of all letters beyond ASCII. The Chinese ones are the
twenty most frequent: a fifth of any text."""
_KANJI: tuple[str, Callable[[str], bool], float] = ("cp932", lambda character: "\u4e00" <= character <= "\u9fff", 0.95)
_UNDEFINED = frozenset(b"\x81\x8d\x8f\x90\x9d")
"""Bytes without a meaning in cp1252. Where they occur, text of kanji alone (names, addresses) is Japanese."""


def _plausible(text: str) -> bool:
    """Words look written, not scrambled: no half-width kana, and Cyrillic capitals and vowels as Russian has them."""
    half = sum(1 for character in text if "\uff61" <= character <= "\uff9f")
    if half > len(text) // 50:
        return False
    words = re.findall(r"[А-Яа-яЁё]{2,}", text)
    if not any("\u0400" <= character <= "\u04ff" for character in text):
        return True
    if len(words) < 3 or re.search(r"[a-zA-Z][\u0400-\u04ff]|[\u0400-\u04ff][a-zA-Z]", text):
        return False  # letters of two alphabets in one word are an accent in the wrong encoding
    letters = "".join(words)
    inner = sum(1 for word in words if word[1:] != word[1:].lower() and word != word.upper())
    vowels = sum(1 for letter in letters if letter in "аеиоуыэюяёАЕИОУЫЭЮЯЁ")
    lower = sum(1 for letter in letters if letter.islower())
    return inner <= len(words) // 20 and 0.3 <= vowels / len(letters) <= 0.6 and lower > len(letters) // 2
