"""Logs: one line per fact, capped, readable in pages, and never in the way."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.events import LogLine
from lathe.engine.journal import Journal, read_page


def test_a_line_is_json_and_an_event(tmp_path: Path) -> None:
    heard: list[LogLine] = []
    journal = Journal(tmp_path / "engine.jsonl", 10_000, heard.append)
    journal.write("loaded\nqwen \x1b[31mred", "warn", "worker qwen")
    journal.close()
    (line,) = (tmp_path / "engine.jsonl").read_text("utf-8").splitlines()
    record = json.loads(line)
    assert (record["level"], record["source"]) == ("warn", "worker qwen")
    assert "\x1b" not in record["text"]
    assert heard[0].text == record["text"]


def test_the_file_is_capped_and_one_old_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "engine.jsonl"
    journal = Journal(path, 2_000, lambda _: None)
    for number in range(200):
        journal.write(f"line {number}")
    journal.close()
    assert path.stat().st_size <= 2_000
    assert path.with_suffix(".jsonl.1").stat().st_size <= 2_000
    assert {p.name for p in tmp_path.iterdir()} == {"engine.jsonl", "engine.jsonl.1"}
    assert "line 199" in path.read_text()


def test_a_log_that_cannot_be_written_disturbs_nobody(tmp_path: Path) -> None:
    heard: list[LogLine] = []
    journal = Journal(tmp_path / "missing" / "engine.jsonl", 1_000, heard.append)
    journal.write("still heard")
    (tmp_path / "missing").mkdir()
    journal.write("and written again when there is room")
    journal.close()
    assert [line.text for line in heard] == ["still heard", "and written again when there is room"]
    assert "room" in (tmp_path / "missing" / "engine.jsonl").read_text()


_LINES = st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20), max_size=30)


@given(_LINES, st.integers(1, 7))
def test_pages_give_every_line_once(lines: list[str], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
        seen: list[str] = []
        offset = 0
        while True:
            page = read_page(path, offset, limit, ended=True)
            seen += page.lines
            offset = page.next
            if page.ended:
                break
        assert seen == lines


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    page = read_page(path, 0, 10)
    assert page.lines == ("one",)
    path.write_bytes(b"one\ntwo\n")
    page = read_page(path, page.next, 10)
    assert page.lines == ("two",)
    assert read_page(path, page.next, 10).lines == ()


def test_the_tail_and_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{n}\n" for n in range(100)))
    page = read_page(path, -1, 3)
    assert page.lines == ("97", "98", "99")
    with path.open("a") as file:
        file.write("100\n")
    assert read_page(path, page.next, 10).lines == ("100",)


def test_no_log_yet_is_an_empty_page(tmp_path: Path) -> None:
    assert read_page(tmp_path / "none", 0, 10).lines == ()
