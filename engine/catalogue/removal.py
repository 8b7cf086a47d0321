"""Forgetting models, and deleting files: only what Lathe made, unless told with a flag.

Invariant: nothing is deleted before every refusal had its chance; a link is deleted, never what lies behind it; a
folder goes only when it is empty.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lathe.engine.catalogue.scan import current_id, files_of
from lathe.engine.errors import DataError, MissingError, PolicyError
from lathe.store.models import ModelEntry


def deletable(entry: ModelEntry, *, force: bool = False) -> tuple[Path, ...]:
    """The files that deleting a model would delete; nothing where they are gone already.

    Raises PolicyError where Lathe did not make them (or made them, but others changed them since) and `force` is not
    given, and for the embedded model always.
    """
    if entry.origin == "embedded":
        raise PolicyError(f"{entry.name} is part of Lathe itself", hint="it can be forgotten, not deleted")
    if entry.format == "remote":
        return ()
    if entry.origin != "made" and not force:
        raise PolicyError(
            f"Lathe did not make {entry.name}; its files in {entry.path} stay",
            hint="forget it without deleting, or force the deletion of foreign files",
        )
    try:
        files = files_of(entry)
        changed = current_id(entry) != entry.id
    except MissingError:
        return ()
    except (DataError, OSError) as error:
        message = f"what lies at {entry.path} is not {entry.name} any more"
        raise PolicyError(message, hint="forget it, and delete what is there by hand") from error
    if changed and not force:
        raise PolicyError(
            f"{entry.path} was changed since Lathe made it", hint="scan again, or force the deletion of foreign files"
        )
    return files


def delete(entry: ModelEntry, files: tuple[Path, ...]) -> list[str]:
    """Delete a model's files, and its own folder if that leaves it empty; returns what is gone.

    Raises OSError at the first that cannot be deleted.
    """
    deleted = []
    for path in files:
        path.unlink(missing_ok=True)
        deleted.append(str(path))
    folder = Path(entry.path)
    if files and folder.is_dir():
        with suppress(OSError):
            folder.rmdir()
            deleted.append(str(folder))
    return deleted
