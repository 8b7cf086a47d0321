"""Telemetry at rest: means and peaks in ever coarser buckets, so that a month fits into a few thousand rows.

Invariant: each width keeps its newest `kept` buckets by order of writing (clocks jump), whatever is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from lathe.store.rows import from_row, to_json

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection


class Tier(NamedTuple):
    """One resolution."""

    width_s: int
    kept: int


TIERS = (Tier(10, 720), Tier(60, 2880), Tier(900, 2976))
"""Two hours by ten seconds, two days by minutes, a month by quarter hours."""


class Figure(msgspec.Struct, frozen=True, array_like=True):
    """One quantity over one bucket."""

    count: int
    mean: float
    peak: float

    def add(self, value: float) -> Figure:
        """The figure with one more value in it."""
        return Figure(self.count + 1, self.mean + (value - self.mean) / (self.count + 1), max(self.peak, value))


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen from `bucket` (Unix seconds) on, for `width_s` seconds."""

    bucket: int
    width_s: int
    figures: dict[str, Figure]


class Samples:
    """The telemetry history of a workspace, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, at: float, values: Mapping[str, float | None]) -> None:
        """Add one sample of named quantities to every width; unknown (None) ones are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for tier in TIERS:
            start = int(at // tier.width_s) * tier.width_s
            bucket = self._get(tier.width_s, start)
            figures = dict(bucket.figures) if bucket else {}
            for name, value in known.items():
                before = figures.get(name)
                figures[name] = before.add(value) if before else Figure(1, value, value)
            self._put(tier, start, figures, new=bucket is None)

    def history(self, since: float, until: float) -> list[Bucket]:
        """Buckets of a span, oldest first, in the finest width whose reach covers the span's length."""
        span = until - since
        tier = next((tier for tier in TIERS if tier.width_s * tier.kept >= span), TIERS[-1])
        rows = self._db.query(
            "SELECT bucket, width_s, figures FROM samples WHERE width_s = ? AND bucket > ? AND bucket <= ? "
            "ORDER BY bucket",
            [tier.width_s, since - tier.width_s, until],
        )
        return [from_row(Bucket, row, "samples", ("figures",)) for row in rows]

    def _get(self, width_s: int, start: int) -> Bucket | None:
        rows = self._db.query(
            "SELECT bucket, width_s, figures FROM samples WHERE width_s = ? AND bucket = ?", [width_s, start]
        )
        return next((from_row(Bucket, row, "samples", ("figures",)) for row in rows), None)

    def _put(self, tier: Tier, start: int, figures: dict[str, Figure], new: bool) -> None:
        values = [to_json(figures), tier.width_s, start]
        if not new:
            self._db.execute("UPDATE samples SET figures = ? WHERE width_s = ? AND bucket = ?", values)
            return
        self._db.execute("INSERT INTO samples (figures, width_s, bucket) VALUES (?, ?, ?)", values)
        self._db.execute(
            "DELETE FROM samples WHERE width_s = ?1 AND number <= (SELECT number FROM samples WHERE width_s = ?1 "
            "ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            [tier.width_s, tier.kept],
        )
