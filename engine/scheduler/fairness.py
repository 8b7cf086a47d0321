"""Whose request is next: priorities, a fair share per principal, and nobody waits for ever.

Among waiting requests the highest priority goes first, and waiting raises it by one every `AGING_S`. Within a priority
the principal goes first that has been served least, counted in tokens (virtual token counters: Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024); within a principal the one that arrived first. Invariant: a principal
that was idle starts level with the least served active one, so that absence earns no credit.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

AGING_S = 30.0
PROMPT_COST, ANSWER_COST = 1.0, 2.0
"""Cost of a token of each kind; a generated one occupies a whole iteration of its sequence."""


class Waiting(Protocol):
    """What the queue needs to know of a request."""

    @property
    def principal(self) -> str:
        """Whose it is."""

    @property
    def priority(self) -> int:
        """Larger goes first."""

    @property
    def queued_at(self) -> float:
        """Monotonic seconds."""

    @property
    def order(self) -> int:
        """Number of arrival; unique."""


class Shares:
    """How much each principal has been served."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._active: defaultdict[str, int] = defaultdict(int)

    def arrive(self, principal: str) -> None:
        """Count a request of a principal as active until `leave`."""
        if not self._active[principal]:
            floor = min((self._served[other] for other, count in self._active.items() if count), default=0.0)
            self._served[principal] = max(self._served.get(principal, 0.0), floor)
        self._active[principal] += 1

    def leave(self, principal: str) -> None:
        """End what `arrive` began; the last one to leave takes the books along."""
        self._active[principal] -= 1
        if not self._active[principal]:
            del self._active[principal]
        if not self._active:
            self._served.clear()

    def serve(self, principal: str, prompt_tokens: int = 0, generated: int = 0) -> None:
        """Charge tokens to a principal."""
        self._served[principal] += PROMPT_COST * prompt_tokens + ANSWER_COST * generated

    def key(self, request: Waiting, now: float) -> tuple[float, float, int]:
        """Sort key of a waiting request; the smallest is next."""
        waited = max(0.0, now - request.queued_at)
        rank = request.priority + waited // AGING_S
        return -rank, self._served[request.principal], request.order
