"""The time of a search: how much each part may have of it, what the parts took, and what was left out for its sake.

A part gets its share of what is left when it begins, so what one did not need goes to those after it. Whether something
still fits is judged by what the last thing of its kind took. Invariant: what is left out is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SHARES = {
    "importances": 1.0, "second moments": 1.5, "original": 0.5, "sensitivity": 3.5, "errors": 1.0, "mixes": 2.0,
    "comparison": 1.5, "sizes": 1.5, "ways": 1.0, "speed": 1.0,
}  # fmt: skip
"""Parts in their order, and their weights."""


class Clock:
    """One search's time."""

    def __init__(
        self, seconds: float, parts: Mapping[str, float] = SHARES, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.asked = seconds
        self._now = now
        self._began = now()
        self._ahead = dict(parts)
        self._until = self._began + seconds
        """When the part under way should end."""
        self._costs: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        """Part -> seconds it took."""
        self.left_out: list[str] = []

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._now() - self._began

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part, and bound what is begun in it; a part that was there before gets what is left over."""
        began, left = self._now(), max(0.0, self.asked - self.seconds)
        weights = sum(self._ahead.values())
        mine = self._ahead.pop(name, 0.0)
        self._until = began + (left * mine / weights if mine else left if not self._ahead else 0.0)
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + self._now() - began
            self._until = self._began + self.asked

    def drop(self, name: str) -> None:
        """A part that will not come: its share goes to the others."""
        self._ahead.pop(name, None)

    @property
    def left(self) -> float:
        """Seconds of the part under way; never negative."""
        return max(0.0, self._until - self._now())

    def has(self, seconds: float, *, whole: bool = False) -> bool:
        """Whether the part under way has so much time left; `whole`: or the parts after it, which must do with less."""
        return self._now() + seconds < (self._began + self.asked if whole else self._until)

    def fits(self, kind: str, count: int = 1) -> bool:
        """Whether so many more of a kind fit, as the last one went; of an unknown one, whether there is any time."""
        return self.has(count * self._costs.get(kind, 0.0))

    @contextmanager
    def cost(self, kind: str) -> Iterator[None]:
        """Time one thing of a kind."""
        began = self._now()
        yield
        self._costs[kind] = self._now() - began

    def leave_out(self, what: str) -> None:
        """Note what there was no time for."""
        if what not in self.left_out:
            self.left_out.append(what)
