"""`LatheApp`: the Textual app. Places are modes, the engine is behind a `Workbench`, facts are on the board.

    engine --snapshot, events--> Link --> Board --> the visible place draws, once per tick
    keys, mouse, palette --> actions --> Workbench calls (`do`), whose errors end in `report`

Invariant: this process never loads a model; losing the engine changes a banner, not the app.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lathe.engine.errors import Failure, UnavailableError, describe
from lathe.engine.events import Event, JobChanged, LogLine, ModelsChanged, SettingsChanged, WorkerChanged
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.workbench import Workbench
from lathe.tui import formats
from lathe.tui import glyphs as glyph_sets
from lathe.tui.board import WINDOWS, Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.link import Connect, Link
from lathe.tui.places import BY_MODE, PLACES
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.signals import end_on_signals
from lathe.tui.text import advice, clean
from lathe.tui.text import line as one_line
from lathe.tui.themes import COLOURLESS, DARK, THEMES, Inks, inks
from lathe.tui.views.rows import kind_of
from lathe.tui.widgets.base import use_glyphs
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen, Screen
from textual.worker import Worker

Result = TypeVar("Result")
TICK_S = 1.0
SOON_S = 0.1
"""Events are shown together after this long, so that bursts cost one repaint."""
BEHIND_TICKS = 5
"""Between two drawings of a place behind a dialog: each of them draws the whole terminal anew."""


class LatheApp(App[None]):
    """The terminal workbench."""

    TITLE = "lathe"
    CSS_PATH = "lathe.tcss"
    ENABLE_COMMAND_PALETTE = False
    DEFAULT_MODE = PLACES[0].mode
    MODES: ClassVar[dict[str, Callable[[], Screen[Any]]]] = {  # type: ignore[assignment]
        place.mode: place.open for place in PLACES
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (100, "-normal"), (140, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (16, "-short"), (30, "-middle"), (40, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+p,colon", "commands", "commands", show=False, id="app.commands", tooltip="Find and run any action"
        ),
        Binding(
            "f1,question_mark", "help", "help", show=False, id="app.help", tooltip="Keys of this place; again: all"
        ),
        Binding(
            "ctrl+o",
            "jump",
            "jump",
            show=False,
            id="app.jump",
            tooltip="Go to any place or panel, also from text boxes",
        ),
        Binding(
            "ctrl+q",
            "quit",
            "quit",
            show=False,
            priority=True,
            id="app.quit",
            tooltip="Leave; jobs and servers continue",
        ),
        Binding(
            "ctrl+c", "stop", "stop", show=False, id="app.stop", tooltip="Copy the selection, else stop streaming here"
        ),
        Binding(
            "ctrl+z",
            "suspend_process",
            "suspend",
            show=False,
            id="app.suspend",
            tooltip="Back to the shell; fg returns",
        ),
        Binding(
            "q",
            "how_to_quit",
            "how to quit",
            show=False,
            id="app.how_to_quit",
            tooltip="Says how to quit; q alone never does",
        ),
        Binding(
            "minus",
            "last_place",
            "last place",
            show=False,
            id="app.last",
            tooltip="Go back to the place before this one",
        ),
        Binding(
            "Y",
            "copy_command",
            "copy command",
            show=False,
            id="app.copy_command",
            tooltip="Copy the command line equal to what was done last, or to what is shown",
        ),
        Binding(
            "ctrl+e",
            "retry_engine",
            "start engine",
            show=False,
            priority=True,
            id="app.engine",
            tooltip="Attach to the engine again now; start it where it was stopped",
        ),
        Binding("T", "next_theme", "theme", show=False, id="app.theme", tooltip="Next of Lathe's themes"),
        Binding(
            "ctrl+g",
            "next_glyphs",
            "glyphs",
            show=False,
            id="app.glyphs",
            tooltip="unicode, blocks or ascii characters",
        ),
        *(
            Binding(
                key, f"go('{place.mode}')", place.title, show=False, id=f"go.{place.mode}{suffix}", tooltip=place.about
            )
            for place in PLACES
            for key, suffix in (
                [(place.key, ""), *([(f"f{int(place.key) + 1}", ".alias")] if place.key != "0" else [])]
                if place.key
                else []
            )
        ),
    ]

    def __init__(
        self,
        workbench: Workbench | None,
        *,
        connect: Connect | None = None,
        read_only: bool = False,
        theme: str | None = None,
        glyphs: str = "auto",
        keymap: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        now: Callable[[], float] = time.time,
        mode: str = PLACES[0].mode,
    ) -> None:
        """
        Args:
            workbench: The engine; None attaches through `connect` after the first paint.
            connect: Makes a new attachment when the engine is lost.
            read_only: Refuse everything that changes the engine's state.
            theme: Name of a theme; None takes the setting.
            glyphs: `auto`, `unicode`, `blocks` or `ascii`; `auto` asks the setting, then locale and TERM.
            keymap: Binding id -> key.
            state_dir: Where the clipboard file and exports go; None: the workspace.
            now: The clock of the status row and of the log's own lines.
            mode: The place to open.
        """
        # Textual picks its NO_COLOR filter before a theme is set: grey, unless told that colours are the terminal's.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.board = Board()
        self.link = Link(self.board, self, workbench, connect)
        self.read_only = read_only
        self.paused = False
        self.use_glyphs(glyph_sets.choose(glyphs))
        self.inks: Inks = inks(DARK)
        self.now = now
        self.did = ""
        """The command line equal to the last action."""
        self._first_mode = mode
        self._theme_wanted = theme
        self._glyphs_wanted = glyphs
        self._state_dir = state_dir
        self._previous = PLACES[0].mode
        self._soon = False
        self._polling = False
        self._behind = 0
        self._welcomed = False
        self._ended: set[str] = set()
        self._phases: dict[str, str] = {}
        """Model id -> what its worker was doing last."""
        for own in THEMES:
            self.register_theme(own)
        self.theme = COLOURLESS if self.no_color else theme if theme in self.available_themes else DARK.name
        if keymap:
            self.set_keymap(dict(keymap))

    # -- life -------------------------------------------------------------------------------------------------------
    def on_mount(self) -> None:
        """Attach, and start the one ticker."""
        self._ink()
        self.theme_changed_signal.subscribe(self, lambda _theme: self._ink())
        if os.environ.get("SSH_TTY"):
            self.animation_level = "none"
        if not self.is_headless:
            end_on_signals(lambda code: self.exit(return_code=code))
        self.run_worker(self.link.run(), name="link", exit_on_error=False)
        self.set_interval(TICK_S, self._tick)
        if self._first_mode in BY_MODE and self._first_mode != self.current_mode:
            self.switch_mode(self._first_mode)

    def _ink(self) -> None:
        self.inks = inks(self.current_theme, colour=not self.no_color)
        self.redraw()

    async def _tick(self) -> None:
        if self.paused or self._polling:
            return
        # A slow engine must not pile up requests.
        self._polling = True
        try:
            await self.link.poll()
        finally:
            self._polling = False
        stack = self._stack()
        self._behind = self._behind + 1 if stack and isinstance(stack[-1], ModalScreen) else 0
        if self._behind % BEHIND_TICKS == 0:
            self.redraw()

    def _stack(self) -> Sequence[Screen[Any]]:
        return self.screen_stack if self._running and self._screen_stacks.get(self.current_mode) else ()

    def redraw(self) -> None:
        """Draw the visible place, and only that."""
        for screen in reversed(self._stack()):
            if isinstance(screen, PlaceScreen):
                screen.redraw()
                break

    def _redraw_soon(self) -> None:
        if not self._soon and not self.paused:
            self._soon = True
            self.set_timer(SOON_S, self._redraw_now)

    def _redraw_now(self) -> None:
        self._soon = False
        self.redraw()

    # -- what the link tells ----------------------------------------------------------------------------------------
    def attached(self) -> None:
        """The engine answers."""
        self._ended = {job.id for job in self.board.jobs if job.state in FINAL}
        self._apply_settings()
        self.redraw()
        if self.board.first_run and not self._welcomed:
            self._welcomed = True
            self.action_welcome()

    def detached(self, failure: Failure) -> None:
        """The engine is gone."""
        self.board.note(LogLine(self.now(), "error", "front", f"engine lost: {failure.message}"))
        self.redraw()

    def happened(self, event: Event) -> None:
        """Something that should be seen at once."""
        match event:
            case JobChanged(job=job) if job.state in FINAL and job.id not in self._ended:
                self._ended.add(job.id)
                self._job_ended(job)
            case JobChanged(job=job):
                self._ended.discard(job.id)
            case WorkerChanged(worker=worker):
                before = self._phases.get(worker.model_id)
                self._phases[worker.model_id] = worker.phase
                if before == worker.phase != "starting":
                    return  # its counters: the next tick shows them
                if before != worker.phase:
                    self.board.fits.clear()
                if worker.phase in ("failed", "quarantined") and worker.failure is not None:
                    self.report(worker.failure, what=worker.name)
            case ModelsChanged():
                self.board.fits.clear()
            case SettingsChanged():
                self._apply_settings()
            case LogLine() if not getattr(self.current_place, "SHOWS_LOG", False):
                return  # a busy server writes dozens a second
            case _:
                pass
        self._redraw_soon()

    def _job_ended(self, job: Job) -> None:
        what = f"{job.id} {kind_of(job)} {job.title}"
        if job.state == "failed" and job.failure is not None:
            self.report(job.failure, what=what)
        elif job.state == "done":
            took = (job.finished_at or 0) - (job.started_at or job.finished_at or 0)
            self.tell(f"{what}: done in {formats.ago(took) if took < 10 else formats.duration(took)}")

    def _apply_settings(self) -> None:
        theme = self.board.setting("appearance.theme")
        if (
            theme is not None
            and self._theme_wanted is None
            and not self.no_color
            and theme.value in self.available_themes
        ):
            self.theme = str(theme.value)
        wanted = self.board.setting("appearance.glyphs")
        if wanted is not None and self._glyphs_wanted == "auto":
            self.use_glyphs(glyph_sets.choose(str(wanted.value)))

    # -- doing things -----------------------------------------------------------------------------------------------
    def do(
        self,
        call: Callable[[Workbench], Awaitable[Result]],
        then: Callable[[Result], None] | None = None,
        *,
        command: str = "",
        what: str = "",
        group: str = "do",
    ) -> Worker[None]:
        """Call the engine without blocking; errors are reported, never raised."""

        async def body() -> None:
            try:
                result = await call(self.link.bench)
            except Exception as error:  # noqa: BLE001 - a fault in one action must not close the app
                self.report(describe(error), what=what)
                if isinstance(error, UnavailableError):
                    await self.link.poll()
            else:
                if command:
                    self.did = command
                if then is not None:
                    then(result)

        return self.run_worker(body(), group=group, exit_on_error=False)

    def report(self, failure: Failure, what: str = "") -> None:
        """Show an error as a toast and keep it in the log."""
        text = f"{what}: {failure.message}" if what and what not in failure.message else failure.message
        self.board.note(LogLine(self.now(), "error", "front", advice(text, failure.hint)))
        self.notify(f"{text}\n{failure.hint}".strip(), title=failure.code, severity="error", timeout=10)
        self._redraw_soon()

    def tell(self, text: str, severity: SeverityLevel = "information") -> None:
        """Say something in passing; it stays in the log."""
        self.board.note(LogLine(self.now(), "info" if severity == "information" else "warn", "front", text))
        self.notify(text, severity=severity, timeout=5)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a toast; never as markup."""
        super().notify(clean(message, 600), title=one_line(title), severity=severity, timeout=timeout, markup=False)

    # -- going places -----------------------------------------------------------------------------------------------
    async def action_go(self, mode: str) -> None:
        """Go to a place, closing any dialog on the way."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if mode != self.current_mode:
            self._previous = self.current_mode
            await self.switch_mode(mode)

    async def action_last_place(self) -> None:
        """Go back to the place before this one."""
        await self.action_go(self._previous)

    def action_commands(self, text: str = "") -> None:
        """Open the command palette."""
        from lathe.tui.screens.palette import Palette

        self.push_screen(Palette(text))

    def action_help(self) -> None:
        """Show the keys of this place; again, all keys."""
        from lathe.tui.screens.help import Help

        if (place := self.current_place) is not None:
            self.push_screen(Help(place))

    def action_jump(self) -> None:
        """Show where one can go from here, each with its key."""
        from lathe.tui.screens.jump import Jump

        if (place := self.current_place) is not None:
            self.push_screen(Jump(place))

    def action_welcome(self) -> None:
        """Show what can be done first."""
        from lathe.tui.screens.welcome import Welcome

        self.push_screen(Welcome())

    @property
    def current_place(self) -> PlaceScreen | None:
        """The place behind whatever dialog is open."""
        return next((screen for screen in self.screen_stack if isinstance(screen, PlaceScreen)), None)

    # -- leaving ----------------------------------------------------------------------------------------------------
    def action_how_to_quit(self) -> None:
        """Say how to quit."""
        self.notify("ctrl+q quits; jobs, models and servers continue in the engine.", timeout=4)

    async def action_quit(self) -> None:
        """Leave, saying what continues; where the engine is in this process, ask first."""
        busy = self.what_continues()
        snapshot = self.board.snapshot
        if busy and snapshot is not None and snapshot.engine.carrier == "in-process":
            from lathe.tui.screens.dialogs import Confirm

            stopping = [*busy, "The engine runs inside this program, so all of this stops with it."]
            self.push_screen(Confirm("Quit and stop?", stopping, "Quit"), lambda yes: self.exit() if yes else None)
            return
        lines = (
            ["Still running in the engine:", *(f"  {text}" for text in busy), "`lathe` attaches again."] if busy else []
        )
        self.exit(message="\n".join(clean(text) for text in lines) or None)

    def what_continues(self) -> list[str]:
        """What the engine goes on with when the terminal is closed."""
        snapshot = self.board.snapshot
        if snapshot is None:
            return []
        lines = []
        for job in snapshot.jobs:
            if job.state in ("running", "queued"):
                done = job.progress.fraction
                state = f"{formats.percent(done)} done" if job.state == "running" and done is not None else job.state
                lines.append(f"{job.id}  {one_line(job.title)}  ({state})")
        if snapshot.server.running:
            lines.append(f"HTTP API at {one_line(snapshot.server.url or '')}")
        ready = [worker.name for worker in snapshot.workers if worker.phase in ("ready", "starting")]
        if ready:
            lines.append(f"{formats.many(len(ready), 'model')} in memory: {one_line(', '.join(ready))}")
        return lines

    async def action_stop(self) -> None:
        """Stop what streams on this place, else say how to quit."""
        place = self.current_place
        stop = getattr(place, "stop_streams", None)
        if stop is None or not stop():
            self.action_how_to_quit()

    def action_help_quit(self) -> None:
        """What Textual calls on ctrl+c."""
        self.run_worker(self.action_stop(), exit_on_error=False)

    def action_retry_engine(self) -> None:
        """Attach now instead of after the pause; where the engine was stopped, start it."""
        self.link.retry_now()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key of the banner belongs to text boxes while there is an engine."""
        return action != "retry_engine" or self.board.lost is not None

    # -- looks ------------------------------------------------------------------------------------------------------
    def action_next_theme(self) -> None:
        """Go round Lathe's themes."""
        names = [theme.name for theme in THEMES]
        self.set_theme(names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0])

    def set_theme(self, name: str) -> None:
        """Use a theme for this session."""
        if self.no_color:
            self.notify("NO_COLOR is set: there is nothing to choose.")
            return
        self._theme_wanted = name
        self.theme = name
        self.did = f"lathe config set appearance.theme {name}"

    def action_next_glyphs(self) -> None:
        """Go round the glyph sets."""
        names = list(glyph_sets.SETS)
        self.use_glyphs(glyph_sets.SETS[names[(names.index(self.glyphs.name) + 1) % len(names)]])
        self._glyphs_wanted = self.glyphs.name
        self.did = f"lathe config set appearance.glyphs {self.glyphs.name}"
        for screen in self.screen_stack:
            screen.refresh(layout=True)
        self.redraw()
        self.notify(f"Glyphs: {self.glyphs.name}", timeout=2)

    def use_glyphs(self, glyphs: Glyphs) -> None:
        """Draw with these characters from the next repaint on."""
        self.glyphs = glyphs
        use_glyphs(glyphs)

    def pause(self, on: bool | None = None) -> None:
        """Freeze the figures, or let them run."""
        self.paused = not self.paused if on is None else on
        self.redraw()

    def on_resize(self, event: events.Resize) -> None:
        """Ask the terminal once more: of two signals that come close, the older size may be told last."""
        if not self.is_headless:
            self.set_timer(0.3, lambda: self._take_size(event.size))

    def _take_size(self, told: Size) -> None:
        try:
            real = Size(*os.get_terminal_size(sys.__stdout__.fileno())) if sys.__stdout__ else told
        except (OSError, ValueError):
            return  # the terminal is gone, which others notice
        if real != told and self.size == told:
            self.post_message(events.Resize(real, real))

    async def step(self) -> None:
        """One refresh while paused."""
        await self.link.poll()
        self.redraw()

    def next_window(self) -> None:
        """Show the next longer window in every graph."""
        self.board.window_s = WINDOWS[(WINDOWS.index(self.board.window_s) + 1) % len(WINDOWS)]
        self.redraw()

    # -- taking things along ----------------------------------------------------------------------------------------
    def copy(self, text: str, what: str = "") -> None:
        """Copy to the terminal's clipboard (OSC 52), and to a file because nobody can know whether that worked."""
        self.copy_to_clipboard(text)
        saved = self._save("clipboard.txt", text)
        self.notify(f"{what or 'Text'} sent to the terminal's clipboard{f', also saved to {saved}' if saved else ''}")

    def action_copy_command(self) -> None:
        """Copy the command line equal to the last action, or to what is shown."""
        place = self.current_place
        command = self.did or (place.command() if place is not None else "")
        if command:
            self.copy(command, command)

    def export(self, rows: Sequence[Mapping[str, str]], name: str) -> None:
        """Ask for a file and write rows as CSV, JSON or Markdown, by its suffix."""
        from lathe.tui.screens.dialogs import Ask

        if not rows:
            self.notify("Nothing is shown, so there is nothing to export.", severity="warning")
            return
        default = str(self.state_dir / f"{name}.csv") if self.state_dir else f"{name}.csv"
        self.push_screen(
            Ask("Export what is shown", "File (.csv, .json or .md)", default),
            lambda path: self.write(path, _as_text(rows, Path(path).suffix)) if path else None,
        )

    def write(self, path: str | None, text: str) -> None:
        """Write a text the user asked for, and say where it is."""
        if not path:
            return
        target = Path(path).expanduser()
        try:
            target.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            self.report(describe(error))
        else:
            self.tell(f"Written to {target}")

    @property
    def state_dir(self) -> Path | None:
        """Where this front may write."""
        if self._state_dir is not None:
            return self._state_dir
        return Path(self.board.snapshot.engine.home) if self.board.snapshot else None

    def _save(self, name: str, text: str) -> Path | None:
        folder = self.state_dir
        if folder is None:
            return None
        path = folder / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            return None
        return path


def _as_text(rows: Sequence[Mapping[str, str]], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps([dict(row) for row in rows], ensure_ascii=False, indent=2) + "\n"
    names = list(rows[0])
    if suffix == ".md":
        lines = [names, ["---"] * len(names), *([row[name].replace("|", "\\|") for name in names] for row in rows)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
