"""Where suites are found: shipped with the package, in the workspace, or any file by its path.

Invariant: a name means one suite: the workspace's own comes before the shipped one of that name.
"""

from __future__ import annotations

from pathlib import Path

from lathe.engine.batch.document import near
from lathe.engine.errors import LatheError, MissingError
from lathe.engine.evals.results import SuiteInfo
from lathe.engine.evals.suite import declared, needs

SHIPPED = Path(__file__).parent / "suites"


def find(reference: str, workspace: Path) -> Path:
    """The file of a suite, by name or path.

    Raises:
        MissingError: with the nearest right name.
    """
    if reference.endswith((".yaml", ".yml", ".json", ".toml")) or "/" in reference:
        path = Path(reference).expanduser()
        if not path.is_file():
            raise MissingError(f"{path}: no such suite")
        return path
    places = _places(workspace)
    if reference not in places:
        raise MissingError(f"no suite {reference!r}{near(reference, places)}", hint="`lathe eval list` shows them")
    return places[reference]


def catalogue(workspace: Path) -> list[SuiteInfo]:
    """Every suite with a name, by name."""
    return [_info(name, path) for name, path in sorted(_places(workspace).items())]


def _places(workspace: Path) -> dict[str, Path]:
    folders = (SHIPPED, workspace)
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def _info(name: str, path: Path) -> SuiteInfo:
    origin = "shipped" if path.parent == SHIPPED else "workspace"
    try:
        suite, _ = declared(path)
    except LatheError as error:
        return SuiteInfo(name=name, path=str(path), origin=origin, problem=error.message)  # type: ignore[arg-type]
    return SuiteInfo(
        name=name, version=suite.version, description=suite.description, path=str(path), origin=origin,  # type: ignore[arg-type]
        tasks=tuple(f"{task.id} ({task.kind})" for task in suite.tasks), tags=suite.tags, gates=suite.gates,
        needs=needs(suite),
    )  # fmt: skip
