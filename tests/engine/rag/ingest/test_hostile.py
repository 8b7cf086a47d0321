"""Hostile files through the real child: each is one row, the run goes on, and nothing outlives its limits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from lathe.engine.errors import LatheError
from lathe.engine.rag.ingest.folder import read_folder
from lathe.engine.rag.ingest.reader import DocumentReader
from lathe.engine.rag.ingest.values import FileProblem, Item
from lathe.engine.rag.values import ParsedDocument, ReadLimits
from support.hostile_documents import (
    HOSTILE,
    NAMES,
    pdf_outline_loop,
    pdf_text,
    write_hostile,
    write_names,
    write_special,
)
from support.waiting import until

pytest.importorskip("pypdf")
pytest.importorskip("docx")


async def read_all(folder: Path, log: Path, limits: ReadLimits | None = None) -> dict[str, Item]:
    """Every item of a folder by the name of its file."""
    items = {}
    async for item in read_folder([folder], {}, limits, log_path=log):
        items[item.path.rpartition("/")[2]] = item
    return items


async def test_every_hostile_file_is_a_row_and_the_last_file_is_read(tmp_path: Path) -> None:
    expected = write_hostile(tmp_path / "docs")
    items = await read_all(tmp_path / "docs", tmp_path / "log")
    good = items.pop("zz-good.txt")
    assert isinstance(good, ParsedDocument)
    assert good.text.startswith("Everything before me")
    assert set(items) == set(HOSTILE)
    for name, code in expected.items():
        problem = items[name]
        assert isinstance(problem, FileProblem), name
        assert problem.failure.code.startswith(code), (name, problem.failure)
        assert "\n" not in problem.failure.message
        assert problem.kind == ("skipped" if problem.failure.code in ("E_NOT_A_DOCUMENT", "E_EMPTY") else "failed")


async def test_special_files_are_never_opened(tmp_path: Path) -> None:
    write_special(tmp_path / "docs")
    items = await read_all(tmp_path / "docs", tmp_path / "log")
    codes = {name: item.failure.code for name, item in items.items() if isinstance(item, FileProblem)}
    assert codes == {
        "pipe.txt": "E_NOT_A_DOCUMENT",
        "socket.txt": "E_NOT_A_DOCUMENT",
        "a.txt": "E_IO",
        "b.txt": "E_IO",
        "gone.txt": "E_NOT_FOUND",
        "out.txt": "E_NOT_A_DOCUMENT",
        "zero.txt": "E_NOT_A_DOCUMENT",
        "huge.txt": "E_DOCUMENT_LIMIT",
    }
    assert isinstance(items["good.txt"], ParsedDocument)


async def test_names_of_any_bytes(tmp_path: Path) -> None:
    write_names(tmp_path / "docs")
    items = await read_all(tmp_path / "docs", tmp_path / "log")
    assert len(items) == len(NAMES)
    assert all(isinstance(item, ParsedDocument) for item in items.values())
    assert "not-\\xff-utf8.txt" in items
    assert "cafe\u0301.txt" in items  # a name is never normalised: it is what opens the file
    for item in items.values():
        item.path.encode()


async def test_an_outline_that_loops_costs_the_outline_only(tmp_path: Path) -> None:
    (tmp_path / "loop.pdf").write_bytes(pdf_outline_loop())
    async with DocumentReader(tmp_path / "log") as read:
        document = await read(tmp_path / "loop.pdf", ReadLimits())
    assert document.text == "Round and round"


async def test_unreadable_vanishing_and_replaced_files(tmp_path: Path) -> None:
    async with DocumentReader(tmp_path / "log") as read:
        with pytest.raises(LatheError) as gone:
            await read(tmp_path / "never.txt", ReadLimits())
        assert gone.value.code == "E_NOT_FOUND"
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(LatheError) as pipe:
            await read(tmp_path / "pipe.txt", ReadLimits())
        assert pipe.value.code == "E_NOT_A_DOCUMENT"
        (tmp_path / "link.txt").symlink_to("/etc/hostname")
        with pytest.raises(LatheError) as link:
            await read(tmp_path / "link.txt", ReadLimits())
        assert link.value.code == "E_NOT_A_DOCUMENT"
        locked = tmp_path / "locked.txt"
        locked.write_text("closed")
        locked.chmod(0)
        if os.geteuid() != 0:
            with pytest.raises(LatheError) as closed:
                await read(locked, ReadLimits())
            assert closed.value.code == "E_PERMISSION"


async def test_processor_time_is_per_file(tmp_path: Path) -> None:
    (tmp_path / "slow.md").write_text("[a](b) *c* `d`\n" * 150_000)
    (tmp_path / "quick.md").write_text("# Quick\n\nThis one is short.")
    limits = ReadLimits(cpu_s=0.1)
    async with DocumentReader(tmp_path / "log") as read:
        with pytest.raises(LatheError, match="processor time"):
            await read(tmp_path / "slow.md", limits)
        assert (await read(tmp_path / "quick.md", limits)).title == "Quick"


async def test_wall_time_ends_a_parser_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "slow.md").write_text("[a](b) *c* `d`\n" * 150_000)
    (tmp_path / "quick.txt").write_text("This one is short.")
    async with DocumentReader(tmp_path / "log") as read:
        assert (await read(tmp_path / "quick.txt", ReadLimits())).text
        with pytest.raises(LatheError, match=r"takes more than 0\.3 s"):
            await read(tmp_path / "slow.md", ReadLimits(wall_s=0.3))
        assert (await read(tmp_path / "quick.txt", ReadLimits())).text
        assert read.started == 2


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
async def test_memory_is_limited(tmp_path: Path) -> None:
    (tmp_path / "wide.json").write_text("[" + ",".join(['{"a":[1]}'] * 1_500_000) + "]")
    (tmp_path / "quick.txt").write_text("This one is short.")
    async with DocumentReader(tmp_path / "log") as read:
        with pytest.raises(LatheError) as error:
            await read(tmp_path / "wide.json", ReadLimits(memory_bytes=200 * 1024 * 1024))
        assert error.value.code in ("E_DOCUMENT_LIMIT", "E_PARSER_CRASH")
        assert (await read(tmp_path / "quick.txt", ReadLimits())).text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_parser_that_dies_costs_its_file(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.md").write_text("[a](b) *c* `d`\n" * 150_000)
    (tmp_path / "quick.txt").write_text("This one is short.")
    async with DocumentReader(tmp_path / "log") as read:
        await read(tmp_path / "quick.txt", ReadLimits())
        (child,) = [p for p in psutil.Process().children() if "lathe.engine.rag.ingest.child" in " ".join(p.cmdline())]
        busy = asyncio.create_task(read(tmp_path / "slow.md", ReadLimits()))
        await until(lambda: child.cpu_times().user > 0 and not busy.done())
        child.send_signal(number)
        with pytest.raises(LatheError) as error:
            await busy
        assert error.value.code == "E_PARSER_CRASH"
        assert (await read(tmp_path / "quick.txt", ReadLimits())).text == "This one is short."


async def test_a_cancelled_read_leaves_the_reader_in_step(tmp_path: Path) -> None:
    (tmp_path / "slow.md").write_text("[a](b) *c* `d`\n" * 150_000)
    (tmp_path / "a.pdf").write_bytes(pdf_text("The next answer is mine"))
    async with DocumentReader(tmp_path / "log") as read:
        busy = asyncio.create_task(read(tmp_path / "slow.md", ReadLimits()))
        await until(lambda: read.started == 1)
        await asyncio.sleep(0.05)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        assert (await read(tmp_path / "a.pdf", ReadLimits())).text == "The next answer is mine"


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "open('made', 'w')",
        "import os; os.open('made', os.O_CREAT | os.O_WRONLY)",
    ],
)
def test_the_child_refuses_what_no_reader_needs(tmp_path: Path, attempt: str) -> None:
    code = f"import sys\nfrom lathe.engine.rag.ingest.child import _guard\nsys.addaudithook(_guard)\n{attempt}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a parser may not do this" in done.stderr
    assert not list(tmp_path.iterdir())
