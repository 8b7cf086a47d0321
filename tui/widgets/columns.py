"""Columns of a table, and which of them fit into a width. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.cells import cell_len

LEAST_FLEX = 8
"""Cells below which a flexible column would say nothing."""


class Column(msgspec.Struct, frozen=True):
    """One column; `rank` 0 is always shown, higher ranks go first where there is no room."""

    title: str
    align: str = "<"
    rank: int = 0
    least: int = 0
    most: int = 40
    flex: bool = False
    """Takes the room that is left, and gives way first."""
    sort: str = ""
    """Field to sort by; empty: not sortable."""
    end: bool = False
    """Where there is no room for all of a text its end is shown: what tells paths apart."""


def lay_out(
    columns: Sequence[Column], natural: Sequence[int], width: int, lead: int, gap: int
) -> list[tuple[int, int]]:
    """(index, cells) of the columns that fit, in order.

    Columns of the highest rank go first; flexible ones give way down to their least width before any goes, and take
    up to their most of what is left."""
    shown = list(range(len(columns)))

    def least(index: int) -> int:
        column = columns[index]
        if not column.flex:
            return natural[index]
        return min(natural[index], max(column.least, cell_len(column.title), LEAST_FLEX))

    def need() -> int:
        return lead + sum(least(index) for index in shown) + gap * (len(shown) - 1)

    while need() > width and any(columns[index].rank for index in shown):
        shown.remove(max(shown, key=lambda index: (columns[index].rank, index)))
    widths = {index: least(index) for index in shown}
    room = width - need()
    for wishes in (natural, [column.most for column in columns]):
        for index in shown:
            if columns[index].flex:
                share = min(room, max(0, wishes[index] - widths[index]))
                widths[index] += share
                room -= share
    return [(index, widths[index]) for index in shown]
