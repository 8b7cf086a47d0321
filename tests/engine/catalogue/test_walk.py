"""Trees that no honest person made: the walk ends, opens nothing special, and reports what it passed by."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from lathe.engine.catalogue import walk as walk_module
from lathe.engine.catalogue.walk import Folder, Place, Problem, list_folder, look_at, printable, walk


def walked(*roots: Path) -> tuple[list[str], list[Problem]]:
    """Names of files found, and problems."""
    seen = list(walk([Place(root) for root in roots], lambda folder: False))
    files = [file.path.name for folder in seen if isinstance(folder, Folder) for file in folder.files]
    return files, [problem for problem in seen if isinstance(problem, Problem)]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folders_are_walked_in_order_and_only_models_are_looked_at(tmp_path: Path) -> None:
    for name in ("b/2.gguf", "a/1.GGUF", "a/README.md", "a/config.json", "a/notes.txt", "a/merges.txt", ".git/3.gguf"):
        touch(tmp_path / name)
    assert walked(tmp_path) == (["1.GGUF", "config.json", "merges.txt", "2.gguf"], [])


def test_loops_of_links_end_and_links_elsewhere_are_followed(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere" / "1.gguf").parent
    root = tmp_path / "root"
    touch(root / "2.gguf")
    (root / "up").symlink_to(root)
    (root / "far").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    assert walked(root) == (["2.gguf", "1.gguf"], [])
    assert walked(root, tmp_path / "root" / "up", elsewhere, root) == (["2.gguf", "1.gguf"], [])


def test_special_files_are_reported_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket.gguf"))
    (tmp_path / "nothing.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "folder.gguf").mkdir()
    files, problems = walked(tmp_path)
    listener.close()
    assert files == []
    assert sorted(Path(problem.path).name for problem in problems) == [
        "device.gguf", "loop.gguf", "nothing.gguf", "pipe.gguf", "socket.gguf",
    ]  # fmt: skip
    assert {problem.message for problem in problems if "pipe" in problem.path} == {"is a special file, not a model"}


def test_folders_that_cannot_be_read_or_vanish_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "closed" / "1.gguf"), touch(tmp_path / "gone" / "2.gguf"), touch(tmp_path / "open" / "3.gguf")
    scandir = os.scandir

    def refusing(path: Path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        if path.name == "gone":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(walk_module.os, "scandir", refusing)
    files, problems = walked(tmp_path, tmp_path / "never")
    assert files == ["3.gguf"]
    assert [(Path(problem.path).name, problem.code) for problem in problems] == [
        ("closed", "E_PERMISSION"), ("gone", "E_NOT_FOUND"), ("never", "E_NOT_FOUND"),
    ]  # fmt: skip


def test_depth_and_number_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path
    for _ in range(walk_module.MAX_DEPTH):
        deep = deep / "d"
    touch(deep / "reached.gguf"), touch(deep / "d" / "too-deep.gguf")
    files, problems = walked(tmp_path)
    assert files == ["reached.gguf"]
    assert [problem.code for problem in problems] == ["E_SCAN_LIMIT"]
    monkeypatch.setattr(walk_module, "MAX_FOLDERS", 3)
    assert "after 3 folders" in walked(tmp_path)[1][0].message
    monkeypatch.setattr(walk_module, "MAX_FILES", 5)
    for number in range(9):
        touch(tmp_path / f"{number}.gguf")
    assert len(list_folder(tmp_path).files) == 5


def test_a_very_deep_tree_ends_without_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_DEPTH", 10_000)
    deep = tmp_path
    for _ in range(600):  # close to the longest path that Linux takes
        deep = deep / "d"
    deep.mkdir(parents=True)
    touch(deep / "1.gguf")
    assert walked(tmp_path) == (["1.gguf"], [])


def test_pseudo_file_systems_are_left_alone() -> None:
    assert walked(Path("/proc"), Path("/sys"), Path("/dev")) == ([], [])


def test_names_that_are_no_text_are_printable() -> None:
    assert printable(Path(os.fsdecode(b"/m/\xff\xfe.gguf"))) == "/m/\\xff\\xfe.gguf"


def test_links_to_the_same_bytes_are_known_as_such(tmp_path: Path) -> None:
    original = touch(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").symlink_to(original)
    os.link(original, tmp_path / "c.gguf")
    touch(tmp_path / "d.gguf")
    a, b, c, d = (look_at(tmp_path / f"{name}.gguf").inode for name in "abcd")
    assert a == b == c != d
