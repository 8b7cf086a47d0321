"""The scan and verify jobs as their children run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.catalogue.catalogue import Catalogue
from lathe.engine.catalogue.scan import ScanResult, identify
from lathe.engine.errors import DataError, MissingError
from lathe.engine.jobs import scan as scan_job
from lathe.engine.jobs import verify as verify_job
from lathe.engine.jobs.values import Job, JobSpec
from lathe.engine.paths import Home
from lathe.engine.steps import ScanStep, Step, VerifyStep
from lathe.quantize.errors import GgufError
from lathe.store.database import Database
from lathe.store.models import ModelEntry
from msgspec.structs import replace
from support.gguf_writer import tiny_model
from support.model_trees import gguf, hub_repository, ollama_model


class Context:
    """A job's context that remembers what it was told."""

    def __init__(self, step: Step, home: Path, models: dict[str, ModelEntry] | None = None) -> None:
        work_dir = home / "jobs" / "j-1"
        work_dir.mkdir(parents=True, exist_ok=True)
        job = Job(id="j-1", step=step, title="t")
        self.spec = JobSpec(job=job, home=str(home), work_dir=str(work_dir), models=models or {})
        self.reports: list[tuple[Any, ...]] = []
        self.lines: list[str] = []

    def progress(self, label, done, total=None, unit="", *, stage=1, stages=1) -> None:
        self.reports.append((label, done, total, unit, stage, stages))

    def log(self, text, level="info") -> None:
        self.lines.append(f"{level} {text}")

    def model(self, reference: str) -> ModelEntry:
        return self.spec.models[reference]


def test_a_scan_of_named_folders(home: Path, tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    step = ScanStep(roots=(str(tmp_path),))
    context = Context(step, home)
    outcome = scan_job.run(step, context)
    assert outcome.exit == 0
    figures = outcome.figures
    assert (figures["models"], figures["new"], figures["problems"], figures["missing"]) == (1, 1, 1, 0)
    assert outcome.rows[0]["name"] == "a"
    assert outcome.rows[1]["path"] == str(tmp_path / "bad.gguf")
    assert any("bad.gguf" in line and line.startswith("warn") for line in context.lines)
    assert context.reports[-1] == ("reading headers", 2, 2, "model", 2, 2)
    (artefact,) = outcome.artefacts
    result = msgspec.json.decode(Path(artefact.path).read_bytes(), type=ScanResult)
    assert [entry.name for entry in result.entries] == ["a"]
    assert artefact.bytes == Path(artefact.path).stat().st_size


def test_the_standard_places_and_what_is_known(home: Path, tmp_path: Path) -> None:
    workspace = Home(home).create()
    kept, gone = gguf(workspace.models / "mine.gguf", "mine"), gguf(tmp_path / "gone.gguf", "gone")
    hub_repository(home / ".cache" / "huggingface" / "hub", "org/Repo", {"Repo-Q8_0.gguf": tiny_model("qwen2").build()})
    ollama_model(home / ".ollama" / "models", "registry.ollama.ai/library/tiny/1m", tiny_model("gemma").build())
    with Database.open(workspace.database) as database:
        catalogue = Catalogue(database, lambda: 1.0)
        catalogue.resolve(str(kept)), catalogue.resolve(str(gone))
        gone.unlink()
        outcome = scan_job.run(ScanStep(), Context(ScanStep(), home))
        names = {row["name"] for row in outcome.rows if "name" in row}
        assert {"stdlib-4m", "mine", "Repo-Q8_0", "tiny:1m"} <= names
        assert outcome.figures["missing"] == 1
        assert outcome.figures["new"] == outcome.figures["models"] - 1
        catalogue.register(ScanStep(), outcome)
        assert {entry.name: entry.missing for entry in catalogue.all() if entry.missing} == {"gone": True}
        assert catalogue.resolve("stdlib-4m").origin == "embedded"


def test_a_root_that_is_no_folder_is_said_at_once(home: Path, tmp_path: Path) -> None:
    step = ScanStep(roots=(str(tmp_path), str(tmp_path / "none")))
    with pytest.raises(MissingError, match="there is no folder"):
        scan_job.run(step, Context(step, home))


def test_an_unreadable_registry_does_not_stop_a_scan(home: Path, tmp_path: Path) -> None:
    Home(home).database.write_bytes(b"damaged" * 1000)
    gguf(tmp_path / "a.gguf")
    step = ScanStep(roots=(str(tmp_path),))
    assert scan_job.run(step, Context(step, home)).figures["models"] == 1


def verify(home: Path, entry: ModelEntry) -> dict[str, object]:
    step = VerifyStep(model=entry.name)
    return verify_job.run(step, Context(step, home, {entry.name: entry})).figures


def test_verify_compares_with_what_was_recorded(home: Path, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    entry = identify(path)
    first = verify(home, entry)
    assert (first["compared"], first["bytes"], first["files"]) == (False, path.stat().st_size, 1)
    entry = replace(entry, sha256=str(first["sha256"]))
    assert verify(home, entry)["compared"] is True
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not what it was") as caught:
        verify(home, entry)
    assert caught.value.code == "E_HASH_MISMATCH"


@pytest.mark.parametrize("store", ["ollama", "hub"])
def test_verify_checks_what_the_name_of_the_file_promises(home: Path, tmp_path: Path, store: str) -> None:
    content = tiny_model().build()
    if store == "ollama":
        path = real = ollama_model(tmp_path, "h/n/m/t", content)
    else:
        path = hub_repository(tmp_path, "org/Repo", {"Repo.gguf": content}) / "Repo.gguf"
        real = path.resolve()
    assert verify(home, identify(path))["files"] == 1
    real.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(DataError, match="does not hold what its name promises"):
        verify(home, identify(path))


def test_verify_reads_the_header_strictly(home: Path, tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    entry = identify(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(GgufError):
        verify(home, entry)
    path.unlink()
    with pytest.raises(MissingError):
        verify(home, entry)
