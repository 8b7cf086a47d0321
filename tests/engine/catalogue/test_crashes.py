"""kill -9 while models come and go: the registry stays sound and forgets no file that it was told of."""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
from lathe.engine.catalogue.scan import ScanResult
from lathe.engine.paths import Home
from lathe.quantize.artefact import collect_parts
from lathe.store.database import Database
from lathe.store.models import Models
from support.model_trees import gguf
from support.nursery import Nursery

CYCLES = 40
SCANS = 70


def test_the_registry_survives_kill_9_at_any_step(tmp_path: Path) -> None:
    chance = random.Random(27)
    path, folder = tmp_path / "lathe.db", tmp_path / "models"
    folder.mkdir()
    with Nursery("support.catalogue_work:churn") as nursery:
        for _ in range(CYCLES):
            child = nursery.spawn(str(path), str(folder))
            said = [child.read() for _ in range(chance.randint(1, 8))] + child.kill()
            assert not [line for line in said if "Error" in line], said
            last = {line.split()[2]: line.split()[0] for line in said if line.count(" ") == 2}
            with Database.open(path) as database:
                assert database.check() == []
                entries = {entry.path: entry for entry in database.read(lambda db: Models(db).all())}
            for model, state in last.items():
                if state == "removed":
                    assert model not in entries
                    assert not Path(model).exists()
                elif model in entries and state == "measured":
                    assert entries[model].measured
            unfinished = [model for model in last if last[model] != "removed" and model not in entries]
            assert len(unfinished) <= 1, "only the last one can have been under removal"
            assert not any(Path(model).exists() for model in unfinished), "files go before the row does"
            assert len({entry.name for entry in entries.values()}) == len(entries)


def test_a_scan_killed_at_any_instant_is_entered_wholly_or_not_at_all(tmp_path: Path) -> None:
    chance = random.Random(28)
    home, models, aside = Home(tmp_path / "home"), tmp_path / "models", tmp_path / "aside"
    home.root.mkdir()
    aside.mkdir()
    files = [gguf(models / f"m{number}.gguf", f"name {number}") for number in range(12)]
    arguments = (str(home.root), str(models))
    found = tmp_path / "home" / "jobs" / "j-1" / "scan.json"

    def entered() -> set[str]:
        with Database.open(home.database) as database:
            assert database.check() == []
            return {entry.path for entry in database.read(lambda db: Models(db).all()) if not entry.missing}

    interrupted = unfinished = 0
    with Nursery("support.catalogue_work:look") as nursery:
        child = nursery.spawn(*arguments)
        assert child.read() == "begin"
        began = time.monotonic()
        assert [child.read(), child.read()] == ["found", "done"]
        took = time.monotonic() - began
        child.kill()
        before = entered()
        assert before == {str(file) for file in files}
        for _ in range(SCANS):
            for file in chance.sample(files, 3):
                here, there = (file, aside / file.name) if file.exists() else (aside / file.name, file)
                here.rename(there)
            now = {str(file) for file in files if file.exists()}
            said = nursery.spawn(*arguments).kill_after(chance.uniform(0, took * 1.5))
            assert set(said) <= {"begin", "found", "done"}, said
            after = entered()
            assert after == now or (after == before and "done" not in said)
            interrupted += said[-1] == "begin"
            unfinished += "done" not in said
            before = after
            for part in collect_parts(found.parent):
                part.unlink()
            msgspec.json.decode(found.read_bytes(), type=ScanResult)
            assert [path.name for path in found.parent.iterdir()] == [found.name]
    assert interrupted >= 5 and unfinished >= SCANS / 5, (
        "too few kills hit the work, so this test proved less than it says"
    )
