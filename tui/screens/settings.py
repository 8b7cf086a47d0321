"""Settings: sections, values with their source, edits that are checked before they are written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import ClassVar

from lathe.engine.workbench import SettingValue
from lathe.tui.board import Board
from lathe.tui.keys import FORBIDDEN, display, flat
from lathe.tui.places import PLACES
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.forms import number
from lathe.tui.screens.reading import Choice, Choose, Facts
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.fields import Check
from lathe.tui.widgets.grid import Grid, Row
from lathe.tui.widgets.paint import Line, wrap
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

KEYS, ABOUT = "keys", "about"
"""Sections that are no settings: the effective keys, and what Lathe is."""
_COLUMNS = (
    Column("setting", least=14, most=32, sort="key"),
    Column("value", least=8, most=44, flex=True),
    Column("default", rank=2, least=8, most=24),
    Column("source", rank=1, least=22, most=48, flex=True, sort="source"),
)


class SettingsPlace(PlaceScreen):
    """Values and where they come from."""

    MODE = "settings"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter,e",
            "edit",
            "edit",
            id="settings.edit",
            tooltip="Change the value; it is checked, then written at once",
        ),
        Binding(
            "u",
            "unset",
            "unset",
            id="settings.unset",
            tooltip="Remove the value from your file; the default holds again",
        ),
        Binding("i", "explain", "explain", id="settings.explain", tooltip="What the setting does and what it may be"),
        Binding("d", "doctor", "doctor", id="settings.doctor", tooltip="What this machine can do"),
        Binding("t", "test_keys", "key tester", id="settings.keys", tooltip="Press keys and see what arrives"),
        Binding("slash", "filter", "search", id="settings.filter", tooltip="Show only the settings that match"),
    ]

    def content(self) -> ComposeResult:
        with Panel(title="Sections", id="sections", classes="-bare"):
            yield Grid((Column("", least=10, most=24, flex=True),), id="section-list")
        with Panel(title="Settings", id="values", classes="-bare"):
            yield Grid(_COLUMNS, empty=self._nothing, id="value-list")
        with Panel(title="Meaning", id="meaning"):
            yield _Meaning(self._meaning)

    def _nothing(self) -> str:
        return "No setting here." if self.board.attached else "Reading the settings..."

    def home(self) -> Grid:
        return self.query_one("#value-list", Grid)

    @property
    def section(self) -> str:
        """The section under the cursor."""
        return self.query_one("#section-list", Grid).cursor or ""

    def show(self, board: Board) -> None:
        names = list(dict.fromkeys(setting.key.partition(".")[0] for setting in board.settings))
        sections = self.query_one("#section-list", Grid)
        sections.show(Row(name, (name.capitalize(),)) for name in (*names, KEYS, ABOUT))
        self._fill()

    def _fill(self) -> None:
        grid, panel = self.query_one("#value-list", Grid), self.query_one("#values", Panel)
        section = self.section
        if section == KEYS:
            grid.show(self._keys())
        elif section == ABOUT:
            grid.show(Row(name, (name, (value, "text"), "", "")) for name, value in self._about())
        else:
            grid.show(_row(s) for s in self.board.settings if s.key.startswith(section + "."))
        changed = sum(s.source != "default" for s in self.board.settings)
        panel.entitle(section.capitalize() or "Settings", f"filter: {grid.filter_text}" if grid.filter_text else "")
        panel.footnote(
            f"{changed} of {len(self.board.settings)} changed", "flag > environment > project > user > default"
        )
        self.query_one(_Meaning).redraw()

    @on(Grid.Moved)
    def _moved(self, message: Grid.Moved) -> None:
        if message.grid.id == "section-list":
            self._fill()
        else:
            self.query_one(_Meaning).redraw()

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        message.stop()
        if message.grid.id == "section-list":
            self.set_focus(self.home())
        else:
            self.action_edit()

    def _keys(self) -> Iterable[Row]:
        seen: set[str] = set()
        for kind in (type(self.app), *(place.kind() for place in PLACES), PlaceScreen):
            for binding in flat(kind.BINDINGS if kind is type(self.app) else kind.__dict__.get("BINDINGS", ())):
                if binding.id is None or binding.id in seen:
                    continue
                seen.add(binding.id)
                keys = [key.strip() for key in binding.key.split(",")]
                works = "may not arrive" if any(FORBIDDEN.fullmatch(key) for key in keys) else ""
                shown = " ".join(display(key) for key in keys)
                yield Row(
                    binding.id,
                    (binding.id, (shown, "key"), "", (works or binding.tooltip or binding.description, "dim")),
                )

    def _about(self) -> list[tuple[str, str]]:
        snapshot = self.board.snapshot
        engine = snapshot.engine if snapshot else None
        return [
            ("Lathe", engine.version if engine else ""),
            ("licence", "Apache-2.0"),
            ("telemetry", "none: there is no such code"),
            ("workspace", engine.home if engine else ""),
            ("engine", f"pid {engine.pid}, {engine.carrier}, {engine.fronts} fronts attached" if engine else ""),
        ]

    @property
    def setting(self) -> SettingValue | None:
        """The setting under the cursor."""
        return self.board.setting(self.home().cursor or "")

    def _meaning(self, width: int, height: int) -> list[Line]:
        setting = self.setting
        if setting is None:
            return [[("Bindings can be remapped by their id.", "dim")]] if self.section == KEYS else []
        lines = wrap(setting.doc, width, "text", 3)
        lines.append(
            [
                ("kind ", "dim"),
                (setting.kind.replace("|", ", "), "text"),
                ("   default ", "dim"),
                (_text(setting.default), "text"),
            ]
        )
        if setting.locked:
            lines += wrap(f"{self.lathe.glyphs.warn} locked: {setting.source} outranks your file", width, "warn", 2)
        return lines[:height]

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("edit", "unset")

    def action_edit(self) -> None:
        """Ask for a value, or offer the choices."""
        setting = self.setting
        if setting is None:
            return
        if setting.locked:
            self.lathe.notify(
                f"{setting.key} is set by {setting.source}, which outranks your file: change it there.",
                severity="warning",
            )
            return
        choices = (
            ["true", "false"] if setting.kind == "bool" else setting.kind.split("|") if "|" in setting.kind else []
        )
        if setting.key == "appearance.theme":
            choices = sorted(self.app.available_themes, key=lambda name: (not name.startswith("lathe"), name))
        current = _text(setting.value)
        if choices:
            listed = [
                Choice(c, c, "current" if c == current else "default" if c == _text(setting.default) else "")
                for c in choices
            ]
            self.app.push_screen(Choose(setting.key, listed, current=current), lambda value: self._set(setting, value))
        else:
            dialog = Ask(
                setting.key,
                setting.doc,
                "" if setting.value is None else current,
                check=_check(setting.kind),
                hint=f"{setting.kind}, default {_text(setting.default)}",
            )
            self.app.push_screen(dialog, lambda value: self._set(setting, value))

    def _set(self, setting: SettingValue, value: str | None) -> None:
        if value is None or value == _text(setting.value):
            return
        if setting.key == "appearance.theme":
            self.lathe.set_theme(value)
        self.lathe.do(
            lambda bench: bench.set_setting(setting.key, value),
            self._written,
            command=shlex.join(["lathe", "config", "set", setting.key, value]),
            what=setting.key,
        )

    def _written(self, setting: SettingValue) -> None:
        self.lathe.tell(f"{setting.key} = {_text(setting.value)}  ({setting.source})")
        self.run_worker(self._reread(), exit_on_error=False)

    async def _reread(self) -> None:
        await self.lathe.link.refresh_settings()
        self.redraw()

    def action_unset(self) -> None:
        """Back to the default."""
        setting = self.setting
        if setting is None or setting.source == "default":
            return
        if setting.locked:
            self.lathe.notify(f"{setting.key} is set by {setting.source}: remove it there.", severity="warning")
            return
        self.lathe.do(
            lambda bench: bench.set_setting(setting.key, None),
            self._written,
            command=f"lathe config unset {setting.key}",
            what=setting.key,
        )

    def action_explain(self) -> None:
        """Everything about the setting."""
        s = self.setting
        if s is not None:
            name = "LATHE_" + s.key.replace(".", "_").upper()
            self.app.push_screen(
                Facts(
                    s.key,
                    [
                        ("meaning", s.doc),
                        ("kind", s.kind.replace("|", ", ")),
                        ("value", _text(s.value)),
                        ("default", _text(s.default)),
                        ("source", s.source),
                        ("locked", "yes" if s.locked else "no"),
                        ("variable", name),
                    ],
                )
            )

    async def action_doctor(self) -> None:
        """To the doctor."""
        await self.lathe.action_go("doctor")

    def action_test_keys(self) -> None:
        """See what arrives."""
        from lathe.tui.screens.keytest import KeyTest

        self.app.push_screen(KeyTest())

    def copy_text(self) -> tuple[str, str]:
        setting = self.setting
        return (_text(setting.value), setting.key) if setting else ("", "")

    def command(self) -> str:
        setting = self.setting
        return f"lathe config get {setting.key}" if setting else "lathe config show --origin"


class _Meaning(Canvas):
    """What the setting under the cursor means."""

    DEFAULT_CSS = "_Meaning { height: 1fr; }"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else str(value)


def _row(setting: SettingValue) -> Row:
    changed = setting.source != "default"
    name = setting.key.partition(".")[2].replace("_", " ")
    source = setting.source + (" (locked)" if setting.locked else "")
    cells = (
        (name, "text"),
        (_text(setting.value), "value" if changed else "text"),
        (_text(setting.default), "dim"),
        (source, "warn" if setting.locked else "accent" if changed else "dim"),
    )
    return Row(
        setting.key, cells, {"key": setting.key, "value": _text(setting.value), "source": source, "doc": setting.doc}
    )


def _check(kind: str) -> Check | None:
    return number(-1e15, 1e15, whole=kind == "int") if kind in ("int", "float") else None
