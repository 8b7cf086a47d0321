"""`EvalDesk`: what the engine offers about evals, behind the workbench.

Joins the book (store), the catalogue of suites, comparison, gates and reports; running is a job. Invariant: nothing
here asks a model anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.results import TOLERANCE, Comparison, EvalRun, Record, ReportStyle, SuiteInfo, Verdict
from lathe.engine.jobs.values import Job
from lathe.engine.paths import Home
from lathe.engine.steps import BenchServedStep, BenchStep
from lathe.store.evals import Review
from lathe.store.models import ModelEntry

MAX_PAGE = 1000
"""Records in one answer; the rest is asked for by `after`."""


class EvalDesk:
    """Suites, runs, comparisons and reports of one workspace."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.book = EvalBook(home.evals)

    @property
    def suites_folder(self) -> Path:
        """Where the workspace keeps suites of its own."""
        return self.home.suites

    def close(self) -> None:
        """Let go of the store."""
        self.book.close()

    async def suites(self) -> list[SuiteInfo]:
        """Every suite with a name."""
        from lathe.engine.evals.shipped import catalogue

        return await asyncio.to_thread(catalogue, self.home.suites)

    async def records(self, reference: str, after: int, limit: int) -> list[Record]:
        """A page of a run's cases."""
        run = await self.book.run(reference)
        return await self.book.records(run, after, min(limit, MAX_PAGE))

    async def case(self, reference: str, task: str, case: str) -> list[Record]:
        """One case of a run, with its variants and repeats."""
        return await self.book.case(await self.book.run(reference), task, case)

    async def compare(self, baseline: str, reference: str, tolerance: float = TOLERANCE) -> Comparison:
        """A run against its baseline."""
        from lathe.engine.evals.compare import compare

        base, other = await self.book.run(baseline), await self.book.run(reference)
        before, after = await self.book.records(base), await self.book.records(other)
        return await asyncio.to_thread(compare, base, before, other, after, tolerance)

    async def report(
        self, reference: str, style: ReportStyle, baseline: str | None = None, verdict: Verdict | None = None
    ) -> str:
        """A run as a document, compared where a baseline is named, with its gates."""
        from lathe.engine.evals.verdict import decide

        comparison = await self.compare(baseline, reference) if baseline else None
        run = await self.book.run(reference)
        records = await self.book.records(run)
        if verdict is None:
            verdict = await asyncio.to_thread(decide, run, comparison)
        return await asyncio.to_thread(_render, style, run, records, comparison, verdict)

    async def keep_bench(self, job: Job, resolve: Callable[[str], Awaitable[ModelEntry]]) -> None:
        """Enter a finished bench into the history; of any other job, nothing."""
        if isinstance(job.step, BenchStep | BenchServedStep) and job.outcome is not None and job.outcome.rows:
            from lathe.engine.measure.history import records_of

            entry = await resolve(job.step.model)
            await self.book.keep_bench(
                records_of(
                    job.outcome.rows, job.outcome.figures, job=job.id, at=time.time(), model=entry.name
                )
            )  # fmt: skip

    async def review(self, review: Review) -> Review:
        """Keep a judgement."""
        return await self.book.review(review)

    async def reviews(self, subject: str | None) -> list[Review]:
        """Judgements, oldest first."""
        return await self.book.reviews(subject)


def _render(
    style: ReportStyle, run: EvalRun, records: Sequence[Record], comparison: Comparison | None, verdict: Verdict
) -> str:
    from lathe.engine.evals.reports import html, text

    rows = list(records)
    if style == "markdown":
        return text.markdown(run, comparison, verdict)
    if style == "html":
        return html.page(run, rows, comparison, verdict)
    if style == "junit":
        return text.junit(run, rows, comparison, verdict)
    if style == "jsonl":
        return text.as_lines(rows)
    return text.as_json(run, rows, comparison, verdict)
