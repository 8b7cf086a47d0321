"""llama.cpp's own converter: installed by hash, carried, checked, and never from a hostile archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import DataError, MissingError, PolicyError, UnavailableError, UsageError
from lathe.engine.toolchain import official, store
from lathe.quantize.artefact import file_sha256
from lathe.quantize.errors import OutputError, UnsafeError

ROOT = "llama_cpp_python-9.9.9/vendor/llama.cpp"
GOOD = {
    f"{ROOT}/convert_hf_to_gguf.py": b"print('converter')",
    f"{ROOT}/conversion/base.py": b"x = 1",
    f"{ROOT}/gguf-py/gguf/__init__.py": b"",
    f"{ROOT}/LICENSE": b"MIT",
    f"{ROOT}/src/llama.cpp": b"not wanted",
    f"{ROOT}/gguf-py/gguf/../../evil.txt": b"not wanted either",
}


def archive(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = archive(tmp_path / "source.tar.gz", GOOD)
    monkeypatch.setitem(store.KNOWN, "9.9.9", file_sha256(path))
    monkeypatch.setattr(store, "installed_version", lambda: "9.9.9")
    return path


def test_install_list_pack_carry_remove(tmp_path: Path, source: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    made = store.install(here, source=source)
    assert sorted(made.files) == ["LICENSE", "conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py"]
    assert store.listed(here) == [made]
    assert store.checked(here) == here / "9.9.9"
    packed = store.pack(here, tmp_path / "packed.tar.gz")
    assert store.install(there, source=packed) == made, "a packed one needs no source and no network"
    assert packed.read_bytes() == store.pack(there, tmp_path / "again.tar.gz").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        store.install(here, source=source)
    store.install(here, source=source, force=True)
    store.remove(here, "9.9.9")
    assert store.listed(here) == []
    with pytest.raises(MissingError):
        store.remove(here, "9.9.9")
    assert [path.name for path in here.iterdir()] == [], "nothing is left of fetching"


def test_what_was_changed_is_not_run(tmp_path: Path, source: Path) -> None:
    store.install(tmp_path / "home", source=source)
    (tmp_path / "home" / "9.9.9" / "conversion" / "base.py").write_bytes(b"x = 2")
    with pytest.raises(DataError, match="not what was installed"):
        store.checked(tmp_path / "home")


def test_an_unknown_hash_is_refused(tmp_path: Path, source: Path) -> None:
    other = archive(tmp_path / "other.tar.gz", GOOD | {f"{ROOT}/conversion/base.py": b"evil"})
    with pytest.raises(DataError, match="hashes to"):
        store.install(tmp_path / "home", source=other)
    assert store.install(tmp_path / "home", source=other, sha256=file_sha256(other)).files
    with pytest.raises(UsageError, match="is no version"):
        store.install(tmp_path / "home", source=source, version="../../x")


def _changed(manifest: dict[str, object]) -> dict[str, object]:
    return manifest | {"source_sha256": "0" * 64}


def _other_version(manifest: dict[str, object]) -> dict[str, object]:
    return manifest | {"version": "1.0"}


def _more_files(manifest: dict[str, object]) -> dict[str, object]:
    return manifest | {"files": {"a.py": "0" * 64}}


@pytest.mark.parametrize("change", [_changed, _other_version, _more_files])
def test_a_packed_one_that_lies_is_refused(
    tmp_path: Path, source: Path, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    store.install(tmp_path / "home", source=source)
    folder = tmp_path / "home" / "9.9.9"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["config.json"] = json.dumps(change(json.loads(files["config.json"]))).encode()
    with pytest.raises(DataError):
        store.install(tmp_path / "other", source=archive(tmp_path / "packed.tar.gz", files))
    assert list((tmp_path / "other").iterdir()) == []


def _link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{ROOT}/conversion/link.py")
    info.type, info.linkname = kind, target
    return info


def _large() -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{ROOT}/conversion/large.py")
    info.size = 9 << 20
    return info


@pytest.mark.parametrize(
    "extra",
    [
        _link(tarfile.SYMTYPE, "/etc/passwd"), _link(tarfile.LNKTYPE, "../../x"), _link(tarfile.CHRTYPE, ""),
        _link(tarfile.FIFOTYPE, ""), _large(),
    ],
)  # fmt: skip
def test_links_devices_and_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tarfile.TarInfo
) -> None:
    hostile = archive(tmp_path / "hostile.tar.gz", GOOD, extra)
    with pytest.raises(DataError):
        store.install(tmp_path / "home", source=hostile, version="9.9.9", sha256=file_sha256(hostile))
    assert list((tmp_path / "home").iterdir()) == []


def test_offline_means_offline(tmp_path: Path, source: Path) -> None:
    with pytest.raises(PolicyError, match="offline"):
        store.install(tmp_path / "home")
    with pytest.raises(MissingError, match="no archive"):
        store.install(tmp_path / "home", source=tmp_path / "none")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"no tar")
    with pytest.raises(DataError, match="cannot be read"):
        store.install(tmp_path / "home", source=broken)


def test_a_library_that_the_converter_misses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "base.py").write_text("class TextModel:\n    get_vocab_base_pre = None\n")
    (tmp_path / store.SCRIPT).write_text("def main():\n    import a_tokenizer_library\n")
    monkeypatch.setattr(official, "_refuse_code", lambda: None)
    monkeypatch.setattr(official.sys, "path", list(official.sys.path))
    monkeypatch.setattr(official.sys, "argv", [])
    order = official.Order(toolchain=str(tmp_path), source="here", output="there", outtype="f16")
    try:
        with pytest.raises(UnavailableError, match=r"needs a_tokenizer_library for this checkpoint") as caught:
            official._run(order)
    finally:
        for name in ("conversion", "conversion.base"):
            official.sys.modules.pop(name, None)
    assert "lathe-llm[onnx]" in caught.value.hint


def test_code_of_a_checkpoint_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (checkpoint / name).write_bytes((CHECKPOINT / name).read_bytes())
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="torch, transformers"):
        official.convert(tmp_path, checkpoint, tmp_path / "out.gguf", outtype="f16")
    (checkpoint / "modeling.py").write_text("import os; os._exit(66)")
    with pytest.raises(UnsafeError, match="never run"):
        official.convert(tmp_path, checkpoint, tmp_path / "out.gguf", outtype="f16")
    (checkpoint / "modeling.py").unlink()
    config = json.loads((checkpoint / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeError, match="never runs a model's code"):
        official.convert(tmp_path, checkpoint, tmp_path / "out.gguf", outtype="f16")
    assert not (tmp_path / "out.gguf").exists()
