"""`lathe bindings`: every key of the terminal workbench, with the id it is known by.

Found by looking through the app's own classes, so no key can be missing. Invariant: the only verb besides the TUI that
imports Textual, and it does so when it runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import click
from lathe.tui.cli.shell import put_json, put_table

if TYPE_CHECKING:
    from textual.binding import Binding

_NAMES = {"LatheApp": "everywhere", "PlaceScreen": "every place", "Grid": "lists", "LogView": "logs", "Sheet": "texts"}


@click.command()
@click.option("--json", "as_json", is_flag=True)
def bindings(as_json: bool) -> None:
    """List the keys of the terminal workbench: where they work, what they do, their ids."""
    from lathe.tui.keys import display

    rows = [
        (
            where,
            " ".join(display(key.strip()) for key in one.key.split(",")),
            one.tooltip or one.description,
            one.id or "",
        )
        for where, one in every_binding()
    ]
    if as_json:
        put_json([{"where": where, "keys": keys, "does": does, "id": id_} for where, keys, does, id_ in rows])
    else:
        put_table(("where", "keys", "does", "id"), rows)


def every_binding() -> list[tuple[str, Binding]]:
    """(place, list or dialog, binding), those of the whole app first; what any text box does has no id: left out."""
    from lathe.tui import screens, widgets
    from lathe.tui.keys import flat
    from lathe.tui.places import BY_MODE

    names = ["lathe.tui.app"]
    for package in (screens, widgets):
        names += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    found: list[tuple[str, Binding]] = []
    for name in names:
        module = importlib.import_module(name)
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == name and "BINDINGS" in kind.__dict__:
                place = BY_MODE.get(getattr(kind, "MODE", ""))
                where = _NAMES.get(kind.__name__) or (place.title if place is not None else kind.__name__)
                found += [(where, binding) for binding in flat(kind.__dict__["BINDINGS"]) if binding.id]
    return found
