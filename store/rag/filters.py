"""Metadata filters as one subquery of passage ids, every value bound and none interpolated.

Values travel as JSON lists, so that a filter is as many expressions for a thousand values as for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from lathe.store.rag.values import Filter

_LISTED = "(SELECT value FROM json_each(?))"


def allowed(condition: Filter) -> tuple[str, list[object]]:
    """The subquery that a filter allows, with its values; empty where everything passes."""
    if condition.empty:
        return "", []
    clauses: list[str] = []
    values: list[object] = []

    def add(clause: str, options: Sequence[object]) -> None:
        if options:
            clauses.append(clause)
            values.append(msgspec.json.encode(options).decode())

    # Not correlated: each path is compared once, however many passages it has.
    add("d.id IN (SELECT o.id FROM json_each(?) w JOIN documents o ON o.path GLOB w.value)", condition.paths)
    add(f"d.media_type IN {_LISTED}", condition.media_types)
    add(f"d.language IN {_LISTED}", condition.languages)
    add(f"d.partition IN {_LISTED}", condition.partitions)
    add(
        "NOT EXISTS (SELECT 1 FROM json_each(?) w WHERE NOT EXISTS (SELECT 1 FROM json_each(d.metadata) j"
        " WHERE j.key = json_extract(w.value, '$[0]') AND j.value = json_extract(w.value, '$[1]')))",
        sorted(condition.metadata.items()),
    )
    add(
        "NOT EXISTS (SELECT 1 FROM json_each(p.flags) j JOIN json_each(?) w ON j.key = w.value)",
        condition.without_flags,
    )
    where = " AND ".join(clauses)
    return f"SELECT p.id FROM passages p JOIN documents d ON d.id = p.document WHERE {where}", values  # noqa: S608
