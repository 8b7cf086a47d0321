"""What a killed engine does to a catalogue: enter, measure, remove, or scan and enter, for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lathe.engine.catalogue.catalogue import Catalogue
from lathe.engine.jobs import scan
from lathe.engine.jobs.values import Artefact, Outcome
from lathe.engine.paths import Home
from lathe.engine.steps import BenchStep, QuantizeStep, ScanStep
from lathe.store.database import Database
from support.job_context import RecordingContext
from support.model_trees import gguf


def churn(report: Callable[[object], None], database: str, models: str) -> None:
    """Enter a model that was just made, use it, delete it again, and report each step when it is done."""
    folder = Path(models)
    with Database.open(database) as opened:
        catalogue = Catalogue(opened, time.time)
        report("open")
        number = len(list(folder.glob("*.gguf")))
        while True:
            number += 1
            path = gguf(folder / f"m{time.time_ns()}.gguf", f"name {number}")
            artefact = Artefact(name="out", path=str(path), format="gguf", bytes=path.stat().st_size)
            (entry,) = catalogue.register(QuantizeStep(model="x"), Outcome(artefacts=(artefact,)))
            report(f"entered {entry.name} {entry.path}")
            catalogue.register(BenchStep(model=entry.name), Outcome(figures={"tokens_per_s": float(number)}))
            report(f"measured {entry.name} {entry.path}")
            if number % 2:
                report(f"removed {entry.name} {catalogue.remove(entry.name, delete_files=True)[0]}")


def look(report: Callable[[object], None], home: str, models: str) -> None:
    """Scan a folder as the job does and enter what it found as the engine does."""
    step = ScanStep(roots=(models,))
    with Database.open(Home(Path(home)).database) as opened:
        catalogue = Catalogue(opened, time.time)
        while True:
            report("begin")
            outcome = scan.run(step, RecordingContext(step, Path(home)))
            report("found")
            catalogue.register(step, outcome)
            report("done")
