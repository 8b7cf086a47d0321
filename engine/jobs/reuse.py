"""When is a finished job's result still the result: the key of a step over the contents of its inputs.

Invariant: equal keys mean equal release, step parameters and input bytes: by sha256, and, as a model may not be hashed
yet, also by identity (path, size, time of change).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from lathe.engine.jobs.kinds import references
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import Step
from lathe.quantize.artefact import file_sha256
from lathe.store.models import ModelEntry

FILE_FIELDS = ("text", "imatrix", "file", "base_file", "merge", "matrices")
"""Fields of steps that name input files other than models, one or several."""


async def step_keys(step: Step, release: str, resolve: Callable[[str], Awaitable[ModelEntry]]) -> tuple[str, ...]:
    """Hash everything the step's result depends on: with models by sha256 if all are hashed, then by identity."""
    models = {reference: await resolve(reference) for reference in references(step)}
    files: dict[str, str] = {}
    for field in FILE_FIELDS:
        named = getattr(step, field, None)
        for name in named if isinstance(named, tuple) else (named,):
            if isinstance(name, str) and name:
                files[name] = await asyncio.to_thread(file_sha256, Path(name))
    by_identity = {reference: entry.id for reference, entry in models.items()}
    by_content = {reference: entry.sha256 for reference, entry in models.items()}
    ways = (by_content, by_identity) if all(by_content.values()) else (by_identity,)
    return tuple(_digest([release, step, files, way]) for way in ways)


def _digest(document: object) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()


_LATE_S = 2.0
"""A file that changed so long after its job had ended was changed by somebody else."""


def intact(outcome: Outcome, ended_at: float) -> bool:
    """Whether every artefact is still there as it was made: of its size and, where it changed since, of its content.

    Blocks: a large file that changed is read whole.
    """
    for artefact in outcome.artefacts:
        path = Path(artefact.path)
        try:
            facts = path.stat()
            if not path.is_file():
                continue
            if facts.st_size != artefact.bytes:
                return False
            if facts.st_mtime > ended_at + _LATE_S and artefact.sha256 and file_sha256(path) != artefact.sha256:
                return False
        except OSError:
            return False
    return True
