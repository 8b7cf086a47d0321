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
from lathe.engine.jobs.rag_stores import embedder_of, home_of, open_for_writing, store_path
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.rag.building import Builder
from lathe.engine.rag.default_embedder import default_embedder
from lathe.engine.rag.embedding import Embedder, open_embedder
from lathe.engine.rag.exploring import ALWAYS, explore, stored_report
from lathe.engine.rag.ingest.reader import DocumentReader
from lathe.engine.rag.ingest.values import Cleaning
from lathe.engine.release import RELEASE
from lathe.engine.steps import RagBuildStep, RagReembedStep
from lathe.store.rag import columns, documents
from lathe.store.rag.knn import calibrate
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import Recipe, SplitterSettings, StoreSettings, StoreStats

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
        sources=tuple(step.sources), recipe=step.recipe or Recipe(),
        duplicates=step.duplicates or "drop-exact",
    )  # fmt: skip
    if not step.sources and not await asyncio.to_thread(path.exists):
        raise UsageError(f"store {step.store} is new and has no sources", hint="name folders or files to read")
    async with open_for_writing(path, settings) as store:
        changed, everything = await asyncio.to_thread(_settle, store, settings.sources, step)
        embedder, successor = (None, None) if step.words_only else await _embedder(step, store, context)
        cleaning = Cleaning(personal=changed.recipe.personal, injection=changed.recipe.injection)
        async with DocumentReader(home.logs / "ingest.log", cleaning) as reader:
            builder = Builder(
                store, embedder, reader, partition=step.partition, everything=everything, report=context.progress,
                log=context.log,
            )  # fmt: skip
            report = await builder.run(changed.sources)
        if embedder is not None and report.embedded:
            await context.progress("calibrating", 0, None)
            prefilter = await asyncio.to_thread(calibrate, store)
            if prefilter is not None:
                await asyncio.to_thread(store.set_prefilter, prefilter)
        stats = await asyncio.to_thread(store.stats)
        if await asyncio.to_thread(_worth_exploring, step, store, stats):
            await context.progress("exploring", 0, None)
            await asyncio.to_thread(explore, store)
        failures = await asyncio.to_thread(store.read, _failures)
    anew = None
    if successor is not None:
        # It waits for the store's lock to be let go of, which has just happened.
        anew = await context.workbench.submit(RagReembedStep(store=step.store, embedder=successor))
        context.log(f"{anew.id} embeds store {step.store} anew with {successor}; until then the former vectors answer")
    figures: dict[str, Figure] = {
        "files": report.files, "unchanged": report.unchanged, "failed": report.failed, "skipped": report.skipped,
        "documents": stats.documents, "passages": stats.passages, "embedded": report.embedded,
        "added": report.version.added, "changed": report.version.changed, "removed": report.version.removed,
        "seconds": report.seconds,
        "passages_per_s": report.embedded / report.embed_seconds if report.embed_seconds else None,
        "embedder": embedder.identity.name if embedder else None, "bytes": stats.bytes,
        "reembed_job": anew.id if anew else None,
    }  # fmt: skip
    return Outcome(figures=figures, rows=tuple(failures[:MAX_ROWS]))


def _settle(store: RagStore, given: tuple[str, ...], step: RagBuildStep) -> tuple[StoreSettings, bool]:
    """Enter what the step says about the store; also tells whether every file must be read again for it."""
    settings = store.settings()
    recipe = step.recipe or settings.recipe
    if step.mask_personal:
        recipe = msgspec.structs.replace(recipe, personal="mask")
    if step.drop_injections:
        recipe = msgspec.structs.replace(recipe, injection="drop")
    changed = msgspec.structs.replace(
        settings, sources=tuple(dict.fromkeys((*settings.sources, *given))), recipe=recipe,
        duplicates=step.duplicates or settings.duplicates, reembed=step.reembed or settings.reembed,
        description=step.description or settings.description,
    )  # fmt: skip
    if changed != settings:
        store.change_settings(changed)
    return changed, recipe != settings.recipe


def _worth_exploring(step: RagBuildStep, store: RagStore, stats: StoreStats) -> bool:
    if step.explore is not None:
        return step.explore
    if stats.passages > ALWAYS:
        return False
    report = store.read(stored_report)
    return report is None or stats.version is None or report.version != stats.version.number


async def _embedder(step: RagBuildStep, store: RagStore, context: ServiceContext) -> tuple[Embedder | None, str | None]:
    """The embedder of this build, and the one that is to take its place afterwards."""
    column = await asyncio.to_thread(store.read, columns.active)
    if column is None:
        try:
            reference = step.embedder or await default_embedder(context.workbench)
        except LatheError as error:
            context.log(f"{error.message}; {error.hint}", "warn")
            return None, None
        return await open_embedder(context.workbench, reference), None
    own = await embedder_of(column, context)
    wanted = own if step.embedder is None else await open_embedder(context.workbench, step.embedder)
    if own is not None and wanted is not None and wanted.identity.sha256 == own.identity.sha256:
        return own, None
    settings = await asyncio.to_thread(store.settings)
    if wanted is not None and settings.reembed == "auto":
        return own, step.embedder
    if step.embedder is None:
        raise UnavailableError(
            f"{column.embedder.name} is not the model that store {step.store} was embedded with any more",
            hint=f"`lathe rag reembed {step.store} --embedder MODEL` embeds it anew",
        )
    raise UsageError(
        f"store {step.store} answers with {column.embedder.name}",
        hint=f"`lathe rag reembed {step.store} --embedder {step.embedder}` changes it safely",
    )


def _failures(db: Connection) -> list[dict[str, Figure]]:
    """Files without text; those that should have some come first."""
    rows = sorted(documents.failures(db), key=lambda error: (error.skipped, error.path))
    return [
        {"path": error.path, "code": error.code, "message": error.message, "skipped": error.skipped} for error in rows
    ]
