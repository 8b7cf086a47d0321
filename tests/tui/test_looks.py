"""Themes can be read, glyph sets can be shown, and without colour no ink has one."""

from __future__ import annotations

import pytest
from lathe.tui import glyphs
from lathe.tui.themes import TEXT_INKS, THEMES, inks
from textual.color import Color
from textual.theme import BUILTIN_THEMES, Theme


def _contrast(a: Color, b: Color) -> float:
    def luminance(colour: Color) -> float:
        parts = [part / 255 for part in colour.rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("ink", TEXT_INKS)
def test_text_has_contrast(theme: Theme, ink: str) -> None:
    style = inks(theme)[ink]
    assert style.color is not None
    triplet = style.color.get_truecolor()
    assert _contrast(Color(*triplet), Color.parse(theme.background or "")) >= 4.5


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("ink", ["place", "alarm", "badge", "match", "cursor"])
def test_text_on_a_ground_has_contrast(theme: Theme, ink: str) -> None:
    style = inks(theme)[ink]
    assert style.color is not None
    assert style.bgcolor is not None
    assert _contrast(Color(*style.color.get_truecolor()), Color(*style.bgcolor.get_truecolor())) >= 4.5


@pytest.mark.parametrize("name", ["nord", "textual-light", "dracula"])
def test_foreign_themes_have_every_ink(name: str) -> None:
    assert inks(BUILTIN_THEMES[name]).keys() == inks(THEMES[0]).keys()


def test_without_colour_inks_are_attributes() -> None:
    for found in (inks(THEMES[0], colour=False), inks(BUILTIN_THEMES["ansi-dark"])):
        assert found.keys() == inks(THEMES[0]).keys()
        assert all(style.color is None and style.bgcolor is None for style in found.values())
        assert found["place"].reverse
        assert found["cursor"].reverse


@pytest.mark.parametrize(
    ("environment", "encoding", "name"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", "unicode"),
        ({"TERM": "tmux-256color"}, "UTF-8", "unicode"),
        ({"TERM": "linux"}, "utf-8", "blocks"),
        ({"TERM": "vt100"}, "utf-8", "ascii"),
        ({"TERM": "xterm"}, "ANSI_X3.4-1968", "ascii"),
        ({}, "iso8859-1", "ascii"),
    ],
)
def test_the_terminal_chooses_the_glyphs(environment: dict[str, str], encoding: str, name: str) -> None:
    assert glyphs.choose("auto", environment, encoding).name == name
    assert glyphs.choose("blocks", environment, encoding).name == "blocks"


def test_ascii_is_ascii_and_every_sign_is_there() -> None:
    for found in glyphs.SETS.values():
        values = {name: getattr(found, name) for name in found.__struct_fields__}
        assert all(values[name] for name in values if name not in ("partial", "unmarked"))
        signs = [found.good, found.busy, found.idle, found.bad, found.warn]
        assert len(set(signs)) == len(signs)
        if found.name == "ascii":
            assert all(value.isascii() for value in values.values())
