"""Explore a store: read every passage once, say what it is made of, and find what repeats what.

Exact and near copies are found by their words, similar ones by their vectors. Invariant: the report and the table of
copies describe one and the same version of the corpus, and are written in one transaction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.rag.ingest.quality import SAMPLE_CHARS, SAMPLES, Exploration
from lathe.engine.rag.ingest.report import DuplicateSample, QualityReport
from lathe.store.rag import columns, copies, documents, meta, versions
from lathe.store.rag.resident import Resident, is_small
from lathe.store.rag.values import Copy

if TYPE_CHECKING:
    from lathe.store.rag.store import RagStore
    from lathe.store.rag.values import Column
    from sqlite_utils import Database as Connection

REPORT = "report"
"""The name of the report among the store's small facts."""
ALWAYS = 50_000
"""A build explores stores of up to this many passages by itself: ten seconds at most; larger ones when asked to."""
SIMILAR = 0.97
"""The cosine from where two passages say the same in nearly the same words, for the usual embedders."""
_BLOCK = 1024


def explore(store: RagStore) -> QualityReport:
    """Explore a store that is open for writing, and keep the report in it."""
    began = time.monotonic()
    policy = store.settings().duplicates

    def read(db: Connection) -> tuple[QualityReport, list[Copy]]:
        exploration = Exploration()
        for document in documents.listing(db):
            exploration.document(document)
        for error in documents.failures(db):
            exploration.problem(error)
        for batch in documents.every_passage(db):
            exploration.passages(batch)
        report, found = exploration.report(), exploration.copies
        column = columns.active(db)
        if column is not None and column.vectors and is_small(column):
            similar = _similar(db, column, {copy.passage for copy in found})
            found += similar
            report = msgspec.structs.replace(
                report, similar_duplicates=len(similar),
                duplicate_samples=report.duplicate_samples + _samples(db, similar),
            )  # fmt: skip
        newest = versions.listing(db, 1)
        dropped = sum(copy.kind in copies.KINDS[policy] for copy in found)
        report = msgspec.structs.replace(
            report, version=newest[0].number if newest else 0, made_at=time.time(), dropped=dropped,
            seconds=time.monotonic() - began,
        )  # fmt: skip
        return report, found

    report, found = store.read(read)

    def write(db: Connection) -> None:
        copies.replace(db, found)
        meta.put(db, REPORT, report)

    store.write(write)
    return report


def stored_report(db: Connection) -> QualityReport | None:
    """The newest report of a store."""
    return meta.get(db, REPORT, QualityReport)


def _similar(db: Connection, column: Column, known: set[int]) -> list[Copy]:
    """Passages whose vector nearly equals that of an earlier one, besides those that are copies anyway."""
    import numpy as np

    resident = Resident.load(db, column)
    assert resident.floats is not None
    found: list[Copy] = []
    copied = np.isin(resident.ids, list(known)) if known else np.zeros(len(resident.ids), bool)
    for first in range(0, len(resident.ids), _BLOCK):
        scores = resident.floats[first : first + _BLOCK] @ resident.floats[: first + _BLOCK].T
        for row in range(len(scores)):
            place = first + row
            if copied[place] or not place:
                continue
            before = np.where(copied[:place], -1.0, scores[row, :place])
            best = int(before.argmax())
            if before[best] >= SIMILAR:
                copied[place] = True
                ids = int(resident.ids[place]), int(resident.ids[best])
                found.append(Copy(passage=ids[0], of=ids[1], kind="similar", similarity=min(1.0, float(before[best]))))
    return found


def _samples(db: Connection, found: list[Copy]) -> tuple[DuplicateSample, ...]:
    shown = found[:SAMPLES]
    rows = documents.passages(db, [passage for copy in shown for passage in (copy.passage, copy.of)])
    return tuple(
        DuplicateSample(
            rows[copy.passage].path, rows[copy.passage].ordinal, rows[copy.of].path, rows[copy.of].ordinal, copy.kind,
            round(copy.similarity, 3), rows[copy.passage].text[:SAMPLE_CHARS],
        )
        for copy in shown
    )  # fmt: skip
