"""What jobs that make files share: where they go, what they are called, what is noted about them.

Invariant: an output's name comes from a model's name, which may be foreign text, and is always one plain file name.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec
from lathe.engine.catalogue.naming import clean
from lathe.engine.errors import CannotCreate, DataError, MissingError, UsageError
from lathe.engine.jobs.values import Figure, Job, JobContext
from lathe.engine.paths import Home
from lathe.engine.release import RELEASE
from lathe.quantize.progress import Report, silent
from lathe.quantize.types import FILE_TYPES, TENSOR_TYPES
from lathe.store.models import ModelEntry

MAX_DOCUMENT = 32 << 20
"""Bytes of an artefact that fronts may read."""
_NOT_IN_FILES = re.compile(r"[^A-Za-z0-9._-]+")
_TYPE_TAIL = re.compile(
    rf"[-._]({'|'.join(sorted({*FILE_TYPES, *TENSOR_TYPES}, key=len, reverse=True))})$", re.IGNORECASE
)


def output_path(
    context: JobContext, given: str | None, name: str, suffix: str = ".gguf", *, any_suffix: bool = False
) -> Path:
    """The path asked for, else `<home>/models/<name><suffix>`; a folder gets the file put into it.

    Without a suffix the output is a folder itself, and stands at the path asked for.
    """
    path = planned_path(Path(context.spec.home), given, name, suffix, any_suffix=any_suffix)
    if given is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def planned_path(home: Path, given: str | None, name: str, suffix: str = ".gguf", *, any_suffix: bool = False) -> Path:
    """The same, without making the folder.

    Args:
        any_suffix: what reads the file does not go by its name.

    Raises:
        CannotCreate: what should be its folder is a file.
        UsageError: by such a name nobody would know the file for what it is.
    """
    file = f"{_NOT_IN_FILES.sub('-', name).strip('-.') or 'model'}{suffix}"
    if given is None:
        return Home(home).models / file
    path = Path(given).expanduser()
    inside = next((folder for folder in path.parents if folder.exists()), None)
    if inside is not None and not inside.is_dir():
        raise CannotCreate(f"the output {path} cannot be made: {inside} is a file", hint="choose another output")
    if not suffix:
        return path
    if path.is_dir():
        return path / file
    if path.suffix.lower() != suffix and not any_suffix:
        raise UsageError(f"the output {path} needs the suffix {suffix}", hint=f"write to {path.name}{suffix}")
    return path


def variant_name(entry: ModelEntry, kind: str) -> str:
    """A model's name with another type: `tiny-F16` as Q4_K_M is `tiny-Q4_K_M`."""
    stem = clean(entry.name).removesuffix(".gguf")
    return f"{_TYPE_TAIL.sub('', stem)}-{kind.upper()}"


def artefact_text(job: Job, name: str) -> str:
    """A document that a job made, to be shown."""
    made = job.outcome.artefacts if job.outcome else ()
    artefact = next((one for one in made if one.name == name and one.format in ("json", "text")), None)
    if artefact is None:
        raise MissingError(f"{job.id} made no document {name!r}")
    try:
        with Path(artefact.path).open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise MissingError(f"{artefact.path} is gone: {error.strerror}", hint="run the job again") from error
    if len(data) > MAX_DOCUMENT:
        raise DataError(f"{artefact.path} is larger than the {MAX_DOCUMENT >> 20} MiB that are shown")
    return data.decode("utf-8", "replace")


def gguf_path(entry: ModelEntry) -> Path:
    """The file of a GGUF model."""
    if entry.format != "gguf":
        raise UsageError(
            f"{entry.name} is {entry.format}, and this needs GGUF", hint="convert it first: `lathe convert`"
        )
    return Path(entry.path)


def reporter(context: JobContext, stage: int, stages: int) -> Report:
    """A progress callback of the floors below that reports one stage of a job."""

    def report(label: str, done: float, total: float | None, unit: str) -> None:
        context.progress(label, done, total, unit, stage=stage, stages=stages)

    return report


def model_sha256(entry: ModelEntry, report: Report = silent) -> str:
    """Hash a model's bytes as the catalogue does."""
    from lathe.engine.catalogue.hashing import hash_files
    from lathe.engine.catalogue.scan import files_of

    return hash_files(files_of(entry), report)


def recipe_key(recipe: dict[str, Figure]) -> str:
    """A hash that tells whether two artefacts were made the same way from the same bytes."""
    return hashlib.sha256(msgspec.json.encode(recipe, order="deterministic")).hexdigest()


def tools() -> dict[str, Figure]:
    """The versions that stand in every recipe of native work."""
    from lathe.quantize.libllama import version

    return {"lathe": RELEASE, "llama.cpp": version()}
