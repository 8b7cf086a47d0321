"""A folder as a stream of items: incremental by content, deletions last, resumable, bounded, watched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import psutil
import pytest
from lathe.engine.errors import LatheError
from lathe.engine.rag.ingest import child as child_module
from lathe.engine.rag.ingest.ahead import AheadQueue
from lathe.engine.rag.ingest.folder import read_folder
from lathe.engine.rag.ingest.values import FileProblem, Gone, Item, KnownFile, ReadProgress, Unchanged
from lathe.engine.rag.ingest.walk import Found, Unlisted, walk
from lathe.engine.rag.ingest.watch import watch
from lathe.engine.rag.values import ParsedDocument
from support.waiting import until


async def run(roots: list[Path], known: dict[str, KnownFile], log: Path, **more: object) -> list[Item]:
    return [item async for item in read_folder(roots, known, log_path=log, **more)]  # type: ignore[arg-type]


def remembered(items: list[Item]) -> dict[str, KnownFile]:
    return {
        item.path: KnownFile(item.sha256, item.file_bytes, item.modified_ns)
        for item in items
        if isinstance(item, ParsedDocument)
    }


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# A\n\nFirst.")
    (folder / "b.txt").write_text("Second.")
    (folder / "sub" / "c.py").write_text("def third():\n    pass\n")
    (folder / ".hidden.txt").write_text("Never.")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "d.txt").write_text("Never.")
    return folder


async def test_only_what_changed_is_read_again(docs: Path, tmp_path: Path) -> None:
    first = await run([docs], {}, tmp_path / "log")
    assert [Path(item.path).name for item in first] == ["a.md", "b.txt", "c.py"]
    assert all(isinstance(item, ParsedDocument) for item in first)
    known = remembered(first)

    again = await run([docs], known, tmp_path / "log")
    assert all(isinstance(item, Unchanged) for item in again)

    (docs / "b.txt").write_text("Second, edited.")
    os.utime(docs / "a.md")  # touched: another time, the same content
    shutil.rmtree(docs / "sub")
    (docs / "new.txt").write_text("Fourth.")
    changed = {Path(item.path).name: item for item in await run([docs], known, tmp_path / "log")}
    assert isinstance(changed["a.md"], Unchanged)
    assert changed["a.md"].known.modified_ns != known[str(docs / "a.md")].modified_ns
    assert isinstance(changed["b.txt"], ParsedDocument)
    assert isinstance(changed["new.txt"], ParsedDocument)
    assert isinstance(changed["c.py"], Gone)
    assert list(changed)[-1] == "c.py"


async def test_the_content_decides_where_times_lie(docs: Path, tmp_path: Path) -> None:
    known = remembered(await run([docs], {}, tmp_path / "log"))
    status = (docs / "b.txt").stat()
    (docs / "b.txt").write_text("Sec0nd.")
    os.utime(docs / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    trusting = await run([docs], known, tmp_path / "log")
    assert all(isinstance(item, Unchanged) for item in trusting)
    checking = await run([docs], known, tmp_path / "log", trust_times=False)
    assert [Path(item.path).name for item in checking if isinstance(item, ParsedDocument)] == ["b.txt"]


def _readers() -> list[int]:
    """Parser processes of ours that still run; one may end while it is looked at."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child_module.__name__ in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


async def test_a_run_that_was_left_is_resumed(docs: Path, tmp_path: Path) -> None:
    stored = {}
    stream = read_folder([docs], {}, log_path=tmp_path / "log")
    async for item in stream:
        assert isinstance(item, ParsedDocument)
        stored[item.path] = KnownFile(item.sha256, item.file_bytes, item.modified_ns)
        break
    await stream.aclose()
    await until(lambda: not _readers())
    rest = await run([docs], stored, tmp_path / "log")
    assert [type(item) for item in rest] == [Unchanged, ParsedDocument, ParsedDocument]


async def test_a_folder_that_is_away_empties_nothing(docs: Path, tmp_path: Path) -> None:
    known = remembered(await run([docs], {}, tmp_path / "log"))
    docs.rename(tmp_path / "elsewhere")
    (item,) = await run([docs], known, tmp_path / "log")
    assert isinstance(item, FileProblem)
    assert item.failure.code == "E_NOT_FOUND"


async def test_files_outside_of_the_roots_are_not_gone(docs: Path, tmp_path: Path) -> None:
    known = remembered(await run([docs], {}, tmp_path / "log")) | {"/other/place.txt": KnownFile("0" * 64)}
    items = await run([docs / "sub"], known, tmp_path / "log")
    assert [type(item) for item in items] == [Unchanged]


async def test_progress_ends_complete(docs: Path, tmp_path: Path) -> None:
    reports: list[ReadProgress] = []
    await run([docs], {}, tmp_path / "log", report=reports.append)
    done = [report.files_done for report in reports]
    assert done == sorted(done)
    last = reports[-1]
    assert last.walked
    assert last.files_done == last.files_total == 3
    assert last.bytes_done == last.bytes_total == sum(p.stat().st_size for p in walked(docs))


async def test_two_roots_with_one_inside_the_other_read_each_file_once(docs: Path, tmp_path: Path) -> None:
    items = await run([docs, docs / "sub", docs / "a.md"], {}, tmp_path / "log")
    assert len({item.path for item in items}) == len(items) == 3


async def test_a_parser_that_cannot_start_ends_the_run(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(LatheError, match="did not start"):
        await run([docs], {}, tmp_path / "log")


def walked(*roots: Path) -> list[Path]:
    return [entry.path for entry in walk(roots) if isinstance(entry, Found)]


def test_links_stay_inside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "folder").mkdir(parents=True)
    (inside / ".store").mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (inside / "folder" / "real.txt").write_text("real")
    (inside / ".store" / "object").write_text("annexed")
    (inside / "alias.txt").symlink_to(inside / "folder" / "real.txt")
    (inside / "annexed.txt").symlink_to(inside / ".store" / "object")
    (inside / "again").symlink_to(inside / "folder")
    (inside / "leak.txt").symlink_to(outside / "secret.txt")
    (inside / "leaks").symlink_to(outside)
    assert [path.name for path in walked(inside)] == ["object", "real.txt"]
    refused = [Path(entry.path).name for entry in walk([inside]) if isinstance(entry, FileProblem)]
    assert refused == ["leak.txt", "leaks"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_closed_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (entry,) = walk([tmp_path])
    assert isinstance(entry, Unlisted)
    assert entry.problem.failure.code == "E_PERMISSION"


async def test_what_is_read_ahead_is_bounded() -> None:
    queue: AheadQueue[int] = AheadQueue(10)
    await queue.put(1, 6)
    await queue.put(2, 4)
    third = asyncio.create_task(queue.put(3, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not third.done()
    assert await queue.get() == 1
    await third
    huge = asyncio.create_task(queue.put(4, 1000))
    assert [await queue.get(), await queue.get(), await queue.get()] == [2, 3, 4]
    await huge
    await queue.end()
    assert await queue.get() is None


async def test_watching_tells_what_changed_once_it_stands_still(docs: Path) -> None:
    changes = watch([docs], interval_s=0.02)
    assert not await anext(changes)
    waiting = asyncio.create_task(anext(changes))
    (docs / "new.txt").write_text("new")
    (docs / "b.txt").unlink()
    (docs / "a.md").write_text("# A\n\nLonger than before.")
    told = await asyncio.wait_for(waiting, 10)
    assert [Path(path).name for path in told.added + told.changed + told.removed] == ["new.txt", "a.md", "b.txt"]
    await changes.aclose()
