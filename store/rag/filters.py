"""Metadata filters as one subquery of passage ids, every value bound and none interpolated."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.store.rag.values import Filter


def allowed(condition: Filter) -> tuple[str, list[object]]:
    """The subquery that a filter allows, with its values; empty where everything passes."""
    if condition.empty:
        return "", []
    clauses: list[str] = []
    values: list[object] = []

    def either(clause: str, options: Sequence[object]) -> None:
        if options:
            clauses.append("(" + " OR ".join([clause] * len(options)) + ")")
            values.extend(options)

    either("d.path GLOB ?", condition.paths)
    either("d.media_type = ?", condition.media_types)
    either("d.language = ?", condition.languages)
    either("d.partition = ?", condition.partitions)
    for key, value in sorted(condition.metadata.items()):
        clauses.append("EXISTS (SELECT 1 FROM json_each(d.metadata) j WHERE j.key = ? AND j.value = ?)")
        values += [key, value]
    for flag in condition.without_flags:
        clauses.append("NOT EXISTS (SELECT 1 FROM json_each(p.flags) j WHERE j.key = ?)")
        values.append(flag)
    where = " AND ".join(clauses)
    return f"SELECT p.id FROM passages p JOIN documents d ON d.id = p.document WHERE {where}", values  # noqa: S608
