"""Answers as lines: every word is shown, growing changes only the end, and no input stalls or breaks it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.tui.glyphs import ASCII, UNICODE
from lathe.tui.text import clean
from lathe.tui.widgets.markdown import Document, inline, wrap_spans
from lathe.tui.widgets.paint import width_of
from support.foreign import CORPUS, HOSTILE

SOURCE = """# Cache

The **KV cache** stores `keys` and *values*, see [docs](https://x.y/z).

- one
  - nested item that is long enough to be wrapped
1. first

> quoted **words**

| name | value |
|------|-------|
| a    | 1     |

```python
def f(x):
    return x + 1  # why
```
___
last_line_with_underscores and 2 * 3 * 4
"""
LAID_OUT = """Cache

The KV cache stores keys and values, see
docs (https://x.y/z).

• one
  • nested item that is long enough to
    be wrapped
1. first

│ quoted words

name │ value
────────────
a    │ 1

 def f(x):
     return x + 1  # why
────────────────────────────────────────
last_line_with_underscores and 2 * 3 * 4"""


def _text(document: Document, width: int = 40) -> str:
    return "\n".join("".join(text for text, _ in line).rstrip() for line in document.lines(width, UNICODE))


def _whole(source: str, *, rich: bool = True) -> Document:
    document = Document(rich=rich)
    document.add(source)
    document.close()
    return document


def test_what_models_write() -> None:
    assert _text(_whole(SOURCE)) == LAID_OUT


def test_plain_is_the_source() -> None:
    assert _text(_whole("# not *a* heading\n\n- item", rich=False)) == "# not *a* heading\n\n- item"


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a **b** c", [("a ", "text"), ("b", "value"), (" c", "text")]),
        ("*i* _j_", [("i", "emphasis"), (" ", "text"), ("j", "emphasis")]),
        ("snake_case_name", [("snake_case_name", "text")]),
        ("2 * 3 * 4", [("2 * 3 * 4", "text")]),
        ("`x * y`", [("x * y", "code")]),
        ("``a `b` c``", [("a `b` c", "code")]),
        ("[t](u)", [("t", "accent"), (" (u)", "dim")]),
        ("**open", [("**open", "text")]),
        ("[bold]x[/bold]", [("[bold]x[/bold]", "text")]),
    ],
)
def test_emphasis(text: str, spans: list[tuple[str, str]]) -> None:
    assert inline(text) == spans


@given(st.text(st.sampled_from("ab *_`#>-|\n1.[]()~漢"), max_size=200), st.data())
@settings(max_examples=300)
def test_growing_gives_what_the_whole_gives(source: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=8)))
    grown = Document()
    for a, b in zip([0, *cuts], [*cuts, len(source)], strict=True):
        grown.add(source[a:b])
        lines = grown.lines(30, UNICODE)
        assert all(width_of(line) <= 30 for line in lines)
    grown.close()
    assert grown.lines(30, UNICODE) == _whole(source).lines(30, UNICODE)


@given(st.text(st.sampled_from("abc *_`#>-|\n1.漢"), max_size=200), st.integers(16, 50))
def test_no_word_is_lost_and_no_line_too_wide(source: str, width: int) -> None:
    lines = _whole(source).lines(width, ASCII)
    assert all(width_of(line) <= width for line in lines)
    shown = re.sub(r"[^abc漢]", "", "".join(text for line in lines for text, _ in line))
    kept = [character for character in source if character in "abc漢"]
    if "|" not in source and "`" not in source and "~" not in source:
        assert shown == "".join(kept)


@given(st.lists(st.tuples(st.text(max_size=20), st.sampled_from(["text", "code"])), max_size=6), st.integers(2, 30))
def test_wrapping_keeps_the_width(spans: list[tuple[str, str]], width: int) -> None:
    cleaned = [(clean(text).replace("\n", " "), ink) for text, ink in spans]
    assert all(width_of(line) <= width for line in wrap_spans(cleaned, width))


@pytest.mark.parametrize(
    "text", [*CORPUS, *HOSTILE, ">" * 5_000, "* " * 3_000, "`" * 4_001, "**a" * 2_000, "[" * 4_000]
)
def test_hostile_text_is_laid_out(text: str) -> None:
    document = _whole(clean(text))
    assert all(width_of(line) <= 60 for line in document.lines(60, UNICODE))


def test_code_is_coloured_when_the_answer_is_whole() -> None:
    document = Document()
    document.add("```python\nreturn 1\n```\n")
    assert {ink for line in document.lines(40, UNICODE) for _, ink in line} == {"code"}
    document.close()
    assert {"code-keyword", "code-number"} <= {ink for line in document.lines(40, UNICODE) for _, ink in line}


def test_a_finished_line_is_not_laid_out_again() -> None:
    document = Document()
    document.add("first line\nsecond")
    before = document.lines(40, UNICODE)
    document.add(" line grows")
    after = document.lines(40, UNICODE)
    assert after[0] is before[0]
    assert after[1] != before[1]
