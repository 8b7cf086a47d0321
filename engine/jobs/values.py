"""What a job is, as values that travel to fronts, to the store and to job children.

queued -> running -> done
   |         |-----> failed       error says why
   |         |-----> cancelled    the user stopped it; resumable
   '---------'-----> interrupted  the engine or the machine stopped; resumable
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.steps import Step
from lathe.store.models import ModelEntry

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
FINAL: frozenset[str] = frozenset({"done", "failed", "cancelled", "interrupted"})
Lane = Literal["gpu", "cpu", "io"]
Figure = float | int | str | bool | None


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a job is; `done` never decreases within a stage."""

    stage: int = 1
    stages: int = 1
    label: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    """`B` for bytes, else a word such as `tensor`, `chunk`, `file`."""
    rate: float | None = None
    """Units per second, smoothed by the runner."""
    eta_s: float | None = None

    @property
    def fraction(self) -> float | None:
        """0..1 over all stages; None where the total is unknown."""
        if not self.total:
            return None
        return min(1.0, (self.stage - 1 + min(1.0, self.done / self.total)) / self.stages)


class Artefact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file or folder that a job made."""

    name: str
    path: str
    format: Literal["gguf", "safetensors", "onnx", "ggml", "json", "text", "imatrix", "logits"]
    bytes: int
    sha256: str | None = None
    parent: str | None = None
    """Id of the model it was made from."""
    recipe: dict[str, Figure] = {}
    """Parameters and tool versions that made it."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a finished job has to show."""

    artefacts: tuple[Artefact, ...] = ()
    figures: dict[str, Figure] = {}
    """Headline numbers, such as `perplexity`, `tokens_per_s`, `bytes`."""
    rows: tuple[dict[str, Figure], ...] = ()
    """A table, such as llama-bench's rows or generated texts."""
    exit: int = 0
    """Exit code of the step: 0, or 1 for an honest negative result."""
    summary: str = ""
    """One line for tables, where the figures are too many to list."""


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One unit of work in the queue."""

    id: str
    """`j-118`: short, increasing, unique in the workspace."""
    step: Step
    title: str
    state: JobState = "queued"
    lane: Lane = "cpu"
    progress: Progress = Progress()
    created_at: float = 0.0
    """Unix seconds."""
    started_at: float | None = None
    finished_at: float | None = None
    last_event_at: float | None = None
    """Unix seconds of the last progress; a running job silent for 30 s is shown as stalled."""
    outcome: Outcome | None = None
    failure: Failure | None = None
    attempts: int = 0
    run: str | None = None
    """Id of the batch run it belongs to."""
    key: str | None = None
    """Hash over the step, its inputs' contents and the release: equal keys mean a reusable outcome."""
    pid: int | None = None


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a job child needs to know; sent to it in one frame."""

    job: Job
    home: str
    work_dir: str
    """The job's own folder for checkpoints and logs; survives a resume."""
    models: dict[str, ModelEntry] = {}
    """Every model reference in the step -> its entry."""
    offline: bool = True


class JobContext(Protocol):
    """What a job's code may do besides computing; given to each `run(step, context)`."""

    @property
    def spec(self) -> JobSpec: ...

    def progress(
        self, label: str, done: float, total: float | None = None, unit: str = "", *, stage: int = 1, stages: int = 1
    ) -> None:
        """Report where the work is; cheap, coalesced to 10 Hz by the caller's side."""

    def log(self, text: str, level: Literal["debug", "info", "warn", "error"] = "info") -> None:
        """Write one line to the job's log."""

    def model(self, reference: str) -> ModelEntry:
        """The entry a reference in the step was resolved to."""
