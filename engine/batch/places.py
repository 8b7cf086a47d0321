"""Paths of a step as seen from where the plan was started: the engine that runs it has another working directory.

Pure but for looking whether something is there. Invariant: what leaves here names the same file in any process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from lathe.engine.jobs.kinds import MODEL_FIELDS
from lathe.engine.jobs.reuse import FILE_FIELDS
from lathe.engine.steps import Step

READ = (*FILE_FIELDS, "waivers")
"""Fields that name files which must be there."""
MADE = ("output", "save_base")
"""Fields that name files which a step makes."""
PATHS = (*READ, *MADE, "roots", "source", "sources", "beir", "include", "reports")
"""Fields that hold a path, or several."""


def located(step: Step, folder: Path) -> Step:
    """The step with paths relative to `folder`, and those in the user's home, made absolute.

    A model or a suite is a path where one is there, else a registered name.
    """
    changes: dict[str, Any] = {}
    for field in step.__struct_fields__:
        value = getattr(step, field)
        if field in PATHS:
            changes[field] = _each(value, folder, must_exist=False)
        elif field in MODEL_FIELDS or (field == "suite" and Path(str(value)).suffix):
            changes[field] = _each(value, folder, must_exist=True)
    return msgspec.structs.replace(step, **changes)


def _each(value: Any, folder: Path, *, must_exist: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_each(one, folder, must_exist=must_exist) for one in value)
    if not isinstance(value, str) or not value:
        return value
    path = path_of(value, folder)
    return value if path is None or (must_exist and not there(path)) else str(path)


def path_of(text: str, folder: Path) -> Path | None:
    """A path as seen from `folder`; None where the home that it begins with is nobody's: the step will say so."""
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:
        return None


def there(path: Path) -> bool:
    """Whether something is there; nothing is at what can be no path."""
    return os.path.exists(path)  # noqa: PTH110 - which would raise for names that are too long
