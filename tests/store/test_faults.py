"""Damaged bytes, full disks, missing permissions: a typed error each time, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lathe.store import driver
from lathe.store.database import Database
from lathe.store.errors import HOW_TO_RECOVER, StoreCorrupt, StoreError, StoreFull, StoreReadOnly
from lathe.store.hashes import Hashes, HashRecord
from lathe.store.jobs import JobRecord, Jobs
from lathe.store.keys import KeyRing
from lathe.store.migrations import WORKSPACE
from lathe.store.models import Models
from lathe.store.recovery import recover_copy
from lathe.store.requests import RequestRecord, Requests
from lathe.store.runs import Runs, StepRecord
from lathe.store.samples import Samples
from support.nursery import Nursery
from support.store_work import add_pair
from support.stores import entry

ROWS = 120
MUTANTS = 150


def populate(db) -> None:
    jobs, runs = Jobs(db), Runs(db)
    run = runs.start("plan", 1.0).id
    for number in range(1, ROWS + 1):
        Models(db).put(entry(number, card={"architecture": "llama", "chat_template": "x" * (number * 3)}))
        jobs.save(JobRecord(id=jobs.new_id(), kind="scan", state="done", run=run, body=f'{{"n": {number}}}'))
        runs.record(StepRecord(run=run, name=f"s{number}", key=f"k{number}", state="done"))
        Hashes(db).put(HashRecord(path=f"/m/{number}", size=1, mtime_ns=1, sha256="a" * 64))
        Requests(db).add([RequestRecord(id=f"q{number}", model="m", client="c", finish="stop", finished_at=1.0)])
        Samples(db).add(number * 10.0, {"cpu": 0.5, "ram": 1e9})


def read_everything(db) -> None:
    Models(db).all(), Models(db).find("model-3"), Models(db).find("0000"), Models(db).pending_hash()
    Models(db).children("000000000001")
    Jobs(db).newest(), Jobs(db).unfinished(), Jobs(db).get("j-7")
    Runs(db).newest(), Runs(db).steps("r-1970-01-01-01"), Runs(db).reusable("k5")
    Requests(db).newest(), Samples(db).history(0, 1e5), Hashes(db).get("/m/3", 1, 1)


def write_everything(db) -> None:
    Models(db).put(entry(900, path="/models/2.gguf"))
    Models(db).measure("000000000001", {"perplexity": 1.0})
    Jobs(db).save(JobRecord(id="j-7", kind="scan", state="failed", body="{}"))
    Jobs(db).clear_finished()
    Runs(db).record(StepRecord(run=Runs(db).start("plan", 1.0).id, name="s", key="k", state="done"))
    Requests(db).add([RequestRecord(id="q", model="m", client="c", finish="stop", finished_at=1.0)])
    Samples(db).add(15.0, {"cpu": 0.5})
    Hashes(db).put(HashRecord(path="/m/3", size=2, mtime_ns=1, sha256="b" * 64))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "lathe.db"
    with Database.open(path) as database:
        database.write(populate).result()
        assert database.check() == []
    return path.read_bytes()


def damage(content: bytes, chance: random.Random) -> bytes:
    mutant = bytearray(content)
    match chance.randrange(6):
        case 0:
            del mutant[chance.randrange(len(mutant)) :]
        case 1:
            start = chance.randrange(len(mutant))
            mutant[start : start + 4096] = bytes(len(mutant[start : start + 4096]))
        case 2:
            mutant[chance.randrange(100)] = chance.randrange(256)
        case 3:
            page = chance.randrange(len(mutant) // 4096) * 4096
            mutant[page : page + 16] = chance.randbytes(16)
        case _:
            for _ in range(chance.choice((1, 8, 64))):
                mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
    return bytes(mutant)


def test_a_damaged_file_gives_store_errors_and_nothing_else(tmp_path: Path, sound: bytes) -> None:
    chance = random.Random(15)
    noticed = 0
    for number in range(MUTANTS):
        path = tmp_path / f"{number}.db"
        path.write_bytes(damage(sound, chance))
        before = path.read_bytes()
        try:
            try:
                with Database.open(path, read_only=True) as reader:
                    reader.read(read_everything)
                    noticed += bool(reader.check())
            finally:
                assert path.read_bytes() == before
            with Database.open(path) as database:
                database.write(write_everything).result()
                database.read(read_everything)
        except StoreError as error:
            noticed += 1
            assert error.message.isprintable()
        path.unlink()
    assert noticed > MUTANTS / 3


def test_recovery_saves_what_can_be_read(tmp_path: Path, sound: bytes) -> None:
    damaged = tmp_path / "damaged.db"
    content = bytearray(sound)
    for page in range(0, len(content), 4096):
        is_leaf = content[page] == 0x0D
        if is_leaf and any(b"/models/%d.gguf" % number in content[page : page + 4096] for number in (40, 80)):
            content[page : page + 100] = b"\xff" * 100
    damaged.write_bytes(content)
    with Database.open(damaged, read_only=True) as reader, pytest.raises(StoreCorrupt):
        reader.read(read_everything)
    recovery = recover_copy(damaged, tmp_path / "saved.db")
    assert recovery.gaps["models"] >= 1
    assert ROWS / 2 < recovery.saved["models"] < ROWS
    assert {table: recovery.saved[table] for table in ("jobs", "requests", "run_steps", "runs")} == {
        "jobs": ROWS, "requests": ROWS, "run_steps": ROWS, "runs": 1,
    }  # fmt: skip
    with Database.open(tmp_path / "saved.db") as database:
        assert database.migrated == []
        assert database.check() == []
        database.read(read_everything)
        assert len(database.read(lambda db: Models(db).all())) == recovery.saved["models"]
        database.write(write_everything).result()
    with pytest.raises(StoreError, match="exists"):
        recover_copy(damaged, tmp_path / "saved.db")


def test_recovery_of_an_older_store_gives_new_columns_their_defaults(tmp_path: Path) -> None:
    old = WORKSPACE._replace(steps=WORKSPACE.steps[:7])  # before keys had stores, and before aliases
    with Database.open(tmp_path / "old.db", schema=old) as database:
        row = ["ops", "d", 1.0, "[]", "[]", None, None]
        database.write(
            lambda db: db.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?)", row) and None
        ).result()
    recovery = recover_copy(tmp_path / "old.db", tmp_path / "copy.db")
    assert (recovery.saved["api_keys"], recovery.saved["aliases"]) == (1, 0)
    assert not any(recovery.gaps.values())
    with Database.open(tmp_path / "copy.db") as database:
        (found,) = KeyRing(database).keys()
        assert (found.name, found.stores) == ("ops", ())


def test_recovery_of_a_sound_file_loses_nothing(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "lathe.db").write_bytes(sound)
    recovery = recover_copy(tmp_path / "lathe.db", tmp_path / "copy.db")
    assert not any(recovery.gaps.values())
    assert not any(recovery.refused.values())
    with Database.open(tmp_path / "lathe.db") as before, Database.open(tmp_path / "copy.db") as after:
        for table in recovery.saved:
            rows = lambda db, table=table: db.execute(f'SELECT * FROM "{table}"').fetchall()  # noqa: E731
            assert before.read(rows) == after.read(rows)


def test_recovery_from_a_shell(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "lathe.db").write_bytes(sound)
    assert "python -m lathe.store.recovery" in HOW_TO_RECOVER
    command = [sys.executable, "-m", "lathe.store.recovery", str(tmp_path / "lathe.db"), str(tmp_path / "copy.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{ROWS} rows saved, 0 refused, 0 gaps" in done.stdout.splitlines()[0]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 65
    assert "exists" in again.stderr
    assert subprocess.run(command[:4], capture_output=True, timeout=60).returncode == 2


def test_recovery_only_raises_store_errors(tmp_path: Path, sound: bytes) -> None:
    chance = random.Random(16)
    recovered = 0
    for number in range(40):
        path, target = tmp_path / f"{number}.db", tmp_path / f"{number}-saved.db"
        path.write_bytes(damage(sound, chance))
        try:
            recover_copy(path, target)
        except StoreError:
            assert not target.exists()
            continue
        recovered += 1
        with Database.open(target) as database:
            assert database.check() == []
    assert recovered > 20
    assert not list(tmp_path.glob("*.part"))


def test_nothing_readable_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    with pytest.raises(StoreError):
        recover_copy(tmp_path / "x.db", tmp_path / "y.db")
    assert not (tmp_path / "y.db").exists()


def test_a_full_database_rolls_back_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    with Database.open(tmp_path / "lathe.db") as database:
        database.write(add_pair(1)).result()
        pages = database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0]).result()
        database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()).result()
        with pytest.raises(StoreFull, match="no room") as caught:
            for number in range(2, 5000):
                last = number
                database.write(add_pair(number)).result()
        assert "free disk space" in caught.value.hint
        rows = database.read(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()[0])
        assert rows == 2 * (last - 1)
        database.write(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone()).result()
        database.write(add_pair(last)).result()
        assert database.check() == []


def test_a_disk_without_room_loses_no_acknowledged_write(tmp_path: Path) -> None:
    path = tmp_path / "lathe.db"
    with Nursery("support.store_work:fill") as nursery:
        reported = nursery.spawn(str(path), "600000").rest()
    *numbers, failure, rows, problems, exists = reported
    assert failure.startswith(f"E_STORE_FULL no room left to write {path}")
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) > 20
    assert (int(rows), problems, exists) == (2 * len(numbers), "0", "True")
    with Database.open(path) as database:
        assert database.write(add_pair(len(numbers) + 1)).result() == len(numbers) + 1
        assert database.check() == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make, read_only: bool) -> None:
    make(tmp_path / "lathe.db")
    with pytest.raises(StoreCorrupt, match="is not a file"):
        Database.open(tmp_path / "lathe.db", read_only=read_only)


WITHOUT_RIGHTS = """
import os, sys
from lathe.store.database import Database
from lathe.store.errors import StoreError
path, other, warm = sys.argv[1:]
Database.open(warm).close()  # everything is imported before the rights are gone
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
for name in (path, other):
    try:
        Database.open(name)
    except StoreError as error:
        print(error.code, error.hint)
with Database.open(path, read_only=True) as database:
    print(database.read(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()[0]))
"""


def test_a_folder_that_cannot_be_written_is_one_clear_line_and_still_readable(tmp_path: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        with Database.open(folder / "lathe.db") as database:
            database.write(add_pair(1)).result()
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        arguments = [sys.executable, "-c", WITHOUT_RIGHTS, folder / "lathe.db", folder / "new.db", tmp_path / "warm.db"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        folder.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith("E_STORE_READ_ONLY") and "check the permissions" in line for line in lines[:2])
    assert lines[2] == "2"


def test_errors_of_the_disk_have_names(tmp_path: Path) -> None:
    def error(name: str, text: str = "x"):
        made = driver.sqlite3.OperationalError(text)
        made.sqlite_errorname = name
        return driver.explain(made, tmp_path / "lathe.db")

    (tmp_path / "lathe.db").touch()
    assert isinstance(error("SQLITE_FULL"), StoreFull)
    assert isinstance(error("SQLITE_NOTADB"), StoreCorrupt)
    assert isinstance(error("SQLITE_CORRUPT_INDEX"), StoreCorrupt)
    assert isinstance(error("SQLITE_ERROR", "Could not decode to UTF-8 column"), StoreCorrupt)
    assert isinstance(error("SQLITE_READONLY_DIRECTORY"), StoreReadOnly)
    assert error("SQLITE_BUSY").code == "E_STORE_LOCKED"
    assert type(error("SQLITE_IOERR_WRITE")) is StoreError
    assert type(error("SQLITE_CANTOPEN")) is StoreError
