"""The Hugging Face cache: `models--ORG--NAME/snapshots/REVISION/` holds links into `blobs/`, `refs/` name revisions.

Only names are told from it: its snapshots are ordinary folders to the walk. Invariant: what a path does not say is
read from at most one small file.
"""

from __future__ import annotations

import re
from pathlib import Path

_REPOSITORY = re.compile(r"models--(?P<organisation>.+?)--(?P<name>.+)")
_LOCAL_ONLY = re.compile(r"models--(?P<name>.+)")
_REF_LIMIT = 256


def is_cached(path: Path) -> bool:
    """Tell whether a path lies in a snapshot of such a cache."""
    return _snapshot(path) is not None


def is_current(path: Path) -> bool:
    """Tell whether a path lies in no snapshot, or in the one that `main` refers to."""
    found = _snapshot(path)
    return found is None or _main(found[0]) in (found[1], None)


def repository_name(path: Path) -> str | None:
    """The repository's name for a path in a snapshot, with `@revision` unless it is what `main` refers to."""
    found = _snapshot(path)
    if found is None:
        return None
    repository, revision = found
    match = _REPOSITORY.fullmatch(repository.name) or _LOCAL_ONLY.fullmatch(repository.name)
    assert match is not None
    name = match["name"]
    return name if is_current(path) else f"{name}@{revision[:7]}"


def _snapshot(path: Path) -> tuple[Path, str] | None:
    """The repository's folder and the revision that a path lies in."""
    parts = path.parts
    for index in range(len(parts) - 3, -1, -1):
        if parts[index].startswith("models--") and len(parts[index]) > 8 and parts[index + 1] == "snapshots":
            return Path(*parts[: index + 1]), parts[index + 2]
    return None


def _main(repository: Path) -> str | None:
    try:
        with (repository / "refs" / "main").open(encoding="ascii") as file:
            return file.read(_REF_LIMIT).strip()
    except (OSError, UnicodeError):
        return None
