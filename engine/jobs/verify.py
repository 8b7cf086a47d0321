"""The verify job: read every byte of a model again and compare with what was recorded or promised.

Two promises can be broken: the hash in the registry, and a file name that is itself a sha256 (Ollama's and Hugging
Face's blobs). Invariant: it succeeds only if the bytes are what they were.
"""

from __future__ import annotations

import re
from pathlib import Path

from lathe.engine.catalogue.hashing import hash_file, hash_files
from lathe.engine.catalogue.scan import files_of
from lathe.engine.catalogue.walk import look_at
from lathe.engine.errors import DataError
from lathe.engine.jobs.values import JobContext, Outcome
from lathe.engine.steps import VerifyStep
from lathe.quantize.cards import read_card

_NAMED_BY_HASH = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


def run(step: VerifyStep, context: JobContext) -> Outcome:
    """Hash the model's files and read its header strictly.

    Raises DataError (E_HASH_MISMATCH) where the bytes changed, and the errors of its format.
    """
    entry = context.model(step.model)
    files = files_of(entry)
    sha256 = hash_files(files, context.progress)
    if entry.sha256 is not None and sha256 != entry.sha256:
        raise DataError(
            f"{entry.name} is not what it was: sha256 {sha256[:12]}... instead of {entry.sha256[:12]}...",
            hint="copy or convert it again; if the change was wanted, forget the model and scan",
            code="E_HASH_MISMATCH",
        )
    for path in files:
        _check_promise(path, sha256 if len(files) == 1 else None)
    card = read_card(Path(entry.path))
    context.log(f"{entry.name}: {len(files)} files, {card.tensors} tensors, sha256 {sha256}")
    recorded = entry.sha256 is not None
    size = sum(look_at(path).size for path in files)
    return Outcome(figures={"sha256": sha256, "bytes": size, "files": len(files), "compared": recorded})


def _check_promise(path: Path, sha256: str | None) -> None:
    """Compare a file with the hash that its own name, or the name of what it links to, promises."""
    real = path.resolve()
    match = _NAMED_BY_HASH.fullmatch(real.name)
    if match is None:
        return
    actual = sha256 or hash_file(look_at(real), lambda count: None)
    if actual != match[1]:
        raise DataError(
            f"{real} does not hold what its name promises: its sha256 is {actual[:12]}...",
            hint="the download is damaged: fetch it again",
            code="E_HASH_MISMATCH",
        )
