"""What a store went through and how good it is: versions and what they changed, golden questions, evaluations. Pure.

Questions and paths are foreign text. Invariant: a figure that was not measured is a dash, not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from lathe.engine.jobs.values import Figure, Job
from lathe.engine.steps import RagEvalStep
from lathe.store.rag.values import Change, CorpusVersion, Question
from lathe.tui import formats
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row

VERSIONS = (
    Column("version", ">", least=7, sort="number"),
    Column("finished", least=11, most=18),
    Column("added", ">", least=5),
    Column("changed", ">", least=7),
    Column("removed", ">", least=7),
    Column("failed", ">", rank=1, least=6),
    Column("docs", ">", rank=2, least=5),
    Column("passages", ">", rank=3, least=8),
    Column("took", ">", rank=4, least=5),
)
CHANGES = (
    Column("what", least=8, most=8, sort="what"),
    Column("document", least=20, most=100, flex=True, sort="path", end=True),
    Column("sha256", rank=1, least=12, most=28),
)
QUESTIONS = (
    Column("state", least=9, most=9, sort="state"),
    Column("question", least=20, most=120, flex=True, sort="text"),
    Column("document", rank=1, least=12, most=40, flex=True, end=True),
    Column("id", rank=2, least=6, most=20, sort="id"),
)
FIGURES = (
    Column("job", least=4, most=8),
    Column("mode", least=6, most=8),
    Column("embedder", rank=3, least=8, most=26),
    Column("tokens", ">", rank=5, least=5),
    Column("nDCG@10", ">", least=7),
    Column("recall@10", ">", rank=1, least=9),
    Column("recall@100", ">", rank=4, least=10),
    Column("MRR@10", ">", rank=2, least=6),
    Column("p50 ms", ">", rank=2, least=6),
    Column("p95 ms", ">", rank=4, least=6),
)
_INKS = {"added": "good", "changed": "accent", "removed": "warn", "failed": "bad"}


def version_rows(versions: Sequence[CorpusVersion]) -> list[Row]:
    """Versions of a corpus, newest first."""
    return [_version(version) for version in versions]


def _version(version: CorpusVersion) -> Row:
    def count(number: int, ink: str) -> Cell:
        return (formats.count(number), ink) if number else ("", "dim")

    finished = version.finished_at
    took = formats.duration(finished - version.started_at) if finished is not None else formats.NONE
    cells: tuple[Cell, ...] = (
        (str(version.number), "value"),
        formats.moment(finished) if finished is not None else ("unfinished", "warn"),
        count(version.added, "good"), count(version.changed, "accent"), count(version.removed, "warn"),
        count(version.failed, "bad"), formats.count(version.documents), formats.count(version.passages),
        (took, "dim"),
    )  # fmt: skip
    return Row(str(version.number), cells, {"number": version.number})


def change_rows(changes: Sequence[Change]) -> list[Row]:
    """What happened to documents."""
    return [
        Row(
            change.path,
            (
                (change.what, _INKS.get(change.what, "text")),
                change.path,
                (" -> ".join(part[:12] for part in (change.before, change.after) if part) or formats.NONE, "dim"),
            ),
            {"what": change.what, "path": change.path},
        )
        for change in changes
    ]


def question_rows(questions: Sequence[Question]) -> list[Row]:
    """Golden questions; drafts first, because somebody has to decide about them."""
    ordered = sorted(questions, key=lambda question: (question.state != "draft", question.id))
    return [
        Row(
            question.id,
            (
                (question.state, "warn" if question.state == "draft" else "good"),
                question.text,
                (question.relevant[0].path if question.relevant else formats.NONE, "dim"),
                (question.id, "dim"),
            ),
            {"state": question.state, "text": question.text, "id": question.id},
        )
        for question in ordered
    ]


def figure_rows(jobs: Sequence[Job], store: str) -> list[Row]:
    """Evaluations of a store and of test sets, newest first, a row for each way of searching."""
    return [
        _figures(job, number, row)
        for job in jobs
        if isinstance(job.step, RagEvalStep) and job.outcome is not None and job.step.store in (store, None)
        for number, row in enumerate(job.outcome.rows)
    ]


def _figures(job: Job, number: int, row: dict[str, Figure]) -> Row:
    def figure(name: str, digits: int) -> Cell:
        value = row.get(name)
        return f"{value:.{digits}f}" if isinstance(value, int | float) else formats.NONE

    cells: tuple[Cell, ...] = (
        (job.id if not number else "", "dim"),
        (str(row.get("mode") or formats.NONE), "value"),
        (str(row.get("embedder") or formats.NONE), "dim"),
        (str(row.get("tokens") or formats.NONE), "dim"),
        figure("ndcg@10", 4), figure("recall@10", 4), figure("recall@100", 4), figure("mrr@10", 4),
        figure("p50_ms", 1), figure("p95_ms", 1),
    )  # fmt: skip
    return Row(f"{job.id} {number}", cells, {"mode": str(row.get("mode") or "")})
