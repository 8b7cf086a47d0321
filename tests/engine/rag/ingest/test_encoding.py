"""Bytes to characters: right where there is evidence, cp1252 where there is none, never a guess that merely decodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.rag.ingest.encoding import decode
from lathe.engine.rag.ingest.errors import NotADocument

GERMAN = "Größe, Maß und Überfluß: fünf Jäger zögerten.\n" * 4
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 3
JAPANESE = "これは日本語の文章です。ひらがなとカタカナが混ざっています。\n" * 3
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n" * 3
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。这是我们的。\n" * 3


@pytest.mark.parametrize(
    ("text", "written", "said"),
    [
        (GERMAN, "utf-8", "utf-8"),
        (GERMAN, "utf-8-sig", "utf-8"),
        (GERMAN, "utf-16", "utf-16"),
        (GERMAN, "utf-16-le", "utf-16-le"),
        (GERMAN, "utf-16-be", "utf-16-be"),
        (GERMAN, "utf-32", "utf-32"),
        (GERMAN, "utf-32-le", "utf-32-le"),
        (GERMAN, "utf-32-be", "utf-32-be"),
        (GERMAN, "cp1252", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8_r", "koi8_r"),
        (JAPANESE, "cp932", "cp932"),
        (JAPANESE, "euc_jp", "euc_jp"),
        (KOREAN, "euc_kr", "euc_kr"),
        (CHINESE, "gb18030", "gb18030"),
    ],
)
def test_told_by_evidence(text: str, written: str, said: str) -> None:
    assert decode(text.encode(written)) == (text, said, 0)


@pytest.mark.parametrize(
    "text",
    [
        "Déjà vu à l'hôtel, où l'été s'achève; ça coûte 5 €.",
        "El niño cumplió 10 años; ¿qué pasó después?",
        "Ærø, Ångström und Naïveté – „Anführung“",
        "ÄÖÜäöüß " * 10,
        "çáéíóúâêôãõà " * 10,
    ],
)
def test_western_text_is_never_taken_for_another_script(text: str) -> None:
    assert decode(text.encode("cp1252")).text == text


def test_a_declaration_is_believed_when_it_holds() -> None:
    head = '<?xml version="1.0" encoding="iso-8859-2"?>'
    assert decode(f"{head}<p>zażółć gęślą jaźń</p>".encode("iso-8859-2")).text == f"{head}<p>zażółć gęślą jaźń</p>"
    lie = '<meta charset="ascii">Größe'.encode("cp1252")
    assert decode(lie).text == '<meta charset="ascii">Größe'
    assert decode('<meta charset="hex">é'.encode("cp1252")).encoding == "cp1252"
    assert decode("p\u0142yn".encode("cp1250"), "cp1250").text == "p\u0142yn"


def test_damage_in_utf8_is_counted_not_guessed_away() -> None:
    data = "naïve café – résumé".encode() * 20
    broken = data[:100] + b"\xff" + data[101:]
    decoded = decode(broken)
    assert decoded.encoding == "utf-8"
    assert 1 <= decoded.replaced <= 3
    assert decoded.replaced == decoded.text.count("\ufffd")


def test_line_ends_become_one() -> None:
    assert decode(b"a\r\nb\rc\nd").text == "a\nb\nc\nd"


@pytest.mark.parametrize("data", [bytes(range(256)) * 10, b"\0" * 5000, b"\x7fELF" + bytes(2000)])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(NotADocument):
        decode(data)


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        decoded = decode(data)
    except NotADocument:
        return
    decoded.text.encode()
    assert "\r" not in decoded.text


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=200))
def test_utf8_round_trips(text: str) -> None:
    expected = text.replace("\u2028", "\n").replace("\u2029", "\n").removeprefix("\ufeff")
    assert decode(text.encode()).text == expected
