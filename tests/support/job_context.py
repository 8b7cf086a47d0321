"""A `JobContext` that remembers what a job's code reported, for running a job in the test's own process."""

from __future__ import annotations

from pathlib import Path

from lathe.engine.errors import MissingError
from lathe.engine.jobs.values import Job, JobSpec
from lathe.engine.steps import Step
from lathe.store.models import ModelEntry


class RecordingContext:
    """Answers model references from a list; keeps progress and log lines."""

    def __init__(self, step: Step, home: Path, *models: ModelEntry) -> None:
        work_dir = home / "jobs" / "j-1"
        work_dir.mkdir(parents=True, exist_ok=True)
        job = Job(id="j-1", step=step, title="test")
        self.spec = JobSpec(job=job, home=str(home), work_dir=str(work_dir), models={m.name: m for m in models})
        self.reports: list[tuple[str, float, float | None, str, int, int]] = []
        self.lines: list[str] = []

    def progress(
        self, label: str, done: float, total: float | None = None, unit: str = "", *, stage: int = 1, stages: int = 1
    ) -> None:
        self.reports.append((label, done, total, unit, stage, stages))

    def log(self, text: str, level: str = "info") -> None:
        self.lines.append(f"{level}: {text}")

    def model(self, reference: str) -> ModelEntry:
        try:
            return self.spec.models[reference]
        except KeyError:
            raise MissingError(reference) from None


def entry(path: Path, **fields: object) -> ModelEntry:
    """An entry for a file or folder, named after it."""
    size = path.stat().st_size if path.is_file() else 0
    values = {"id": "0123456789ab", "name": path.stem, "path": str(path), "format": "gguf", "bytes": size} | fields
    return ModelEntry(**values)  # type: ignore[arg-type]
