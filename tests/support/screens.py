"""Looking at the terminal app in tests: the screen as text, an app on a script, golden files."""

from __future__ import annotations

import html
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lathe.tui.app import LatheApp
from rich.cells import cell_len
from support.scripted_workbench import ScriptedWorkbench
from textual.app import App
from textual.pilot import Pilot
from textual.screen import ModalScreen

_TEXT = re.compile(
    r'<text class="[^"]*" x="([\d.]+)" y="[\d.]+" textLength="[\d.]+" '
    r'clip-path="url\(#[^"]*-line-(\d+)\)">(.*?)</text>'
)
_WRITING = os.environ.get("LATHE_GOLDEN") == "write"
"""Read before the tests' own environment hides it."""
CELL = 12.2
"""Pixels per cell in Textual's SVG."""


def screen_lines(app: LatheApp) -> list[str]:
    """The screen as text, one string per row, trailing blanks removed; what lies behind a dialog is left out."""
    strips = app.screen._compositor.render_strips()
    return [strip.text.rstrip() for strip in strips]


def picture_lines(app: LatheApp) -> list[str]:
    """The same from the exported picture, with what lies behind: what a user would see in the README."""
    rows: dict[int, list[str]] = {}
    for x, row, text in _TEXT.findall(app.export_screenshot()):
        cells = rows.setdefault(int(row), [])
        column = round(float(x) / CELL)
        cells += [" "] * (column - len(cells))
        del cells[column:]
        for character in html.unescape(text).replace("\xa0", " "):
            # A wide character is followed by an empty cell; a mark joins the cell before it.
            width = cell_len(character)
            if width:
                cells += [character, *[""] * (width - 1)]
            elif cells:
                cells[-1] += character
    return ["".join(rows.get(row, [])).rstrip() for row in range(app.size.height)]


def screen_text(app: LatheApp) -> str:
    """The screen as one text."""
    return "\n".join(screen_lines(app))


@asynccontextmanager
async def running(
    bench: ScriptedWorkbench | None = None, *, size: tuple[int, int] = (80, 24), ticks: int = 1, **fields: Any
) -> AsyncIterator[tuple[LatheApp, Pilot[None], ScriptedWorkbench]]:
    """The app on a script, attached and drawn."""
    bench = bench if bench is not None else ScriptedWorkbench()
    fields.setdefault("now", lambda: bench.now)
    app = LatheApp(bench, **fields)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.board.attached)
        for _ in range(ticks):
            await tick(app, pilot, bench)
        yield app, pilot, bench


async def tick(app: LatheApp, pilot: Pilot[None], bench: ScriptedWorkbench, seconds: float = 1.0) -> None:
    """Let time pass in the script and in the app."""
    bench.advance(seconds)
    await app.step()
    await pilot.pause()


async def until(pilot: Pilot[None], condition: Any, tries: int = 3000) -> None:
    """Wait for a condition without a fixed delay, and for a dialog that opens until it has the keys."""
    for _ in range(tries):
        if condition() and _has_keys(pilot.app):
            return
        await pilot.pause(0.02)
    raise AssertionError(f"never came true: {condition}")


def _has_keys(app: App[Any]) -> bool:
    """Whether what is pressed now goes where it should: a dialog's words are painted before it takes the focus."""
    top = app.screen_stack[-1] if app.screen_stack else None
    return not isinstance(top, ModalScreen) or top.focused is not None or not top.focus_chain


async def type_text(pilot: Pilot[None], text: str) -> None:
    """Press a key per character."""
    names = {
        " ": "space", "/": "slash", "=": "equals_sign", ".": "full_stop", "_": "underscore", "-": "minus", ":": "colon",
        ">": "greater_than_sign", "!": "exclamation_mark",
    }  # fmt: skip
    await pilot.press(*(names.get(character, character) for character in text))


def compare(path: Path, actual: str) -> None:
    """Compare with a golden file; LATHE_GOLDEN=write makes it anew."""
    if _WRITING:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    assert actual == expected, f"{path.name} differs; LATHE_GOLDEN=write renews it"
