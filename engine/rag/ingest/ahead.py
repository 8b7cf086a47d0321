"""A queue between reading and embedding that is bounded by what it holds, not by how many.

Invariant: the producer waits as soon as the items that nobody took yet weigh more than the limit; one item may be
heavier than the limit alone, else a long document could never pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class AheadQueue(Generic[Thing]):
    """One producer, one consumer, on one loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Thing, int]] = deque()
        self._weight = 0
        self._changed = asyncio.Condition()
        self._ended = False

    async def put(self, item: Thing, weight: int) -> None:
        """Add an item as soon as there is room for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._items or self._weight + weight <= self._limit)
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()

    async def end(self) -> None:
        """Nothing more comes."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def get(self) -> Thing | None:
        """Take the oldest item; None after the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._items) or self._ended)
            if not self._items:
                return None
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item
