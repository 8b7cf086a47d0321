"""The keyword index: FTS5 over headings and text, scored with BM25 (k1 1.2, b 0.75, as FTS5 fixes them).

The index keeps no text of its own; it follows `passages` row by row and can be rebuilt from it. Invariant: a query is
words, never FTS5 syntax: whatever a user or a model writes, no operator, column name or quote of it is obeyed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby

from sqlite_utils import Database as Connection

MAX_TERMS = 64
"""More words than this say nothing more about what is wanted, and each costs a walk through its passages."""


def add(db: Connection, rows: Iterable[Sequence[object]]) -> None:
    """Index passages, given as (id, heading, text)."""
    db.conn.executemany("INSERT INTO words (rowid, heading, text) VALUES (?, ?, ?)", rows)


def remove(db: Connection, rows: Iterable[Sequence[object]]) -> None:
    """Take passages out, given exactly as they were put in."""
    db.conn.executemany("INSERT INTO words (words, rowid, heading, text) VALUES ('delete', ?, ?, ?)", rows)


def rebuild(db: Connection) -> None:
    """Make the index again from the passages."""
    db.execute("INSERT INTO words (words) VALUES ('rebuild')")


def sound(db: Connection) -> bool:
    """Tell whether the index agrees with the passages; needs a connection that may write."""
    try:
        db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
    except Exception as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
            return False
        raise
    return True


def search(db: Connection, query: str, limit: int, allowed: str = "", values: Sequence[object] = ()) -> list[
    tuple[int, float]
]:  # fmt: skip
    """The passages that hold words of the query, best first, with their BM25 score (larger is better).

    `allowed` is a subquery of passage ids with its `values`.
    """
    match = expression(query)
    if not match:
        return []
    condition = f"AND rowid IN ({allowed})" if allowed else ""
    rows = db.execute(
        f"SELECT rowid, -rank FROM words WHERE words MATCH ? {condition} ORDER BY rank LIMIT ?",  # noqa: S608
        [match, *values, limit],
    )
    return [(row[0], row[1]) for row in rows.fetchall()]


def expression(query: str) -> str:
    """The FTS5 expression that finds any of a query's words; empty when it has none."""
    return " OR ".join(f'"{term}"' for term in terms(query))


def terms(query: str) -> list[str]:
    """A query's words, each once, without anything that FTS5 could take for syntax.

    They keep their case: FTS5 folds them as it folded the passages, and not as Python does (`ß`, `ŉ`, Cherokee).
    """
    found: dict[str, str] = {}
    for is_word, run in groupby(unicodedata.normalize("NFC", query), _is_word):
        if is_word:
            word = "".join(run)
            found.setdefault(word.lower(), word)
    return list(found.values())[:MAX_TERMS]


def _is_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LNM" or category == "Co"


def frequency(db: Connection, term: str, passage: int) -> tuple[int, bool]:
    """In how many passages a word stands, and whether in this one."""
    rows = db.execute("SELECT count(*), coalesce(sum(rowid = ?), 0) FROM words WHERE words MATCH ?",
                      [passage, f'"{term}"'])  # fmt: skip
    count, here = rows.fetchone()
    return count, bool(here)
