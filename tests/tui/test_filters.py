"""The filter language finds what it says, and never raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.tui.filters import compile_filter, words

ROW = {"name": "qwen3-8b-q4_k_m", "state": "loaded", "size": 4.7, "note": None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("qwen", True),
        ("QWEN loaded", True),
        ("qwen idle", False),
        ("!idle", True),
        ("!loaded", False),
        ("state=loaded", True),
        ("state=load", False),
        ("!state=loaded", False),
        ("size>4", True),
        ("size>=4.7 size<5", True),
        ("size<4", False),
        ("missing=1", False),
        ("missing>1", False),
        ("note=none", False),
        ("/q[45]_k/", True),
        ("/^idle$/", False),
        ("/[unclosed/", False),
        ('"8b-q4"', True),
        ("size>big", False),
    ],
)
def test_terms(text: str, found: bool) -> None:
    test = compile_filter(text)
    assert test is not None
    assert test(ROW) is found


def test_nothing_typed_filters_nothing() -> None:
    assert compile_filter("") is None
    assert compile_filter("   ") is None


@given(st.text(max_size=80))
def test_no_input_raises(text: str) -> None:
    test = compile_filter(text)
    if test is not None:
        test(ROW)
    words(text)


def test_a_pattern_that_would_never_end_is_a_word() -> None:
    test = compile_filter("/(a+)+$/")
    assert test is not None
    assert not test({"name": "a" * 5000 + "!"})


def test_only_literal_words_are_highlighted() -> None:
    assert words("Foo !bar state=x /re/ baz") == ["foo", "baz"]
