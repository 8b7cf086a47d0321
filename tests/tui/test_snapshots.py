"""Pictures of screens: the whole terminal as SVG, colours and styles included, beside golden files.

LATHE_GOLDEN=write renews them; look at them before committing.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lathe.tui.places import BY_MODE
from lathe.tui.widgets.chrome import NavRow
from support.screens import compare, running, screen_text, tick, until

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "screens"
SIZES = [(120, 40), (80, 24)]
MODES = ["dashboard", "models", "chat", "jobs", "evals"]


def _settled(picture: str) -> str:
    """The picture without what Rich draws anew each time: identifiers, and the address of its font."""
    picture = re.sub(r"terminal-\d+", "terminal", picture)
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", MODES)
async def test_a_place_looks_as_it_did(mode: str, size: tuple[int, int]) -> None:
    async with running(size=size, ticks=3, mode=mode, theme="lathe-dark", glyphs="unicode") as (app, pilot, bench):
        await until(pilot, lambda: app.current_mode == mode and app.screen.is_mounted)
        await until(pilot, lambda: mode != "evals" or "Lima" in screen_text(app))
        await tick(app, pilot, bench)
        # The navigation changes with every place of the app; test_places looks at it.
        app.screen.query_one(NavRow).styles.visibility = "hidden"
        await pilot.pause()
        compare(GOLDEN / f"{mode}-{size[0]}x{size[1]}.svg", _settled(app.export_screenshot(title=BY_MODE[mode].title)))
