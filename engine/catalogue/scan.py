"""A scan: folders in, entries and problems out.

    walk -> recognise -> one candidate per model (links to the same bytes counted once) -> card -> ModelEntry
Runs in a job child and reads headers only; hashing is the engine's background work. Invariant: whatever lies in the
folders, a scan ends with a result: what cannot be used is a row among the problems.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from lathe.engine.catalogue import huggingface, ollama
from lathe.engine.catalogue.naming import name_of
from lathe.engine.catalogue.recognise import Candidate, recognise
from lathe.engine.catalogue.walk import Folder, Place, Problem, list_folder, look_at, printable, walk
from lathe.engine.errors import DataError, MissingError, describe
from lathe.quantize.card import ModelCard
from lathe.quantize.cards import read_card
from lathe.quantize.progress import Report, silent
from lathe.store.models import ModelEntry


class ScanResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a scan found."""

    entries: tuple[ModelEntry, ...] = ()
    """Names are wishes until the registry has made them unique."""
    problems: tuple[Problem, ...] = ()
    missing: tuple[str, ...] = ()
    """Ids of known models whose files are not there."""
    found_again: tuple[str, ...] = ()
    """Ids of known models that were missing and are there, below the scanned places or not."""
    folders: int = 0


def scan(places: Sequence[Place], known: Sequence[ModelEntry] = (), report: Report = silent) -> ScanResult:
    """Look for models in some places, and whether the known ones are still there.

    Headers of untouched known files are not read again (a large vocabulary takes 0.4 s); a release whose cards say
    more empties the recorded ones in a migration. `report` counts folders, then models while headers are read.
    """
    candidates: list[Candidate] = []
    problems: list[Problem] = []
    folders = 0
    for seen in walk(places, ollama.is_store):
        if isinstance(seen, Folder):
            folders += 1
            report("looking into folders", folders, None, "folder")
        for found in _found_in(seen):
            (candidates if isinstance(found, Candidate) else problems).append(found)  # type: ignore[arg-type]
    candidates = _distinct(candidates, {entry.path for entry in known})
    untouched = {entry.id: entry for entry in known if entry.card}
    entries: list[ModelEntry] = []
    for number, candidate in enumerate(candidates):
        report("reading headers", number, len(candidates), "model")
        entry = _describe(candidate, untouched)
        (entries if isinstance(entry, ModelEntry) else problems).append(entry)  # type: ignore[arg-type]
    report("reading headers", len(candidates), len(candidates), "model")
    local = [(entry, _exists(entry)) for entry in known if entry.format != "remote"]
    return ScanResult(
        entries=tuple(entries),
        problems=tuple(problems),
        missing=tuple(entry.id for entry, exists in local if not exists),
        found_again=tuple(entry.id for entry, exists in local if exists and entry.missing),
        folders=folders,
    )


def identify(path: Path) -> ModelEntry:
    """The model at one path: a file, any shard of one, or a folder.

    Raises MissingError, DataError (it is no model, or more than one), and the errors of its format.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay: HF's cache names models by them
    candidate = _candidate_at(path)
    return _entry(candidate, read_card(candidate.path))


def model_id(path: str, size: int, mtime_ns: int) -> str:
    """The id of an untouched file or folder."""
    return hashlib.sha256(f"{path}\0{size}\0{mtime_ns}".encode()).hexdigest()[:12]


def files_of(entry: ModelEntry) -> tuple[Path, ...]:
    """Every file of a model as it lies there now; raises MissingError where it does not."""
    return tuple(file.path for file in _candidate_at(Path(entry.path)).files)


def current_id(entry: ModelEntry) -> str:
    """The id that a model's files would get now: another one than recorded means that they were changed."""
    candidate = _candidate_at(Path(entry.path))
    return model_id(entry.path, candidate.size, candidate.mtime_ns)


def _found_in(seen: Folder | Problem) -> Iterator[Candidate | Problem]:
    if isinstance(seen, Problem):
        yield seen
    elif ollama.is_store(seen):
        yield from ollama.read_store(seen.path)
    else:
        yield from recognise(seen)


def _distinct(candidates: Iterable[Candidate], known: set[str]) -> list[Candidate]:
    """One candidate for the same bytes: the path that is known already, else a current one, else the first."""

    def rank(candidate: Candidate) -> tuple[bool, bool]:
        return str(candidate.path) in known, huggingface.is_current(candidate.path)

    chosen: dict[tuple[int, int], Candidate] = {}
    for candidate in candidates:
        other = chosen.get(candidate.inode)
        if other is None or rank(candidate) > rank(other):
            chosen[candidate.inode] = candidate
    return list(chosen.values())


def _describe(candidate: Candidate, untouched: Mapping[str, ModelEntry]) -> ModelEntry | Problem:
    where = printable(candidate.path)
    try:
        known = untouched.get(model_id(str(candidate.path), candidate.size, candidate.mtime_ns))
        card = msgspec.convert(known.card, ModelCard) if known else read_card(candidate.path)
    except UnicodeEncodeError:
        return Problem(where, "E_NAME", "the name is not UTF-8: rename it")
    except Exception as error:  # noqa: BLE001 - one file's trouble becomes a row, it does not end the scan
        failure = describe(error)
        return Problem(where, failure.code, failure.message)
    if card.architecture is None:
        return Problem(where, "E_NO_MODEL", "the header names no architecture: not a model")
    return _entry(candidate, card)


def _entry(candidate: Candidate, card: ModelCard) -> ModelEntry:
    path = str(candidate.path)
    origin = "hf-cache" if candidate.origin == "linked" and huggingface.is_cached(candidate.path) else candidate.origin
    return ModelEntry(
        id=model_id(path, candidate.size, candidate.mtime_ns),
        name=name_of(candidate, card.name),
        path=path,
        format=candidate.format,
        bytes=candidate.size,
        origin=origin,
        card=msgspec.json.decode(msgspec.json.encode(card)),
    )


def _candidate_at(path: Path) -> Candidate:
    try:
        is_folder = path.is_dir()
        if not is_folder:
            file = look_at(path)
            if ollama.is_blob(path):
                return Candidate(path, "gguf", (file,), "ollama")
        folder = list_folder(path if is_folder else path.parent)
    except FileNotFoundError:
        raise MissingError(f"there is no file {printable(path)}", hint="check the path") from None
    found = list(recognise(folder))
    candidates = [candidate for candidate in found if isinstance(candidate, Candidate)]
    if not is_folder:
        candidates = [each for each in candidates if any(file.path == path for file in each.files)]
    elif any(each.path == path for each in candidates):
        candidates = [each for each in candidates if each.path == path]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(sorted(each.path.name for each in candidates)[:5])
        raise DataError(f"{printable(path)} holds {len(candidates)} models", hint=f"name one of them: {names}")
    reasons = [each.message for each in found if isinstance(each, Problem)]
    raise DataError(f"{printable(path)} is no model" + (f": {reasons[0]}" if reasons else ""))


def _exists(entry: ModelEntry) -> bool:
    try:
        return Path(entry.path).exists()
    except (OSError, ValueError):
        return False
