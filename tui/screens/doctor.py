"""Doctor: what this machine can do, and how to mend each gap."""

from __future__ import annotations

import sys
from typing import ClassVar

from lathe.engine.errors import describe
from lathe.engine.workbench import Finding
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.model_work import install_toolchain
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Grid, Row
from lathe.tui.widgets.paint import Line, wrap
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

_COLUMNS = (
    Column("", least=6, most=6, sort="level"),
    Column("area", least=8, most=14, sort="area"),
    Column("what", least=8, most=28, sort="what"),
    Column("found", least=20, most=120, flex=True),
)
_INKS = {"ok": "good", "info": "dim", "warn": "warn", "fail": "bad"}
_RANK = {"fail": 0, "warn": 1, "info": 2, "ok": 3}


class Doctor(PlaceScreen):
    """The report."""

    MODE = "doctor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "examine", "examine again", id="doctor.run", tooltip="Examine the machine again"),
        Binding("y", "copy", "copy the fix", id="doctor.copy", tooltip="Copy the command that mends it"),
        Binding(
            "t",
            "toolchain",
            "install converter",
            id="doctor.toolchain",
            tooltip="Install llama.cpp's own converter, for architectures that Lathe's does not know",
        ),
        Binding("slash", "filter", "filter", id="doctor.filter", tooltip="Show only the findings that match"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._findings: list[Finding] | None = None
        self._busy = False

    def content(self) -> ComposeResult:
        with Panel(title="Doctor", id="report", classes="-bare"):
            yield Grid(
                _COLUMNS,
                empty=lambda: "Examining this machine..." if self._busy else "Not examined yet.\nr  examines it",
            )
        with Panel(title="How to mend it", id="fix"):
            yield _Fix(self._fix)

    def show(self, board: Board) -> None:
        if self._findings is None and not self._busy and board.attached and board.lost is None:
            self.action_examine()

    @work(exclusive=True, group="doctor", exit_on_error=False)
    async def action_examine(self) -> None:
        """Ask the engine, and add what only this process knows: its terminal."""
        self._busy = True
        try:
            found = await self.lathe.link.bench.doctor()
        except Exception as error:  # noqa: BLE001 - shown like every other failed call
            self.lathe.report(describe(error))
            return
        finally:
            self._busy = False
        self._findings = [*found, *self._terminal()]
        self._fill()

    def _terminal(self) -> list[Finding]:
        app = self.lathe
        size = f"{app.size.width}x{app.size.height}, glyphs {app.glyphs.name}, theme {app.theme}"
        return [
            Finding(
                area="terminal",
                name="size",
                value=size,
                level="ok" if app.size.width >= 60 else "warn",
                fix="" if app.size.width >= 60 else "60x16 is the least for the full screens",
            ),
            Finding(area="terminal", name="python", value=f"{sys.version.split()[0]} on {sys.platform}"),
        ]

    def _fill(self) -> None:
        findings = sorted(self._findings or [], key=lambda finding: _RANK.get(finding.level, 9))
        self.query_one(Grid).show(
            Row(
                f"{f.area} {f.name}",
                ((f.level, _INKS.get(f.level, "text")), (f.area, "dim"), f.name, (f.value, "text")),
                {"level": f.level, "area": f.area, "what": f.name, "found": f.value, "fix": f.fix},
            )
            for f in findings
        )
        counts = [f"{sum(f.level == level for f in findings)} {level}" for level in ("ok", "info", "warn", "fail")]
        self.query_one("#report", Panel).entitle("Doctor", *counts)
        self.query_one(_Fix).redraw()

    @on(Grid.Moved)
    def _moved(self) -> None:
        self.query_one(_Fix).redraw()

    @property
    def finding(self) -> Finding | None:
        """The finding under the cursor."""
        key = self.query_one(Grid).cursor
        return next((f for f in self._findings or [] if f"{f.area} {f.name}" == key), None)

    def _fix(self, width: int, height: int) -> list[Line]:
        finding = self.finding
        if finding is None:
            return []
        lines = wrap(finding.value, width, "text", 3)
        if finding.fix:
            return [*lines, [], *wrap(finding.fix, width, "accent", height - len(lines) - 1)]
        return [*lines, [], [(f"{self.lathe.glyphs.good} nothing to do", "good" if finding.level == "ok" else "dim")]]

    def action_toolchain(self) -> None:
        """Install llama.cpp's own converter."""
        dialog = Ask(
            "Install llama.cpp's own converter", "From", "",
            hint="A source archive of llama-cpp-python, or a packed toolchain; empty: the registry, unless offline.",
        )  # fmt: skip

        def take(path: str | None) -> None:
            if path is not None:
                install_toolchain(self.lathe, path.strip() or None)

        self.app.push_screen(dialog, take)

    def copy_text(self) -> tuple[str, str]:
        finding = self.finding
        return (finding.fix or finding.value, "Fix") if finding else ("", "")


class _Fix(Canvas):
    """The fix in its panel."""

    DEFAULT_CSS = "_Fix { height: 1fr; }"
