"""Which passages repeat which: found by an exploration of the whole store, left out of answers by the store's policy.

Nothing is lost by it: a copy stays stored, and answers again as soon as its original is gone. Invariant: a passage is a
copy of one that came before it, so of passages that are alike the first one always answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lathe.store.rag.values import Copy, DuplicatePolicy
from sqlite_utils import Database as Connection

KINDS: dict[DuplicatePolicy, tuple[str, ...]] = {
    "keep": (), "drop-exact": ("exact",), "drop-near": ("exact", "near"), "drop-similar": ("exact", "near", "similar"),
}  # fmt: skip
"""Policy -> kinds of copies that a search leaves out."""
_MANY = 500


def replace(db: Connection, found: Iterable[Copy]) -> None:
    """Write anew what an exploration found; passages that went meanwhile are left out."""
    db.execute("DELETE FROM copies")
    db.conn.executemany(
        "INSERT INTO copies SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM passages WHERE id = ?1)"
        " AND EXISTS (SELECT 1 FROM passages WHERE id = ?2)",
        [(copy.passage, copy.of, copy.kind, copy.similarity) for copy in found],
    )


def among(db: Connection, passages: Sequence[int], policy: DuplicatePolicy) -> set[int]:
    """Those of some passages that the policy leaves out."""
    kinds = KINDS[policy]
    dropped: set[int] = set()
    if not kinds:
        return dropped
    for first in range(0, len(passages), _MANY):
        part = passages[first : first + _MANY]
        marks = ", ".join("?" * len(part))
        rows = db.execute(
            f"SELECT passage FROM copies WHERE passage IN ({marks}) AND kind IN ({', '.join('?' * len(kinds))})",  # noqa: S608
            [*part, *kinds],
        )
        dropped.update(row[0] for row in rows.fetchall())
    return dropped


def counts(db: Connection) -> dict[str, int]:
    """Kind -> copies of it."""
    return dict(db.execute("SELECT kind, count(*) FROM copies GROUP BY kind").fetchall())
