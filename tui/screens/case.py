"""One case of an eval run, whole: question, answers side by side, likelihoods, history; left and right go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lathe.tui.screens.dialogs import Dialog
from lathe.tui.views.case import CaseSeen, full
from lathe.tui.widgets.base import Panel, Words
from lathe.tui.widgets.sheet import Sheet
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp


class CaseView(Dialog[int]):
    """Everything about a case; its result is the step to a neighbour, or 0."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,n", "step(1)", "next case", show=False, id="case.next", tooltip="The next case of the list"),
        Binding("left,p", "step(-1)", "last case", show=False, id="case.last", tooltip="The case before"),
        Binding("y", "copy", "copy", show=False, id="case.copy", tooltip="Copy the answer"),
    ]

    def __init__(self, seen: CaseSeen) -> None:
        super().__init__(f"Case {seen.after.label}")
        self._seen = seen

    def body(self) -> ComposeResult:
        """The case, to scroll through."""
        yield Sheet(lambda width: full(self._seen, width))
        yield Words("esc close   left right other cases   j k scroll   y copy the answer", classes="quiet")

    def on_mount(self) -> None:
        """Scroll at once."""
        self.query_one(Panel).add_class("-whole")
        self.query_one(Sheet).focus()

    def action_step(self, step: int) -> None:
        """Close, and open the neighbour."""
        self.dismiss(step)

    def action_copy(self) -> None:
        """Copy what the model said."""
        cast("LatheApp", self.app).copy(self._seen.after.answer(), "Answer")
