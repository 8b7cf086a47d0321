"""Doctor: the report, and installing what mends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.errors import UsageError
from lathe.engine.steps import ToolchainStep
from lathe.tui.commands import execute
from support.screens import running, screen_text, type_text, until


async def test_the_converter_is_installed_from_a_file_or_the_registry(tmp_path: Path) -> None:
    async with running(size=(120, 40), mode="doctor") as (app, pilot, bench):
        await until(pilot, lambda: "cores" in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: "Install llama.cpp's own converter" in screen_text(app))
        await pilot.press("escape")
        await pilot.press("t")
        await until(pilot, lambda: "Install llama.cpp's own converter" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
        await pilot.press("t")
        await until(pilot, lambda: "Install llama.cpp's own converter" in screen_text(app))
        await type_text(pilot, "/x.tar.gz")
        await pilot.press("enter")
        await until(pilot, lambda: sum(call[0] == "submit" for call in bench.calls) == 2)
        steps = [call[1] for call in bench.calls if call[0] == "submit"]
        assert steps == [ToolchainStep(), ToolchainStep(source="/x.tar.gz")]
        assert app.did == "lathe toolchain install --from /x.tar.gz"


async def test_the_palette_installs_it_too() -> None:
    async with running(mode="doctor") as (app, pilot, bench):
        execute(app, "toolchain")
        await until(pilot, lambda: any(call[0] == "submit" for call in bench.calls))
        with pytest.raises(UsageError, match="load MODEL"):
            execute(app, "load")
