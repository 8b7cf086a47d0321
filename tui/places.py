"""The navigation: every place of the workbench, one line each.

A place appears in the navigation row, the palette, the jump overlay and the help by standing here. A place may have
parts: screens that share its digit, one `[` or `]` away. Invariant: only places that work are listed, and a digit
never changes its meaning (3, 5 and 6 belong to Quantize, RAG and Evals).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    from lathe.tui.screens.base import PlaceScreen


class Place(msgspec.Struct, frozen=True):
    """One area of the app."""

    mode: str
    key: str
    """Digit; empty: reached by palette and jump only."""
    title: str
    short: str
    """For 80 columns."""
    screen: str
    """`module:Class`, imported on the first visit."""
    about: str
    command: str
    """Its headless twin."""
    letter: str = ""
    """Where there is no digit: its key in the jump overlay, one that labels no panel."""
    part_of: str = ""
    """Mode of the place whose digit it shares."""

    def kind(self) -> type[PlaceScreen]:
        """The screen's class."""
        module, _, name = self.screen.partition(":")
        return cast("type[PlaceScreen]", getattr(importlib.import_module(f"lathe.tui.screens.{module}"), name))

    def open(self) -> PlaceScreen:
        """Make the screen."""
        return self.kind()()


PLACES: tuple[Place, ...] = (
    Place("dashboard", "1", "Dashboard", "Dash", "dashboard:Dashboard", "what the machine does now", "lathe status"),
    Place(
        "models", "2", "Models", "Models", "models:Models", "the catalogue; load, convert, verify", "lathe models list"
    ),
    Place(
        "quantize",
        "3",
        "Quantize",
        "Quant",
        "quantize:Quantize",
        "convert, quantize, compare variants",
        "lathe quantize",
    ),
    Place("tune", "", "Tune", "Tune", "tune:Tune", "the best mix of types for a size", "lathe tune", "v", "quantize"),
    Place("serve", "4", "Serve", "Serve", "serve:Serve", "the HTTP API, its keys and requests", "lathe serve"),
    Place("rag", "5", "RAG", "RAG", "stores:Stores", "stores of documents, built and explored", "lathe rag list"),
    Place("ask", "", "Ask", "Ask", "ask:AskStore", "cited answers from a store", "lathe rag ask", "c", "rag"),
    Place("chat", "0", "Playground", "Chat", "playground:Playground", "talk to one or two models", "lathe chat"),
    Place("evals", "6", "Evals", "Evals", "evals:Evals", "suites, runs, regressions, gates", "lathe eval list --runs"),
    Place(
        "bench", "", "Bench", "Bench", "bench:Bench", "speeds and their history", "lathe bench history", "b", "evals"
    ),
    Place(
        "review",
        "",
        "Review",
        "Review",
        "review:Review",
        "judge answers, blind pairs, examples out",
        "lathe eval reviews",
        "n",
        "evals",
    ),
    Place("jobs", "7", "Jobs", "Jobs", "jobs:Jobs", "the queue, progress and logs", "lathe jobs list"),
    Place("logs", "8", "Logs", "Logs", "logs:Logs", "what needs attention, and the log", "lathe logs"),
    Place(
        "settings",
        "9",
        "Settings",
        "Set",
        "settings:SettingsPlace",
        "values and where they come from",
        "lathe config show",
    ),
    Place("doctor", "", "Doctor", "Doctor", "doctor:Doctor", "what this machine can do", "lathe doctor", "x"),
)
BY_MODE = {place.mode: place for place in PLACES}


def parts_of(mode: str) -> list[Place]:
    """A place and its parts, in order; one alone where it has none."""
    first = BY_MODE[mode].part_of or mode
    return [place for place in PLACES if first in (place.mode, place.part_of)]
