"""Outputs are whole or absent: full disks, crashes, collisions and outputs that are inputs."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from lathe.quantize.artefact import collect_parts, file_sha256, new_artefact, remove_part
from lathe.quantize.errors import OutputError
from lathe.quantize.folder_artefact import new_folder


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run_child(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def stopped_child(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a child and wait until it says `ready`."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


WRITER = """
    import sys, time
    from pathlib import Path
    from lathe.quantize.artefact import new_artefact
    with new_artefact(Path(sys.argv[1])) as part:
        part.write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(60)
"""


def test_publishes_on_clean_exit(tmp_path: Path) -> None:
    output = tmp_path / "model.gguf"
    with new_artefact(output, expected_bytes=4) as part:
        assert part.parent == tmp_path
        assert part.name.startswith("model.gguf.")
        assert part.suffix == ".part"
        part.write_bytes(b"data")
        assert not output.exists()
    assert output.read_bytes() == b"data"
    assert listing(tmp_path) == ["model.gguf"]


def test_new_file_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_artefact(tmp_path / "a") as part:
            part.write_bytes(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.gguf"
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def recording(handle: int) -> None:
        seen.append((Path(f"/proc/self/fd/{handle}").readlink().name, output.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recording)
    with new_artefact(output) as part:
        part.write_bytes(b"data")
    assert seen == [(part.name, False), (tmp_path.name, True)]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143), MemoryError()])
def test_removed_on_any_exception(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with new_artefact(tmp_path / "a") as part:
            part.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert listing(tmp_path) == []


@pytest.mark.parametrize("failing", ["write", "part", "folder", "rename"])
def test_full_disk_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """A full disk leaves the old file as it was, except where only the folder's own sync failed."""
    output = tmp_path / "a"
    output.write_bytes(b"old")
    fsync = os.fsync

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir() == (failing == "folder"):
            full()
        fsync(handle)

    if failing in ("part", "folder"):
        monkeypatch.setattr(os, "fsync", full_for)
    if failing == "rename":
        monkeypatch.setattr(Path, "replace", full)

    def write() -> None:
        with new_artefact(output, force=True) as part:
            part.write_bytes(b"new")
            if failing == "write":
                full()

    with pytest.raises(OutputError) as caught:
        write()
    assert caught.value.code == "E_DISK_FULL"
    assert str(output) in caught.value.message
    assert listing(tmp_path) == ["a"]
    assert output.read_bytes() == (b"new" if failing == "folder" else b"old")


def test_other_io_errors_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"), new_artefact(tmp_path / "a") as part:
        part.write_bytes(b"x")
    assert listing(tmp_path) == []


def test_file_size_limit_in_a_child(tmp_path: Path) -> None:
    result = run_child(
        """
        import resource, sys
        from pathlib import Path
        from lathe.quantize.artefact import new_artefact
        from lathe.quantize.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            with new_artefact(Path(sys.argv[1])) as part, part.open("wb") as file:
                for _ in range(64):
                    file.write(bytes(4096))
        except OutputError as error:
            print(error.code)
        """,
        tmp_path / "a",
    )
    assert result.stdout == "E_DISK_FULL\n", result.stderr
    assert listing(tmp_path) == []


@pytest.mark.parametrize("kind", ["same", "hard link", "symbolic link", "output is a link", "relative"])
def test_output_equals_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(b"precious")
    other = tmp_path / "other.gguf"
    output, given = source, source
    if kind == "hard link":
        os.link(source, other)
        output = other
    elif kind == "symbolic link":
        other.symlink_to(source)
        given = other
    elif kind == "output is a link":
        other.symlink_to(source)
        output = other
    elif kind == "relative":
        monkeypatch.chdir(tmp_path)
        output = Path("source.gguf")
    with pytest.raises(OutputError) as caught, new_artefact(output, inputs=[given], force=True):
        pytest.fail("entered")
    assert caught.value.code == "E_OUTPUT_IS_INPUT"
    assert source.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.part"))


def test_existing_output_needs_force(tmp_path: Path) -> None:
    output = tmp_path / "a"
    output.write_bytes(b"old")
    with pytest.raises(OutputError) as caught, new_artefact(output):
        pytest.fail("entered")
    assert caught.value.code == "E_OUTPUT_EXISTS"
    with new_artefact(output, force=True) as part:
        part.write_bytes(b"new")
    assert output.read_bytes() == b"new"


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "a"
    with pytest.raises(OutputError) as caught, new_artefact(output) as part:
        part.write_bytes(b"ours")
        output.write_bytes(b"theirs")
    assert caught.value.code == "E_OUTPUT_EXISTS"
    assert output.read_bytes() == b"theirs"
    assert listing(tmp_path) == ["a"]


def test_force_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"kept")
    link.symlink_to(target)
    with new_artefact(link, force=True) as part:
        part.write_bytes(b"new")
    assert target.read_bytes() == b"kept"
    assert link.read_bytes() == b"new"
    assert not link.is_symlink()


def test_folders_that_cannot_take_it(tmp_path: Path) -> None:
    for output, code in (
        (tmp_path / "missing" / "a", "E_OUTPUT_FOLDER"),
        (tmp_path, "E_OUTPUT"),
        (tmp_path / ("n" * 255), "E_OUTPUT_FOLDER"),
        (Path("/proc/self/a"), "E_OUTPUT_FOLDER"),
    ):
        with pytest.raises(OutputError) as caught, new_artefact(output, force=True):
            pytest.fail("entered")
        assert caught.value.code == code


def test_space_is_checked_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="short") as caught, new_artefact(tmp_path / "a", expected_bytes=1 << 60):
        pytest.fail("entered")
    assert caught.value.code == "E_DISK_FULL"
    assert listing(tmp_path) == []


def test_killed_writer_leaves_only_a_part_that_is_collected(tmp_path: Path) -> None:
    output = tmp_path / "model.gguf"
    child = stopped_child(WRITER, output)
    try:
        assert collect_parts(tmp_path) == []
        with pytest.raises(OutputError, match=f"process {child.pid} is writing"), new_artefact(output):
            pytest.fail("entered")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name == f"model.gguf.{child.pid}.part"
    assert left.read_bytes() == b"half"
    assert collect_parts(tmp_path) == [left]
    with new_artefact(output) as part:
        part.write_bytes(b"whole")
    assert listing(tmp_path) == ["model.gguf"]


def test_part_whose_inode_the_writer_replaced_is_not_collected(tmp_path: Path) -> None:
    with new_artefact(tmp_path / "a") as part:
        scratch = tmp_path / "scratch"
        scratch.write_bytes(b"new inode, no lock")
        scratch.replace(part)
        assert collect_parts(tmp_path) == []
    assert (tmp_path / "a").read_bytes() == b"new inode, no lock"


def test_pid_that_was_given_to_somebody_else(tmp_path: Path) -> None:
    part = tmp_path / f"a.{os.getpid()}.part"
    part.write_bytes(b"left by an earlier process of the same number")
    os.utime(part, (1, 1))
    assert collect_parts(tmp_path) == [part]


def test_a_folder_that_a_dead_writer_left_is_collected(tmp_path: Path) -> None:
    part = tmp_path / "model.999999999.part"
    part.mkdir()
    (part / "config.json").write_bytes(b"{}")
    with new_folder(tmp_path / "other") as own:
        (own / "config.json").write_bytes(b"{}")
        assert collect_parts(tmp_path) == [part], "the living one is locked"
    remove_part(part)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "other"]


def model_folder(path: Path, *more: str) -> Path:
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json", *more):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"{}")
    return path


@pytest.mark.parametrize("foreign", ["README.md", "main.js", "q4.gguf", "notes.txt", "1_Pooling/mine.txt"])
def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path: Path, foreign: str) -> None:
    output = model_folder(tmp_path / "model", foreign)
    with pytest.raises(OutputError, match=f"holds {foreign}"), new_folder(output, force=True):
        pass
    assert (output / foreign).exists()
    (output / foreign).unlink()
    with new_folder(output, force=True) as part:
        (part / "config.json").write_bytes(b"new")
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_a_folder_that_an_input_lies_in_is_never_replaced(tmp_path: Path) -> None:
    output = model_folder(tmp_path / "model", "onnx/model.onnx")
    link = tmp_path / "link"
    link.symlink_to(output / "onnx")
    for source in (output / "onnx", output / "model.safetensors", link):
        with pytest.raises(OutputError, match="holds the input"), new_folder(output, inputs=[source], force=True):
            pass
    assert (output / "onnx" / "model.onnx").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with pytest.raises(ValueError, match="broken"), new_folder(output) as part:
        (part / "config.json").write_bytes(b"{}")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []
    with new_folder(output) as part:
        (part / "config.json").write_bytes(b"first")
    with pytest.raises(OutputError, match="is the input"), new_folder(output, inputs=[output], force=True):
        pass
    with pytest.raises(ValueError, match="broken"), new_folder(output, force=True) as part:
        raise ValueError("broken")
    assert (output / "config.json").read_bytes() == b"first"
    with pytest.raises(OutputError, match="no space left"), new_folder(output, force=True):
        raise OSError(errno.ENOSPC, "full")
    assert list(tmp_path.iterdir()) == [output]
    with new_folder(output, force=True) as part:
        (part / "config.json").write_bytes(b"second")
    assert (output / "config.json").read_bytes() == b"second"
    (tmp_path / "notes").mkdir()
    with pytest.raises(OutputError, match="not replaced"), new_folder(tmp_path / "notes", force=True):
        pass


def test_foreign_files_are_never_collected(tmp_path: Path) -> None:
    (tmp_path / "download.part").write_bytes(b"a browser's")
    (tmp_path / "model.gguf.x1.part").write_bytes(b"not a pid")
    (tmp_path / "link.999999999.part").symlink_to(tmp_path / "download.part")
    os.mkfifo(tmp_path / "fifo.999999999.part")
    assert collect_parts(tmp_path) == []
    assert collect_parts(tmp_path / "missing") == []
    assert collect_parts(tmp_path / "download.part") == []


def test_sha256_in_constant_memory_with_progress(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = os.urandom((1 << 20) + 17)
    path.write_bytes(data)
    heard: list[tuple[str, float, float | None, str]] = []
    digest = file_sha256(path, lambda *what: heard.append(what))
    assert digest == hashlib.sha256(data).hexdigest() == file_sha256(path)
    assert heard == [("sha256 a", 1 << 20, len(data), "B"), ("sha256 a", len(data), len(data), "B")]
