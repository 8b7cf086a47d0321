"""Nothing a terminal would obey gets through, and nothing else is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.tui.text import MAX_CHARS, Cleaner, advice, clean, line, paragraphs, plain
from support.foreign import CORPUS, HOSTILE

FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
_alphabet = st.one_of(
    st.characters(),
    st.sampled_from([*"\x1b[]PX^_\\;0m\x07\x9b\x9d\x9c\r\n\t", "\u202e", "\u200b", "\u0301", "\U000e0041", "漢", "é"]),
)
foreign = st.lists(_alphabet, max_size=60).map("".join)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;aGVsbG8=\x1b\\after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r0m\x1b\\after", "after"),
        ("\x9b2Jafter", "after"),
        ("\x9d0;title\x9cafter", "after"),
        ("\x1b(0after", "after"),
        ("unfinished\x1b]0;never ends\nnext line", "unfinished\nnext line"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("tag\U000e0061\U000e0062", "tag"),
        ("tab\there", "tab    here"),
        ("dos\r\nmac\rnel\x85ls\u2028end", "dos\nmac\nnel\nls\nend"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("e" + "\u0301" * 50, "e" + "\u0301" * 4),
        ("[bold]markup[/bold] stays", "[bold]markup[/bold] stays"),
        ("naïve 漢字 👩 ünï", "naïve 漢字 👩 ünï"),
    ],
)
def test_what_is_removed_and_what_stays(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(foreign)
def test_clean_leaves_no_control_character_and_is_stable(text: str) -> None:
    once = clean(text)
    assert not FORBIDDEN.search(once)
    assert clean(once) == once
    once.encode()


@given(foreign, st.data())
def test_a_stream_cut_anywhere_gives_what_the_whole_gives(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cleaner = Cleaner()
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown = [cleaner.feed(piece) for piece in pieces]
    assert "".join([*shown, cleaner.close()]) == clean(text)
    assert not any(FORBIDDEN.search(piece) for piece in shown)


@given(foreign, st.integers(4, 40))
def test_a_line_is_one_line_of_at_most_its_limit(text: str, limit: int) -> None:
    shown = line(text, limit)
    assert "\n" not in shown
    assert len(shown) <= limit


def test_floods_are_capped() -> None:
    assert len(clean("x" * 10_000_000)) == MAX_CHARS
    assert len(line("y" * 10_000_000)) == 1000
    assert len(line("\x1b[31m" * 1_000_000)) == 0


@pytest.mark.parametrize("start", ["\x90", "\x9d", "\x1b]", "\x1bP", "\x9b", "\x1b[0;"])
@pytest.mark.parametrize("end", ["\x07", "\x1bX", "\n", ""])
def test_a_flood_of_sequences_is_no_hold_up(start: str, end: str) -> None:
    cleaner = Cleaner()
    text = start * (60_000 // len(start)) + end
    assert cleaner.feed(text) + cleaner.close() == clean(text)


@pytest.mark.parametrize("text", [*CORPUS, *HOSTILE])
def test_texts_carry_no_styles_from_their_content(text: str) -> None:
    for built in (plain(text), paragraphs(text)):
        assert not built.spans
        assert not FORBIDDEN.search(built.plain)


@pytest.mark.parametrize(
    ("message", "hint", "told"),
    [
        ("no such file", "check the path", "no such file; check the path"),
        ("It was stopped.", "R resumes", "It was stopped. R resumes"),
        ("no such file", "", "no such file"),
        ("", "R resumes", "R resumes"),
    ],
)
def test_messages_and_hints_do_not_run_together(message: str, hint: str, told: str) -> None:
    assert advice(message, hint) == told
