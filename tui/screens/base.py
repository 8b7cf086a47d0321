"""`PlaceScreen`: what every place of the workbench has in common.

The frame (status, navigation, banner, hints), the text summary of very small terminals, the filter row, copying,
exporting, zooming. A place adds `content`, `show` and its bindings.
Invariant: `show` runs only while the place is visible, at most once per tick, from the app's board.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from lathe.tui.board import Board
from lathe.tui.keys import Hint, flat, hint
from lathe.tui.places import BY_MODE, Place, parts_of
from lathe.tui.views.summary import summary
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.chrome import Banner, HintsRow, NavRow, StatusRow
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.logview import LogView
from lathe.tui.widgets.paint import Line
from textual import on
from textual.actions import parse
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, TextArea

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

HELP_HINT = Hint("?", "help", "app.help", "app.help")
COMMANDS_HINT = Hint(":", "commands", "app.commands", "app.commands")
TYPING_HINTS = (
    Hint("esc", "leave", "screen.back", "place.back"),
    Hint("^o", "jump", "app.jump", "app.jump"),
    Hint("^p", "commands", "app.commands", "app.commands"),
    Hint("f1", "help", "app.help", "app.help"),
)
"""In a text box `?` and `:` are letters."""


class FilterRow(TextBox):
    """The filter's text box; enter keeps the filter, esc clears it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "clear", "clear", id="filter.clear", tooltip="Clear the filter and go back"),
        Binding("enter", "keep", "keep", id="filter.keep", tooltip="Keep the filter and go back"),
    ]

    def __init__(self) -> None:
        super().__init__(placeholder="words  !not  state=running  size>4  /re/", id="filter", classes="")

    def action_clear(self) -> None:
        """Show everything again."""
        self.value = ""
        self._leave()

    def action_keep(self) -> None:
        """Go back to the list."""
        self._leave()

    def _leave(self) -> None:
        screen = cast(PlaceScreen, self.screen)
        screen.leave_filter()


class PlaceScreen(Screen[None]):
    """One place."""

    MODE: ClassVar[str] = ""
    SHOWS_LOG: ClassVar[bool] = False
    """Whether a new line of the engine's log is to be seen at once."""
    ALLOW_IN_MAXIMIZED_VIEW = "#top, #bottom"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", show=False, id="list.filter", tooltip="Show only the rows that match"),
        Binding("s", "sort", "sort", show=False, id="list.sort", tooltip="Sort by the next column"),
        Binding("S", "sort_reverse", "reverse", show=False, id="list.reverse", tooltip="Reverse the order"),
        Binding("y", "copy", "copy", show=False, id="place.copy", tooltip="Copy the value under the cursor"),
        Binding("E", "export", "export", show=False, id="place.export", tooltip="Write what is shown to a file"),
        Binding("z", "zoom", "zoom", show=False, id="place.zoom", tooltip="Show the focused panel alone"),
        Binding("escape", "back", "back", show=False, id="place.back", tooltip="Close, clear or leave; never quits"),
        Binding(
            "right_square_bracket",
            "part(1)",
            "next part",
            show=False,
            id="place.next_part",
            tooltip="The next part of a place that has several",
        ),
        Binding(
            "left_square_bracket",
            "part(-1)",
            "previous part",
            show=False,
            id="place.previous_part",
            tooltip="The part before",
        ),
    ]

    _last: Widget | None = None
    """Had the focus last."""

    # -- for subclasses ---------------------------------------------------------------------------------------------
    def content(self) -> ComposeResult:
        """The widgets between the frame's rows."""
        yield from ()

    def show(self, board: Board) -> None:
        """Draw the board's newest values."""

    def home(self) -> Widget | None:
        """The widget that has the focus when the place opens."""
        return next(iter(self.query(Grid)), None)

    def copy_text(self) -> tuple[str, str]:
        """(value, what it is) for `y`."""
        return "", ""

    def open_key(self, key: str) -> None:
        """Put the cursor on a row of the place."""
        target = self.target_list()
        if isinstance(target, Grid):
            target.select(key)

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        """Widgets of this place that have keys of their own, for help and palette."""
        return (Grid,)

    def command(self) -> str:
        """The command line equal to what the place shows, for `Y`."""
        return self.place.command

    # -- the frame --------------------------------------------------------------------------------------------------
    @property
    def lathe(self) -> LatheApp:
        """The app, with its type."""
        return cast("LatheApp", self.app)

    @property
    def board(self) -> Board:
        """What is known of the engine."""
        return self.lathe.board

    @property
    def place(self) -> Place:
        """This place's line in the navigation."""
        return BY_MODE[self.MODE]

    def compose(self) -> ComposeResult:
        """Frame and content."""
        with Vertical(id="top"):
            yield StatusRow(classes="chrome")
            yield NavRow(classes="chrome")
            yield Banner(id="banner", classes="chrome")
        with Container(id="place"):
            yield from self.content()
        yield Canvas(self._summary, id="tiny")
        with Vertical(id="bottom"):
            yield FilterRow()
            yield HintsRow()

    def on_mount(self) -> None:
        """Put the focus where the work is."""
        self.query_one(FilterRow).display = False
        home = self.home()
        if home is not None:
            self.set_focus(home)

    def on_screen_resume(self) -> None:
        """Catch up with what happened while hidden."""
        self.redraw()

    def redraw(self) -> None:
        """Draw everything once, if this place is to be seen."""
        if not self.is_mounted or not self.query("#top"):
            return
        self.set_class(self.lathe.glyphs.name == "ascii", "-ascii")
        self.set_class(self.lathe.glyphs.name == "blocks", "-blocks")
        for row in self.query(".chrome").results(Canvas):
            row.redraw()
        self.query_one("#banner").display = self.board.lost is not None
        if self.summarized:
            self.query_one("#tiny", Canvas).redraw()
        else:
            self.show(self.board)
        self.show_hints()

    @property
    def summarized(self) -> bool:
        """Whether the terminal is so small that the place is hidden behind a few figures."""
        return self.has_class("-tiny") or self.has_class("-flat")

    def _summary(self, width: int, height: int) -> list[Line]:
        return summary(self.board, width, height, self.lathe.glyphs)

    # -- hints ------------------------------------------------------------------------------------------------------
    @property
    def typing(self) -> bool:
        """Whether letters go into a text box now."""
        return isinstance(self.focused, Input | TextArea)

    def hints(self) -> list[Hint]:
        """What the keys do here: the focused widget's first, then the place's."""
        chosen: list[Hint] = []
        if self.focused is not None and not isinstance(self.focused, Grid | LogView):
            chosen += [hint(b) for b in _shown(type(self.focused)) if b.show and b.description]
        for binding in _shown(type(self)):
            first = binding.key.split(",")[0]
            letter = (
                "+" not in first and first not in ("escape", "tab") and not (first[0] == "f" and first[1:].isdigit())
            )
            if not binding.show or (self.typing and letter):
                continue
            _, name, parameters = parse(binding.action)
            if self.check_action(name, parameters):
                chosen.append(hint(binding))
        return chosen

    def show_hints(self) -> None:
        """Bring the last row up to date."""
        tail = TYPING_HINTS if self.typing else (HELP_HINT, COMMANDS_HINT)
        rows = self.query(HintsRow)
        if rows:
            rows.first().show(self.hints(), tail)

    @on(HintsRow.Picked)
    async def _hint_picked(self, message: HintsRow.Picked) -> None:
        node = self.focused or self
        action = message.hint.action
        target: Widget = self
        for candidate in node.ancestors_with_self:
            if isinstance(candidate, Widget) and hasattr(candidate, f"action_{action.partition('(')[0]}"):
                target = candidate
                break
        await self.app.run_action(action, target)

    def on_descendant_focus(self) -> None:
        """Another widget, other keys."""
        self._last = self.focused or self._last
        self.call_after_refresh(self.show_hints)

    def on_descendant_blur(self) -> None:
        """Another widget, other keys."""
        self.call_after_refresh(self._regain)
        self.call_after_refresh(self.show_hints)

    def on_resize(self) -> None:
        """What was hidden lost the focus; once it is seen again, letters go there and are no commands."""
        self.call_after_refresh(self._regain)

    def _regain(self) -> None:
        """Give the focus back where nothing has it."""
        if self.focused is None and self.app.app_focus and not self.summarized:
            target = self._last if self._last is not None and self._last.focusable else self.home()
            if target is not None:
                self.set_focus(target)

    # -- lists ------------------------------------------------------------------------------------------------------
    def target_list(self) -> Grid | LogView | None:
        """The list that filter and sort mean: the focused one, else the first."""
        if isinstance(self.focused, Grid | LogView):
            return self.focused
        lists = [*self.query(Grid), *self.query(LogView)]
        return lists[0] if lists else None

    def action_filter(self) -> None:
        """Open the filter row."""
        target = self.target_list()
        if target is None:
            return
        row = self.query_one(FilterRow)
        self._filtered = target
        row.value = target.filter_text
        row.display = True
        row.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        event.stop()
        target = getattr(self, "_filtered", None)
        if target is not None and event.input.display:
            target.filter(event.value)
            self.after_filter()

    def after_filter(self) -> None:
        """Called when a filter changed, for titles that count rows."""

    def leave_filter(self) -> None:
        """Close the filter row; the filter stays."""
        row = self.query_one(FilterRow)
        row.display = False
        target = getattr(self, "_filtered", None)
        if target is not None:
            target.focus()

    def action_sort(self) -> None:
        """Sort by the next column."""
        target = self.target_list()
        if isinstance(target, Grid):
            target.next_sort()
            target.refresh()
            self.after_filter()

    def action_sort_reverse(self) -> None:
        """Turn the order round."""
        target = self.target_list()
        if isinstance(target, Grid) and target.sort_by:
            target.sort(target.sort_by, not target.sort_down)
            target.refresh()

    def action_back(self) -> None:
        """Leave the text box, clear the filter, or end the zoom."""
        if self.maximized is not None:
            self.minimize()
            return
        if self.typing:
            self.set_focus(self.away_from_text())
            return
        target = self.target_list()
        if target is not None and target.filter_text:
            target.filter("")
            self.after_filter()

    def away_from_text(self) -> Widget | None:
        """Where the focus goes when a text box is left."""
        return self.home()

    def action_zoom(self) -> None:
        """Show the panel with the focus alone, or all again."""
        if self.maximized is not None:
            self.minimize()
            return
        node = self.focused
        panel = next((a for a in node.ancestors_with_self if isinstance(a, Panel)), None) if node else None
        if panel is not None:
            self.maximize(panel, container=False)

    async def action_part(self, step: int) -> None:
        """Go to another part of the place."""
        parts = parts_of(self.MODE)
        await self.lathe.action_go(parts[(parts.index(self.place) + step) % len(parts)].mode)

    def parts_line(self) -> str:
        """The parts of the place for a panel's lower border, this one in brackets."""
        parts = parts_of(self.MODE)
        return "  ".join(f"[{p.short}]" if p is self.place else p.short for p in parts) if len(parts) > 1 else ""

    # -- taking things along ----------------------------------------------------------------------------------------
    def action_copy(self) -> None:
        """Copy the value under the cursor."""
        text, what = self.copy_text()
        if text:
            self.lathe.copy(text, what)

    def action_export(self) -> None:
        """Write what is shown to a file."""
        target = self.target_list()
        if isinstance(target, Grid):
            self.lathe.export(target.export(), self.MODE)
        elif isinstance(target, LogView):
            self.lathe.export([{"line": text} for text in target.export()], self.MODE)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Refuse what would change something in a read-only session, or on a row that nobody sees."""
        return not ((self.lathe.read_only or self.summarized) and action in self.changing())

    def changing(self) -> Iterable[str]:
        """Names of the actions that change the engine's state."""
        return ()


def _shown(kind: type) -> list[Binding]:
    return flat(kind.__dict__.get("BINDINGS", ()))
