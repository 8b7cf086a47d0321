"""When is a finished job's result still the result: the key of a step over the contents of its inputs.

Invariant: equal keys mean equal release, step parameters and input bytes (by sha256 where known, else by identity of
path, size and time of change).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from lathe.engine.jobs.kinds import references
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import Step
from lathe.quantize.artefact import file_sha256
from lathe.store.models import ModelEntry

FILE_FIELDS = ("text", "imatrix", "file", "base_file")
"""Fields of steps that name input files other than models."""


async def step_key(step: Step, release: str, resolve: Callable[[str], Awaitable[ModelEntry]]) -> str:
    """Hash everything the step's result depends on."""
    inputs: dict[str, str] = {}
    for reference in references(step):
        entry = await resolve(reference)
        inputs[reference] = entry.sha256 or entry.id
    for field in FILE_FIELDS:
        name = getattr(step, field, None)
        if isinstance(name, str) and name:
            inputs[name] = file_sha256(Path(name))
    document = msgspec.json.encode([release, step, inputs], order="deterministic")
    return hashlib.sha256(document).hexdigest()


def intact(outcome: Outcome) -> bool:
    """Whether every artefact is still there in its recorded size."""
    for artefact in outcome.artefacts:
        try:
            size = Path(artefact.path).stat().st_size
        except OSError:
            return False
        if size != artefact.bytes and Path(artefact.path).is_file():
            return False
    return True
