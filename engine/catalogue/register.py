"""What finished jobs leave in the registry: models they made or found, figures they measured, hashes they checked.

First files are looked at, then one transaction writes everything. Invariant: an outcome is entered wholly or not at
all, and entering it twice changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.catalogue.naming import clean
from lathe.engine.catalogue.references import meant
from lathe.engine.catalogue.scan import ScanResult, identify
from lathe.engine.errors import InternalError
from lathe.engine.jobs.values import Artefact, Figure, Outcome
from lathe.engine.steps import BenchStep, KldStep, PerplexityStep, ServeStep, Step, TuneStep, VerifyStep
from lathe.store.database import Database
from lathe.store.models import ModelEntry, Models
from msgspec.structs import replace

if TYPE_CHECKING:
    from sqlite_utils import Database as Connection

SCAN_RESULT = "scan.json"
"""In a scan's work folder; too large for a row, and complete or absent."""
_MODEL_FORMATS = frozenset({"gguf", "safetensors", "onnx", "ggml"})
_MEASURING = (PerplexityStep, BenchStep, ServeStep)
_CLOSENESS = (
    "mean_kld", "mean_kld_error", "kld_99_9", "same_top_p", "tokens_per_s", "prompt_tokens_per_s",
    "mean_distance", "mean_distance_error", "same_nearest", "neighbours",
)  # fmt: skip
"""Figures of a comparison that say something about the model alone."""


def register(database: Database, step: Step, outcome: Outcome, now: float) -> list[ModelEntry]:
    """Enter what a finished step found or made; returns the entries that are new or changed."""
    made = [_made(artefact, now) for artefact in outcome.artefacts if artefact.format in _MODEL_FORMATS]
    scans = [_scanned(Path(artefact.path)) for artefact in outcome.artefacts if artefact.name == SCAN_RESULT]

    def work(db: Connection) -> list[ModelEntry]:
        models = Models(db)
        entries = [models.put(entry) for entry in made]
        for result in scans:
            entries += _enter_scan(models, result, now)
        if isinstance(step, _MEASURING) and (entry := _meant(db, step.model)):
            entries.append(models.measure(entry.id, _numbers(outcome.figures)))
        if isinstance(step, KldStep) and (entry := _meant(db, step.model)):
            entries.append(models.measure(entry.id, _closeness(outcome)))
        if isinstance(step, TuneStep) and made:
            entries[: len(made)] = [models.measure(entry.id, _closeness(outcome)) for entry in entries[: len(made)]]
        if isinstance(step, VerifyStep) and (entry := _meant(db, step.model)):
            entries.append(models.hashed(entry.id, str(outcome.figures["sha256"]), now))
        return entries

    return database.write(work).result()


def _made(artefact: Artefact, now: float) -> ModelEntry:
    entry = identify(Path(artefact.path))
    return replace(
        entry,
        name=clean(artefact.name),
        origin="made",
        sha256=artefact.sha256,
        parent=artefact.parent,
        recipe=artefact.recipe,
        added_at=now,
    )


def _scanned(path: Path) -> ScanResult:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ScanResult)
    except (OSError, msgspec.MsgspecError) as error:
        raise InternalError(f"the scan's result {path} cannot be read: {error}", hint="scan again") from error


def _enter_scan(models: Models, result: ScanResult, now: float) -> list[ModelEntry]:
    before = {entry.id: entry for entry in models.all()}
    for entry in result.entries:
        models.put(replace(entry, added_at=now))
    known = {entry.id for entry in models.all()}
    for ids, missing in ((result.missing, True), (result.found_again, False)):
        for model_id in known.intersection(ids):
            models.mark_missing(model_id, missing)
    return [entry for entry in models.all() if before.get(entry.id) != entry]


def _meant(db: Connection, reference: str) -> ModelEntry | None:
    """The model that the step was resolved to, unless it was forgotten or renamed while the step ran."""
    found = meant(db, reference) or meant(db, os.path.abspath(Path(reference).expanduser()))  # noqa: PTH100
    return found[0] if len(found) == 1 else None


def _closeness(outcome: Outcome) -> dict[str, float | int]:
    return {name: value for name, value in _numbers(outcome.figures).items() if name in _CLOSENESS}


def _numbers(figures: dict[str, Figure]) -> dict[str, float | int]:
    return {name: value for name, value in figures.items() if type(value) in (int, float)}  # type: ignore[misc]
