"""The frame of every screen: status row, navigation row, banner and key hints.

Invariant: at 80 columns the last row holds at most eight hints, and `? help` is always one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.keys import Hint
from lathe.tui.places import BY_MODE, PLACES, Place
from lathe.tui.text import line as one_line
from lathe.tui.views.rows import attention
from lathe.tui.widgets.base import Canvas
from lathe.tui.widgets.paint import Line, crop, spread, width_of
from textual import events
from textual.message import Message

MAX_HINTS = 8
NARROW = 100


def status_line(board: Board, width: int, *, paused: bool, read_only: bool, now: float) -> Line:
    """Host, badges, memory, speed, jobs, what needs attention, the time; what has no room is left out whole."""
    snapshot, clock = board.snapshot, formats.clock(now)[:5]
    left: Line = [(" lathe ", "title")]
    if snapshot is None:
        left.append(("starting the engine" if board.lost is None else "no engine", "dim"))
        return spread(left, [(clock + " ", "dim")], width)
    wide = width >= 140
    engine, sample = snapshot.engine, snapshot.sample
    parts: list[tuple[int, Line]] = []
    """With ranks: 0 is always shown, the others one after the other as far as there is room."""
    if engine.hostname:
        parts.append((4, [(one_line(engine.hostname, 24), "value")]))
    badges: Line = []
    for shown, name, ink in (
        (board.lost is not None, "NO ENGINE", "alarm"),
        (engine.offline, "OFFLINE", "badge"),
        (paused, "PAUSED", "alarm"),
        (read_only or bool(engine.read_only), "READ-ONLY", "badge"),
    ):
        if shown:
            badges += [(f" {name} ", ink), (" ", "text")]
    if badges:
        parts.append((0, badges[:-1]))
    if sample is not None:
        for index, device in enumerate(sample.devices[: 2 if wide else 1]):
            line: Line = [(f"GPU{index} ", "dim"), (formats.used_of(device.memory_used, device.memory_total), "value")]
            if wide:
                heat = "" if device.temperature_c is None else f" {device.temperature_c:.0f}C"
                line.append((f" {formats.percent(device.utilization)}{heat}", "dim"))
            parts.append((2, line))
        if wide or not sample.devices:
            parts.append((3, [("RAM ", "dim"), (formats.used_of(sample.memory_used, sample.memory_total), "value")]))
    if snapshot.server.running and wide:
        parts.append((5, [("serving ", "dim"), (one_line(snapshot.server.url or "", 32), "value")]))
    parts.append((1, [(formats.rate(snapshot.traffic.decode_tps), "value"), (" tok/s", "dim")]))
    running = sum(job.state == "running" for job in snapshot.jobs)
    queued = sum(job.state == "queued" for job in snapshot.jobs)
    if running or queued:
        words = f"{running} running {queued} queued" if wide else f"{running}r {queued}q"
        parts.append((1, [("jobs ", "dim"), (words, "value")]))
    if alerts := len(attention(snapshot, now)):
        parts.append((0, [(f" {'ATTENTION' if wide else '!'} {alerts} ", "alarm")]))
    gap, right = "   " if wide else "  ", [(" ", "text"), (clock, "dim"), (" ", "text")]
    room = width - width_of(left) - width_of(right) + len(gap)
    fitting: set[int] = set()
    for index in sorted(range(len(parts)), key=lambda index: parts[index][0]):
        rank, part = parts[index]
        if not rank or width_of(part) + len(gap) <= room:
            fitting.add(index)
            room -= width_of(part) + len(gap)
    for number, index in enumerate(sorted(fitting)):
        left += parts[index][1] if number == 0 else [(gap, "text"), *parts[index][1]]
    return spread(left, right, width)


class StatusRow(Canvas):
    """The first row."""

    def draw(self, width: int, height: int) -> list[Line]:
        app: Any = self.app
        return [status_line(app.board, width, paused=app.paused, read_only=app.read_only, now=app.now())]


class NavRow(Canvas):
    """The places, with their digits; a click goes there."""

    def draw(self, width: int, height: int) -> list[Line]:
        current = BY_MODE.get(self.app.current_mode, PLACES[0])
        ascii_ = self.glyphs.name == "ascii"
        shown: list[tuple[Place, str]] = []
        for place in PLACES:
            # A part stands in its place's stead, under the same digit.
            here = current if place.mode == current.part_of else place
            if not place.part_of and (place.key or here is current):
                shown.append((here, f"{place.key} {here.short if width < 120 else here.title}".strip()))
        pad = " "
        if sum(len(label) + 2 for _, label in shown) > width:
            pad = ""
        if sum(len(label) + 1 for _, label in shown) > width:
            shown = [(place, label if place is current else label.split()[0]) for place, label in shown]
        room = width - sum(len(label) + 1 for _, label in shown)
        line: Line = [(" ", "dim")] if not pad and room > 0 else []
        self._spots: list[tuple[int, int, Place]] = []
        for place, label in shown:
            here_ = place is current
            text = f"[{label}]" if here_ and ascii_ else f"{pad}{label} "
            start = width_of(line)
            line.append((text, "place" if here_ else "dim"))
            self._spots.append((start, start + len(text), place))
        return [line]

    def on_click(self, event: events.Click) -> None:
        """Go to the place under the mouse."""
        for start, end, place in self._spots:
            if start <= event.x < end:
                self.run_later(f"go('{place.mode}')")

    def run_later(self, action: str) -> None:
        """Run an action of the app."""
        self.app.call_later(self.app.run_action, action)


class Banner(Canvas):
    """One row that appears when the engine is gone, and says what happens next."""

    def draw(self, width: int, height: int) -> list[Line]:
        app: Any = self.app
        lost = app.board.lost
        if lost is None:
            return []
        stopped = app.link.stopped
        # The message is cut rather than the key.
        key = " ^e starts it again " if stopped else " ^e try now "
        rest = (
            ""
            if width < NARROW
            else "; figures are those of the last contact" + ("" if stopped else ". Attaching again...")
        )
        text = crop(f" {self.glyphs.warn} {one_line(lost.message)}{rest}", width - len(key) - 1, self.glyphs.ellipsis)
        return [spread([(text, "alarm")], [(key, "alarm")], width)]

    def on_click(self) -> None:
        """Try at once."""
        app: Any = self.app
        app.action_retry_engine()


class HintsRow(Canvas):
    """The last row: what the keys do here. Clickable."""

    class Picked(Message):
        """A hint was clicked."""

        def __init__(self, hint: Hint) -> None:
            super().__init__()
            self.hint = hint

    def __init__(self) -> None:
        super().__init__(classes="chrome")
        self.hints: Sequence[Hint] = ()
        self.tail: Sequence[Hint] = ()
        self._spots: list[tuple[int, int, Hint]] = []

    def show(self, hints: Sequence[Hint], tail: Sequence[Hint]) -> None:
        """Change the hints; `tail` (help, commands) is kept when there is no room for the others."""
        if (list(hints), list(tail)) != (list(self.hints), list(self.tail)):
            self.hints, self.tail = list(hints), list(tail)
            self.redraw()

    def draw(self, width: int, height: int) -> list[Line]:
        limit = MAX_HINTS if width < NARROW else 14
        tail = list(self.tail)
        body = list(self.hints)[: limit - len(tail)]
        while body and _needed([*body, *tail]) > width:
            body.pop()
        line: Line = [(" ", "text")]
        self._spots = []
        for hint in [*body, *tail]:
            start = width_of(line)
            line += [(hint.key, "key"), (f" {hint.label}", "dim")]
            self._spots.append((start, width_of(line), hint))
            line.append(("  ", "text"))
        return [line]

    def on_click(self, event: events.Click) -> None:
        """Do what the hint under the mouse says."""
        for start, end, hint in self._spots:
            if start <= event.x < end:
                self.post_message(self.Picked(hint))


def _needed(hints: Sequence[Hint]) -> int:
    return 1 + sum(len(hint.key) + 1 + len(hint.label) + 2 for hint in hints)
