"""kill -9 at any instant: what was acknowledged is there, nothing is torn, and the next opening just works."""

from __future__ import annotations

import random
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lathe.store.database import Database
from support.nursery import Child, Nursery
from support.store_work import NEW, OLD

CYCLES = 60


@pytest.fixture(scope="module")
def writers() -> Iterator[Nursery]:
    with Nursery("support.store_work:append") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def migrators() -> Iterator[Nursery]:
    with Nursery("support.store_work:migrate") as nursery:
        yield nursery


def live_for_a_while(child: Child, chance: random.Random, reports: int, longest_s: float) -> list[str]:
    """Wait for some reports (a dead child ends the wait), then a random while, kill it, and return what it said."""
    heard = [child.read() for _ in range(reports)]
    deadline = time.monotonic() + chance.uniform(0, longest_s)
    while (left := deadline - time.monotonic()) > 0 and select.select([child.lines], [], [], left)[0]:
        heard.append(child.read())
        if not heard[-1]:
            break
    return [line for line in heard + child.kill() if line]


def test_acknowledged_writes_survive_kill_9_and_pairs_are_never_torn(tmp_path: Path, writers: Nursery) -> None:
    chance = random.Random(20)
    path = tmp_path / "lathe.db"
    acknowledged = kills_with_work = kills_before_open = 0
    for cycle in range(CYCLES):
        child = writers.spawn(str(path))
        # A third dies anywhere in opening and writing, a third at once, a third somewhere in the midst of writing.
        reports, longest_s = ((0, 0.06), (0, 0.004), (chance.randint(2, 9), 0.003))[cycle % 3]
        reported = live_for_a_while(child, chance, reports, longest_s)
        numbers = [int(line) for line in reported if line.isdigit()]
        assert set(reported) <= {"open", *map(str, numbers)}, reported
        kills_with_work += bool(numbers)
        kills_before_open += not reported
        acknowledged = max([acknowledged, *numbers])
        with Database.open(path) as database:
            if reported:
                assert database.former is not None
                assert database.former.pid == child.pid
                assert not database.former.is_alive()
            ids = database.read(lambda db: [row[0] for row in db.execute("SELECT id FROM requests ORDER BY number")])
            pairs = len(ids) // 2
            assert ids == [f"{number}{half}" for number in range(1, pairs + 1) for half in "ab"]
            assert pairs - acknowledged in (0, 1)
            acknowledged = pairs
            assert database.check() == []
    assert kills_with_work >= CYCLES / 3
    assert kills_before_open >= 3, "no child died while opening, so this test proved less than it says"


def test_a_migration_killed_at_any_instant_happened_wholly_or_not_at_all(tmp_path: Path, migrators: Nursery) -> None:
    chance = random.Random(21)
    rows = [{"number": number, "text": "t" * (number % 50)} for number in range(1, 101)]
    old = tmp_path / "old.db"
    with Database.open(old, schema=OLD) as database:
        database.write(lambda db: db.table("things").insert_all(rows) and None).result()
    content = old.read_bytes()
    finished = untouched = 0
    for cycle in range(CYCLES):
        path = tmp_path / f"{cycle}.db"
        path.write_bytes(content)
        child = migrators.spawn(str(path))
        # Most die anywhere, every tenth ends by itself.
        reports = 2 if cycle % 10 == 0 else 1
        reported = live_for_a_while(child, chance, reports, 0.05)
        with Database.open(path, schema=NEW) as database:
            kept = database.read(lambda db: list(db.query("SELECT number, text FROM copies ORDER BY number")))
            assert kept == rows
            assert database.read(lambda db: db.table_names()).count("things") == 0
            assert database.migrated in ([], ["m002_copies", "m003_no_things"])
            assert (len(reported) > 1) <= (database.migrated == [])
            finished += database.migrated == []
            untouched += database.migrated != []
            assert database.check() == []
        backup = tmp_path / f"{cycle}.db.v1.bak"
        with Database.open(backup, schema=OLD, read_only=True) as before:
            assert before.read(lambda db: list(db.query("SELECT * FROM things"))) == rows
        assert not list(tmp_path.glob(f"{cycle}.db.v1.bak.part"))
    assert finished >= CYCLES / 10
    assert untouched >= 3, "no child died while migrating, so this test proved less than it says"


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "lathe.db"
    with Nursery("support.store_work:hold") as nursery:
        holder = nursery.spawn(str(path))
        assert holder.read() == "held"
        refused = nursery.spawn(str(path)).rest()
        assert refused[0].startswith(f"StoreLocked: {path} is being written by process {holder.pid}")
        holder.kill()
        heir = nursery.spawn(str(path))
        assert heir.read() == "held"
        heir.kill()
