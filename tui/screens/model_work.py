"""What can be done with a model: queueing work on it, loading and removing it.

Each function calls the engine through the app, which reports what goes wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.engine.jobs.values import Job
from lathe.engine.steps import Step, ToolchainStep
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui.views.rows import kind_of

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

MAX_NAME = 120


def submit(app: LatheApp, step: Step, command: str, then: Callable[[Job], None] | None = None) -> None:
    """Queue a job and say where to watch it."""

    def queued(job: Job) -> None:
        app.tell(f"{job.id} queued: {kind_of(job)} {job.title} (7 shows it)")
        if then is not None:
            then(job)

    app.do(lambda bench: bench.submit(step), queued, command=command)


def install_toolchain(app: LatheApp, source: str | None) -> None:
    """Install llama.cpp's own converter from a file, or through pip."""
    path = str(Path(source).expanduser().absolute()) if source else None
    words = ["lathe", "toolchain", "install", *(["--from", path] if path else [])]
    submit(app, ToolchainStep(source=path), shlex.join(words))


def load(app: LatheApp, entry: ModelEntry, options: LoadOptions, force: bool) -> None:
    """Load a model and say how it went."""
    app.tell(f"Loading {entry.name}...")
    app.do(
        lambda bench: bench.load(entry.id, options, force),
        lambda worker: app.tell(f"{worker.name} is ready{f' after {worker.info.load_s:.1f} s' if worker.info else ''}"),
        what=entry.name,
    )


def unload(app: LatheApp, entries: Sequence[ModelEntry]) -> None:
    """Let models leave memory."""

    def one(name: str) -> None:
        app.do(
            lambda bench: bench.unload(name),
            lambda _: app.tell(f"{name} left memory; l loads it again"),
            what=name,
        )

    for entry in entries:
        if app.board.worker(entry.id) is not None:
            one(entry.name)


def remove(app: LatheApp, entries: Sequence[ModelEntry], files: bool) -> None:
    """Unload where needed, then forget or delete each model."""

    def one(entry: ModelEntry) -> None:
        foreign = files and entry.origin != "made"

        async def work() -> list[str]:
            bench = app.link.bench
            if app.board.worker(entry.id) is not None:
                await bench.unload(entry.id)
            return await bench.remove(entry.id, delete_files=files, force=foreign)

        words = ["lathe", "models", "rm", entry.name, *["--files"] * files, *["--foreign"] * foreign, "--yes"]
        app.do(
            lambda _bench: work(),
            lambda paths: app.tell(f"{entry.name}: {'deleted' if paths else 'forgotten, its file stays'}"),
            command=shlex.join(words),
            what=entry.name,
        )

    for entry in entries:
        one(entry)


def name_check(taken: set[str]) -> Callable[[str], str]:
    """A check for a model's new name."""

    def check(name: str) -> str:
        if not name.strip():
            return "type a name"
        if name in taken:
            return f"{name} is taken"
        if len(name) > MAX_NAME or any(not c.isprintable() or c in "/\\" for c in name):
            return f"no slash, and at most {MAX_NAME} characters"
        return ""

    return check
