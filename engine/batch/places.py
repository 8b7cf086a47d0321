"""Paths of a step as seen from where the plan was started: the engine that runs it has another working directory.

Pure but for looking whether something is there. Invariant: what leaves here names the same file in any process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from lathe.engine.jobs.kinds import MODEL_FIELDS
from lathe.engine.steps import Step

PATHS = (
    "text", "imatrix", "base_file", "save_base", "merge", "matrices", "output", "file", "roots", "source", "sources",
    "beir", "include", "waivers", "reports",
)  # fmt: skip
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
    try:
        path = folder / Path(value).expanduser()
        return value if must_exist and not path.exists() else str(path)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # too long; nobody's home: the step will say so
        return value
