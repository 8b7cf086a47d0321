"""kill -9 while models come and go: the registry stays sound and forgets no file that it was told of."""

from __future__ import annotations

import random
from pathlib import Path

from lathe.store.database import Database
from lathe.store.models import Models
from support.nursery import Nursery

CYCLES = 40


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
