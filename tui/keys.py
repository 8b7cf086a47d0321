"""Keys as people read them, and the keys that no binding may use.

Which keys survive terminals, tmux and VS Code was measured (UX notes): the forbidden ones arrive as another key or
not at all. Invariant: every binding of the app has an id, so that it can be remapped, listed and tested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from textual.binding import Binding, BindingType

_NAMES = {
    "question_mark": "?", "colon": ":", "slash": "/", "escape": "esc", "full_stop": ".", "comma": ",", "minus": "-",
    "plus": "+", "space": "space", "left_square_bracket": "[", "right_square_bracket": "]", "equals_sign": "=",
    "pageup": "pgup", "pagedown": "pgdn", "delete": "del", "semicolon": ";",
}  # fmt: skip
FORBIDDEN = re.compile(
    r"ctrl\+(h|i|m|left_square_bracket|tab|enter|shift\+.*)|shift\+enter|alt\+(enter|\d)|(ctrl|shift)\+(ctrl|shift)\+.*"
)
"""Keys that terminals deliver as something else, or never."""


class Hint(msgspec.Struct, frozen=True):
    """A key and what it does, for the last row and the help."""

    key: str
    label: str
    action: str
    id: str
    help: str = ""


def display(key: str) -> str:
    """A key's name for people: `^j`, `?`, `D`."""
    *modifiers, name = key.split("+") if key != "+" else [key]
    name = _NAMES.get(name, name)
    if "ctrl" in modifiers:
        name = "^" + name
        modifiers.remove("ctrl")
    return "+".join([*modifiers, name])


def flat(bindings: Iterable[BindingType]) -> list[Binding]:
    """Declared bindings as `Binding`s, one per action; the first key is the one shown."""
    return [binding for binding in bindings if isinstance(binding, Binding)]


def hint(binding: Binding) -> Hint:
    """What to show of a binding."""
    first = binding.key.split(",")[0].strip()
    return Hint(
        binding.key_display or display(first), binding.description, binding.action, binding.id or "", binding.tooltip
    )
