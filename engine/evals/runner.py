"""Running a suite on a model: ask, judge, record, with bounded concurrency, and go on where a killed run stopped.

    items not recorded yet -> N askers (cache, else the model) -> judged -> one writer, batches -> store
Invariant: a case is on disk before it counts; each has exactly one record, whatever was killed in between. A model that
crashes or refuses fails the cases it was asked, and the run goes on with the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import msgspec
from lathe.engine.errors import LatheError, describe
from lathe.engine.evals import canary, templates
from lathe.engine.evals.asking import Asker
from lathe.engine.evals.book import Answer, EvalBook
from lathe.engine.evals.metrics.metric import Consultation, Finding, Found, Metric
from lathe.engine.evals.results import EvalRun, Record, RunSettings, asked
from lathe.engine.evals.suite import LoadedSuite, LoadedTask
from lathe.engine.evals.summary import summarize
from lathe.engine.evals.values import Item, Response, sha256_of
from lathe.engine.release import RELEASE
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions

Report = Callable[[str, float, float | None, str], Awaitable[None]]
Log = Callable[[str, str], None]

CONCURRENCY = 8
_BATCH = 256
"""Judged cases that may wait for the disk; one transaction takes all that wait."""
_GATHER_S = 0.05
_LOOK_AHEAD = 256
"""Cached answers fetched at once."""
_SCORED = ("choice", "perplexity")
_STORES = ("rag", "retrieval")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and how."""

    suite: LoadedSuite
    model: str
    settings: RunSettings = RunSettings()
    options: LoadOptions | None = None
    concurrency: int = CONCURRENCY
    cache: bool = True
    fresh: bool = False
    """Begin again even where an unfinished run could be gone on with."""


async def run_suite(order: Order, workbench: Workbench, book: EvalBook, report: Report, log: Log) -> EvalRun:
    """Ask every case of the suite that has no record yet; returns the finished run."""
    suite = order.suite
    await report("loading", 0, None, "")
    details = await workbench.model(order.model)
    state = await workbench.load(order.model, order.options)
    identity = details.entry.sha256 or details.entry.id
    client = f"eval {suite.suite.name}"
    asker = Asker(workbench, order.model, identity, order.options, state.info, client)
    if any(task.task.kind in _SCORED for task in suite.tasks):
        deviation = await canary.check(workbench, order.model, client, state.info)
        log(f"likelihoods agree with what the model says within {deviation:.2g} nats", "info")
    others = await _others(order, workbench)
    key = sha256_of([RELEASE, suite.sha256, identity, order.options, *others])
    run = EvalRun(
        id="", suite=suite.suite.name, suite_version=suite.suite.version, suite_sha256=suite.sha256, path=suite.path,
        model=details.entry.name, model_key=identity, settings=order.settings, created_at=time.time(),
        total=len(suite.items), skipped=tuple(map(str, suite.bad)), gates=suite.suite.gates, release=RELEASE,
        tasks=tuple(msgspec.structs.replace(task.task, cases=()) for task in suite.tasks),
    )  # fmt: skip
    run, done = await book.begin(run, key, order.fresh)
    if done:
        log(f"going on with {run.id}: {len(done)} of {run.total} answers are there", "info")
    try:
        consultation = Consultation(workbench, suite.variables)
        return await _Running(order, asker, consultation, book, run, key, done, report, log).finish()
    finally:
        book.release(run)


async def _others(order: Order, workbench: Workbench) -> list[str]:
    """What else determines the figures: the suite's judges, and its stores as they are now.

    Raises:
        MissingError: there is no such model or store, or no variable names it.
    """
    suite = order.suite
    judges = {metric.asks for task in suite.tasks for metric in task.metrics if metric.asks is not None}
    found = []
    for name in sorted(templates.substitute(judge, suite.variables) for judge in judges):
        entry = (await workbench.model(name)).entry
        found.append(f"{name} {entry.sha256 or entry.id}")
    for store in sorted({item.store for item in suite.items if item.store}):
        version = (await workbench.store(store)).stats.version
        found.append(f"{store} {version.number if version else 0}")
    return found


class _Running:
    """One run in progress."""

    def __init__(
        self, order: Order, asker: Asker, consultation: Consultation, book: EvalBook, run: EvalRun, key: str,
        done: set[tuple[str, str, str, int]], report: Report, log: Log,
    ) -> None:  # fmt: skip
        self._order = order
        self._asker = asker
        self._consultation = consultation
        self._book = book
        self._key = key
        self._run = run
        self._done = len(done)
        self._todo = [(task, item) for task in order.suite.tasks for item in task.items if item.key not in done]
        self._report = report
        self._log = log
        self._judged: asyncio.Queue[Answer | None] = asyncio.Queue(_BATCH)
        self._known: dict[str, Response] = {}
        self._began = time.monotonic()
        self._spent = run.seconds

    async def finish(self) -> EvalRun:
        """Ask what is left, then sum up."""
        await self._report("asking", self._done, self._run.total, "case")
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write())
                await self._ask_all()
                await self._judged.put(None)
                await writer
        except BaseExceptionGroup as errors:
            await self._interrupted()
            raise _cause(errors) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._interrupted())
            raise
        records = await self._book.records(self._run)
        summaries = await asyncio.to_thread(summarize, self._run.tasks, records)
        self._run = msgspec.structs.replace(
            self._run, state="done", finished_at=time.time(), seconds=self._seconds(), done=len(records),
            failed=sum(record.failure is not None for record in records),
            cached=sum(record.response.cached for record in records), summaries=summaries,
        )  # fmt: skip
        await self._book.finish(self._run, self._key)
        return self._run

    async def _interrupted(self) -> None:
        """Note that the run did not end; where even that fails, its state `running` says as much."""
        stopped = msgspec.structs.replace(self._run, state="interrupted", seconds=self._seconds())
        with suppress(Exception):
            await self._book.finish(stopped, self._key)

    async def _ask_all(self) -> None:
        for start in range(0, len(self._todo), _LOOK_AHEAD):
            part = self._todo[start : start + _LOOK_AHEAD]
            keys = [await self._cache_key(task, item) for task, item in part]
            wanted = [key for key in keys if key is not None]
            self._known = await self._book.answers(wanted) if wanted and self._order.cache else {}
            waiting = iter(zip(part, keys, strict=True))
            async with asyncio.TaskGroup() as group:
                for _ in range(max(1, self._order.concurrency)):
                    group.create_task(self._ask_each(waiting))

    async def _cache_key(self, task: LoadedTask, item: Item) -> str | None:
        """None: the answer must not come from the cache."""
        if item.kind in _STORES or any(metric.timed for metric in task.metrics):
            return None
        try:
            return await self._asker.key(item)
        except LatheError:
            return None  # no chat template: asking will say so for each case

    async def _ask_each(self, waiting: Iterable[tuple[tuple[LoadedTask, Item], str | None]]) -> None:
        for (task, item), key in waiting:
            await self._judged.put(Answer(await self._answer(task, item, key), key))

    async def _answer(self, task: LoadedTask, item: Item, key: str | None) -> Record:
        """The record of one item; whatever goes wrong with it stands in it."""
        try:
            response = self._known.get(key or "") or await self._asker.ask(item)
            record = await asyncio.to_thread(judge, task, item, response)
            return await self._consulted(task, item, record)
        except (LatheError, TimeoutError) as error:
            failure = describe(error)
            self._log(f"{item.label}: {failure.message}", "error")
            return Record(**asked(item), failure=failure)

    async def _consulted(self, task: LoadedTask, item: Item, record: Record) -> Record:
        """The record with what metrics find that have to ask a model."""
        for metric in task.metrics:
            if metric.consult is not None:
                record = _with(record, metric, await metric.consult(self._consultation, item, record.response))
        return record

    async def _write(self) -> None:
        """Collect judged cases and put them on disk together."""
        ended = False
        while not ended:
            batch = [await self._judged.get()]
            if batch[0] is not None:
                await asyncio.sleep(_GATHER_S)
            while not self._judged.empty():
                batch.append(self._judged.get_nowait())
            ended = batch[-1] is None
            answers = [answer for answer in batch if answer is not None]
            if answers:
                self._run = msgspec.structs.replace(
                    self._run, seconds=self._seconds(), done=self._done + len(answers),
                    failed=self._run.failed + sum(entry.record.failure is not None for entry in answers),
                    cached=self._run.cached + sum(entry.record.response.cached for entry in answers),
                )  # fmt: skip
                await self._book.record(self._run, self._key, answers)
                self._done += len(answers)
                await self._report("asking", self._done, self._run.total, "case")

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._began


def _cause(error: BaseException) -> BaseException:
    """The first real error of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def judge(task: LoadedTask, item: Item, response: Response) -> Record:
    """Apply every metric of the task that needs no model to one answer."""
    choice = None
    if item.kind == "choice":
        choice = max(range(len(response.scores)), key=lambda index: response.scores[index].logprob)
    record = Record(**asked(item), response=response, choice=choice)
    for metric in task.metrics:
        if metric.judge is not None:
            record = _with(record, metric, metric.judge(item, response))
    return record


def _with(record: Record, metric: Metric, found: Found) -> Record:
    notes = record.notes
    if isinstance(found, Finding):
        notes, found = notes | {metric.name: found.note}, found.statistics
    if found is None:
        return msgspec.structs.replace(record, notes=notes)
    return msgspec.structs.replace(
        record, statistics=record.statistics | {metric.name: found}, notes=notes,
        values=record.values | {metric.name: metric.of(found)},
    )  # fmt: skip
