"""Themes, and inks: the named styles that widgets draw text with.

Inks are derived from whatever theme is active, so Textual's own themes work too. With an `ansi` theme or NO_COLOR an
ink is an attribute (bold, dim, reverse, underline) and no colour. Invariant: text inks have a contrast of at least
4.5 to the background in the three themes of ours (a test computes it).
"""

from __future__ import annotations

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

DARK = Theme(
    name="lathe-dark",
    primary="#6cb2f0",
    secondary="#f0a35e",
    accent="#6cb2f0",
    foreground="#d6dde6",
    background="#0f1419",
    surface="#161c23",
    panel="#1e2630",
    success="#7fca8f",
    warning="#e6bd69",
    error="#f08080",
    dark=True,
    variables={
        "border": "#6cb2f0",
        "border-blurred": "#2b3642",
        "input-cursor-background": "#d6dde6",
        "input-selection-background": "#2f5f8a",
        "scrollbar": "#2b3642",
        "scrollbar-hover": "#3b4958",
        "scrollbar-active": "#6cb2f0",
        "scrollbar-background": "#0f1419",
        "scrollbar-background-hover": "#0f1419",
        "scrollbar-background-active": "#0f1419",
        "scrollbar-corner-color": "#0f1419",
    },
)
LIGHT = Theme(
    name="lathe-light",
    primary="#0b5fa5",
    secondary="#a04a00",
    accent="#0b5fa5",
    foreground="#1d2630",
    background="#fbfaf7",
    surface="#f1efe9",
    panel="#e6e3da",
    success="#1c6b35",
    warning="#855400",
    error="#b3261e",
    dark=False,
    variables={
        "border": "#0b5fa5",
        "border-blurred": "#cfcabd",
        "input-cursor-background": "#1d2630",
        "input-cursor-foreground": "#fbfaf7",
        "input-selection-background": "#b5d4ee",
        "scrollbar": "#cfcabd",
        "scrollbar-hover": "#b8b2a2",
        "scrollbar-active": "#0b5fa5",
        "scrollbar-background": "#fbfaf7",
        "scrollbar-background-hover": "#fbfaf7",
        "scrollbar-background-active": "#fbfaf7",
        "scrollbar-corner-color": "#fbfaf7",
    },
)
CONTRAST = Theme(
    name="lathe-contrast",
    primary="#ffd700",
    secondary="#5fd7ff",
    accent="#ffd700",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1c1c1c",
    success="#5fff87",
    warning="#ffd700",
    error="#ff8787",
    dark=True,
    variables={
        "border": "#ffd700",
        "border-blurred": "#8a8a8a",
        "input-cursor-background": "#ffffff",
        "scrollbar": "#8a8a8a",
        "scrollbar-background": "#000000",
        "scrollbar-background-hover": "#000000",
        "scrollbar-background-active": "#000000",
        "scrollbar-corner-color": "#000000",
    },
)
THEMES = (DARK, LIGHT, CONTRAST)
COLOURLESS = "ansi-dark"
"""The theme under NO_COLOR: only then do the colours vanish instead of turning grey."""

Inks = dict[str, Style]
TEXT_INKS = ("text", "value", "title", "dim", "good", "warn", "bad", "accent", "a", "b")
"""Inks that carry text and so have to be readable on the background."""

_ATTRIBUTES: dict[str, str] = {
    "text": "", "value": "bold", "title": "bold", "dim": "", "faint": "dim", "good": "", "warn": "bold", "bad": "bold",
    "accent": "bold", "a": "bold", "b": "underline", "key": "bold", "graph": "", "graph-low": "dim", "track": "dim",
    "part1": "", "part2": "dim", "part3": "dim", "place": "reverse bold", "badge": "reverse", "alarm": "reverse bold",
    "cursor": "reverse", "row": "underline", "mark": "bold", "match": "reverse", "emphasis": "italic", "code": "",
    "code-comment": "dim", "code-keyword": "bold", "code-string": "", "code-number": "", "code-name": "bold",
}  # fmt: skip


def inks(theme: Theme, colour: bool = True) -> Inks:
    """Derive every ink from a theme; without `colour`, attributes alone."""
    if not colour or theme.ansi:
        return {name: Style.parse(attributes) for name, attributes in _ATTRIBUTES.items()}
    system = theme.to_color_system()
    colours = system.generate()
    foreground = Color.parse(theme.foreground or colours["foreground"])
    background = Color.parse(theme.background or colours["background"])
    primary = Color.parse(theme.primary)
    secondary = Color.parse(theme.secondary or theme.primary)
    panel = Color.parse(colours["panel"])
    good, warn, bad = (Color.parse(colours[name]) for name in ("success", "warning", "error"))
    dim = foreground.blend(background, 0.36)
    faint = foreground.blend(background, 0.68)

    def ink(colour: Color, ground: Color | None = None, *, bold: bool = False) -> Style:
        return Style(color=colour.rich_color, bgcolor=ground.rich_color if ground else None, bold=bold or None)

    return {
        "text": ink(foreground),
        "value": ink(foreground, bold=True),
        "title": ink(primary, bold=True),
        "dim": ink(dim),
        "faint": ink(faint),
        "good": ink(good),
        "warn": ink(warn),
        "bad": ink(bad, bold=True),
        "accent": ink(primary),
        "a": ink(primary, bold=True),
        "b": ink(secondary, bold=True),
        "key": ink(primary, bold=True),
        "graph": ink(primary),
        "graph-low": ink(primary.blend(background, 0.45)),
        "track": ink(foreground.blend(background, 0.82)),
        "part1": ink(primary),
        "part2": ink(secondary),
        "part3": ink(foreground.blend(background, 0.55)),
        "place": ink(background, primary, bold=True),
        "badge": ink(foreground, panel),
        "alarm": ink(background, bad, bold=True),
        "cursor": ink(foreground, primary.blend(background, 0.72)),
        "row": ink(foreground, panel),
        "mark": ink(secondary, bold=True),
        "match": ink(background, warn),
        "emphasis": Style(color=foreground.rich_color, italic=True),
        "code": ink(foreground, panel),
        "code-comment": ink(foreground.blend(panel, 0.36), panel),
        "code-keyword": ink(primary, panel),
        "code-string": ink(good, panel),
        "code-number": ink(secondary, panel),
        "code-name": ink(foreground, panel, bold=True),
    }
