"""The scan job: look for models, leave the result in the work folder, say in a table what was found.

Invariant: it writes nothing but its own result file; the engine enters it into the registry.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from lathe.engine.catalogue.places import standard_places
from lathe.engine.catalogue.register import SCAN_RESULT
from lathe.engine.catalogue.scan import ScanResult, scan
from lathe.engine.catalogue.walk import Place
from lathe.engine.errors import MissingError
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.paths import Home
from lathe.engine.steps import ScanStep
from lathe.quantize.artefact import new_artefact
from lathe.store.database import Database
from lathe.store.errors import StoreError
from lathe.store.models import ModelEntry, Models


def run(step: ScanStep, context: JobContext) -> Outcome:
    """Scan the step's roots or the standard places."""
    home = Home(Path(context.spec.home))
    known = known_models(home)
    stages = {"looking into folders": 1, "reading headers": 2}

    def report(label: str, done: float, total: float | None, unit: str) -> None:
        context.progress(label, done, total, unit, stage=stages[label], stages=2)

    result = scan(chosen_places(step, home), known, report)
    for problem in result.problems:
        context.log(f"{problem.path}: {problem.message} ({problem.code})", "warn")
    path = Path(context.spec.work_dir) / SCAN_RESULT
    with new_artefact(path, force=True) as part:
        part.write_bytes(msgspec.json.encode(result))
    artefact = Artefact(name=SCAN_RESULT, path=str(path), format="json", bytes=path.stat().st_size)
    return Outcome(artefacts=(artefact,), figures=_figures(result, known), rows=tuple(_rows(result)))


def chosen_places(step: ScanStep, home: Home) -> list[Place]:
    """Where to look; raises MissingError for a root that is no folder."""
    if not step.roots:
        return standard_places(home.models)
    places = []
    for root in step.roots:
        path = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100 - links stay
        if not path.is_dir():
            raise MissingError(f"there is no folder {root}", hint="check the path")
        places.append(Place(path))
    return places


def known_models(home: Home) -> list[ModelEntry]:
    """The registry as it is; empty where there is none yet."""
    if not home.database.exists():
        return []
    try:
        with Database.open(home.database, read_only=True) as database:
            return database.read(lambda db: Models(db).all())
    except StoreError:
        return []  # the engine holds the same file and has said what is wrong with it


def _figures(result: ScanResult, known: list[ModelEntry]) -> dict[str, Figure]:
    before = {entry.id for entry in known}
    return {
        "models": len(result.entries),
        "new": sum(entry.id not in before for entry in result.entries),
        "missing": len(result.missing),
        "problems": len(result.problems),
        "folders": result.folders,
        "bytes": sum(entry.bytes for entry in result.entries),
    }


def _rows(result: ScanResult) -> list[dict[str, Figure]]:
    found: list[dict[str, Figure]] = [
        {"name": entry.name, "format": entry.format, "bytes": entry.bytes, "origin": entry.origin, "path": entry.path}
        for entry in result.entries
    ]
    return found + [
        {"path": problem.path, "code": problem.code, "problem": problem.message} for problem in result.problems
    ]
