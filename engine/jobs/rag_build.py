"""Build a RAG store or bring it up to date; see `lathe.engine.rag.building` for how.

Invariant: the store's lock is held for the whole build, and a build without an embedder still leaves a store that can
be searched by words.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import LatheError, UnavailableError, UsageError
from lathe.engine.jobs.rag_stores import home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.building import Builder
from lathe.engine.rag.default_embedder import default_embedder
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.ingest.reader import DocumentReader
from lathe.engine.rag.ingest.values import Cleaning
from lathe.engine.release import RELEASE
from lathe.engine.steps import RagBuildStep
from lathe.store.rag import columns, documents
from lathe.store.rag.knn import calibrate
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import SplitterSettings, StoreSettings

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

MAX_ROWS = 200
"""Failed files listed in the job's outcome; all of them stand in the store."""


async def run(step: RagBuildStep, context: ServiceContext) -> Outcome:
    """Build the store of the step."""
    home = await home_of(context)
    path = store_path(home, step.store)
    settings = StoreSettings(
        name=step.store, description=step.description, created_at=time.time(), lathe=RELEASE,
        splitter=SplitterSettings(tokens=step.tokens, overlap=step.overlap),
        sources=tuple(step.sources),
    )  # fmt: skip
    if not step.sources and not await asyncio.to_thread(path.exists):
        raise UsageError(f"store {step.store} is new and has no sources", hint="name folders or files to read")
    async with open_for_writing(path, settings) as store:
        sources = await asyncio.to_thread(_remember, store, settings.sources)
        embedder = None if step.words_only else await _embedder(step, store, context)
        cleaning = Cleaning(
            personal="mask" if step.mask_personal else "keep", injection="drop" if step.drop_injections else "keep"
        )
        async with DocumentReader(home.logs / "ingest.log", cleaning) as read:
            builder = Builder(store, embedder, read, partition=step.partition, report=context.progress, log=context.log)
            report = await builder.run(sources)
        if embedder is not None and report.embedded:
            await context.progress("calibrating", 0, None)
            prefilter = await asyncio.to_thread(calibrate, store)
            if prefilter is not None:
                await asyncio.to_thread(store.set_prefilter, prefilter)
        stats = await asyncio.to_thread(store.stats)
        failures = await asyncio.to_thread(store.read, _failures)
    figures: dict[str, Figure] = {
        "files": report.files, "unchanged": report.unchanged, "failed": report.failed, "documents": stats.documents,
        "passages": stats.passages, "embedded": report.embedded, "added": report.version.added,
        "changed": report.version.changed, "removed": report.version.removed, "seconds": report.seconds,
        "passages_per_s": report.embedded / report.embed_seconds if report.embed_seconds else None,
        "embedder": embedder.identity.name if embedder else None, "bytes": stats.bytes,
    }  # fmt: skip
    return Outcome(figures=figures, rows=tuple(failures[:MAX_ROWS]))


def _remember(store: RagStore, given: tuple[str, ...]) -> tuple[str, ...]:
    """Add sources to those of the store; returns what this build reads."""
    settings = store.settings()
    together = tuple(dict.fromkeys((*settings.sources, *given)))
    if together != settings.sources:
        store.change_settings(msgspec.structs.replace(settings, sources=together))
    return together


async def _embedder(step: RagBuildStep, store: RagStore, context: ServiceContext) -> Embedder | None:
    """The embedder named, else the store's own, else the default; none at all is said and survived."""
    column = await asyncio.to_thread(store.read, columns.active)
    if step.embedder is None and column is not None:
        embedder = await open_embedder(context.workbench, column.embedder.name)
        if embedder.identity.sha256 != column.embedder.sha256:
            raise UnavailableError(
                f"{column.embedder.name} is not the model that store {step.store} was embedded with any more",
                hint=f"`lathe rag reembed {step.store} --embedder MODEL` embeds it anew",
            )
        return embedder
    if column is not None and step.embedder is not None:
        embedder = await open_embedder(context.workbench, step.embedder)
        if embedder.identity.sha256 != column.embedder.sha256:
            raise UsageError(
                f"store {step.store} answers with {column.embedder.name}",
                hint=f"`lathe rag reembed {step.store} --embedder {step.embedder}` changes it safely",
            )
        return embedder
    try:
        reference = step.embedder or await default_embedder(context.workbench)
    except LatheError as error:
        context.log(f"{error.message}; {error.hint}", "warn")
        return None
    return await open_embedder(context.workbench, reference)


def _failures(db: Connection) -> list[dict[str, Figure]]:
    return [{"path": e.path, "code": e.code, "message": e.message} for e in documents.failures(db)]
